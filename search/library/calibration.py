"""Calibration: a caller's network and batches as all parts below take them: a network of one tensor, and images."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.base import Method
from pruning.file_size import CHECKPOINT, with_file_size
from pruning.traits import without_labels
from runners.config import TrainConfig
from runners.data.loading import ImageData
from runners.data.splits import DataError, TensorSplit
from runners.evaluation.context import TrialContext
from runners.training.scoring import evaluating
from spaces.errors import TraceError
from spaces.space import SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.zoo.inputs import Inputs, Packing, taking_packed

CALIBRATION_SAMPLES = 512  # that are taken from a loader; `di` reads as many


@dataclass(frozen=True)
class Calibration:
    """A live network, traced, with the samples from which methods gather statistics.

    Attributes:
        net: a copy of the caller's network in evaluation mode, which takes its inputs packed.
        packing: how they are packed.
        labelled: whether the samples have the classes that the network tells apart.
    """

    net: nn.Module
    space: SearchSpace
    packing: Packing
    data: ImageData
    labelled: bool

    @classmethod
    def of(cls, net: nn.Module, images: Any, config: SpaceConfig | None = None) -> "Calibration":
        """Trace a network, and read samples for it.

        Args:
            net: any network; it is not changed.
            images: see `search.library.prune.prune`.

        Raises:
            TraceError: the network cannot be followed or takes other inputs, or nothing of it may vary.
            DataError: there are no samples.
        """
        packing, samples, labels = _read(images, net)
        own = _copy(net)
        with evaluating(own), torch.no_grad():
            output = _run(own, packing.unpack(samples[:2].to(_device(own))))
        labelled = labels is not None and isinstance(output, Tensor) and _classes(output) > int(labels.max())
        taking_packed(own, packing)
        space = with_file_size(trace(own, samples[:1], config), own, CHECKPOINT, None)
        targets = labels if labels is not None and labelled else torch.zeros(len(samples), dtype=torch.int64)
        classes = _classes(output) if labelled else 1
        return cls(own, space, packing, _image_data(samples, targets, classes), labelled)

    def suited(self, method: Method) -> Method:
        """Return a method with the settings that these samples allow; raises PruningError when it needs labels."""
        return method if self.labelled else without_labels(method)

    def context(self, seed: int = 0, prepared: Any = None) -> TrialContext:
        """Return what a method may use: the samples, and no training."""
        return TrialContext(self.data, untrained(_device(self.net)), seed, prepared=prepared)


def untrained(device: torch.device) -> TrainConfig:
    """Return the training settings of a network that the caller trains."""
    return TrainConfig(epochs=0, precision="float32", device=str(device))


def _copy(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net).eval()
    except Exception as error:  # what a module holds besides tensors may refuse in any way
        raise TraceError(
            f"the network cannot be copied ({type(error).__name__}: {error}); give the plain torch module inside it"
        ) from error


def _device(net: nn.Module) -> torch.device:
    first = next(net.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _classes(output: Tensor) -> int:
    return int(output.shape[1]) if output.ndim == 2 else 0


def _run(net: nn.Module, inputs: Inputs) -> Any:
    try:
        return net(*inputs.args, **(inputs.kwargs or {}))
    except Exception as error:  # the caller's network may raise anything
        text = " ".join(str(error).split())[:200]
        raise TraceError(
            f"the network does not run on the first batch ({type(error).__name__}: {text}); give batches as "
            "net(batch) takes them, or (inputs, targets), where inputs may be a tuple or a dict"
        ) from error


def _read(images: Any, net: nn.Module) -> tuple[Packing, Tensor, Tensor | None]:
    """Return the packing, the packed samples on the CPU, and their labels where the batches have whole numbers."""
    packing: Packing | None = None
    rows, labels, count = list[Tensor](), list[Tensor](), 0
    if isinstance(images, tuple) and not _takes(net, len(images)) and _takes(net, len(images) - 1):
        images = [images]  # one batch with its targets, not several inputs
    for inputs, target in _batches(images):
        packing = packing or Packing.of(inputs)
        rows.append(packing.pack(inputs).cpu())
        if isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point():
            labels.append(target.cpu().to(torch.int64))
        count += len(rows[-1])
        if count >= CALIBRATION_SAMPLES:
            break
    if packing is None or count < 2:
        raise DataError(f"{count} samples were given; at least 2 are needed, better {CALIBRATION_SAMPLES}")
    samples = torch.cat(rows)[:CALIBRATION_SAMPLES]
    classes = torch.cat(labels)[:CALIBRATION_SAMPLES] if labels else None
    packing = packing.bounded(samples)
    return packing, samples, classes if classes is not None and len(classes) == len(samples) else None


def _takes(net: nn.Module, count: int) -> bool:
    """Return whether a network may be called with so many inputs."""
    try:
        inspect.signature(net.forward).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a forward that is not written in Python
        pass
    return True


def _batches(images: Any) -> Iterator[tuple[Inputs, Any]]:
    """Yield the inputs and the target of every batch; the target is None where there is none."""
    if isinstance(images, Tensor):
        yield Inputs((images,)), None
    elif isinstance(images, Mapping):
        yield Inputs((), images), None
    elif isinstance(images, tuple):
        yield Inputs(images), None
    elif isinstance(images, Iterable):
        for batch in images:
            if not isinstance(batch, tuple | list):
                yield from _batches(batch)
                continue
            inputs, target = (batch[:-1], batch[-1]) if len(batch) > 1 else (batch, None)
            if len(inputs) == 1 and isinstance(inputs[0], tuple | list | Mapping):
                (inner,) = inputs
                yield (Inputs((), inner) if isinstance(inner, Mapping) else Inputs(tuple(inner))), target
            else:
                yield Inputs(tuple(inputs)), target
    else:
        raise DataError(f"samples are a {type(images).__name__}; give a tensor, a tuple or dict of them, or a loader")


def _image_data(samples: Tensor, labels: Tensor, classes: int) -> ImageData:
    """Return the samples in every place of a dataset: what the caller trains and tests on stays with the caller."""
    channels, height, width = samples.shape[1:]
    split = TensorSplit(samples, labels, (0.0,) * channels, (1.0,) * channels, (height, width))
    return ImageData(
        name="samples of the caller",
        train=split,
        val=split,
        test=split,
        probe=split,
        calibration=split,
        num_classes=classes,
        input_shape=(channels, height, width),
        fingerprint=f"samples of shape {tuple(samples.shape[1:])}",  # a resumed search may draw others
    )
