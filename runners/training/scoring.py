"""Use a network without training it: its score on images, and its BatchNorm statistics. A lent network never moves."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runners.config import TrainConfig
from runners.data.splits import Split
from runners.training.compute_format import PLAIN, ComputeFormat, autocast_dtype
from runners.training.devices import pick_device
from runners.training.task import Classification, Reading, Task, task_of

BATCHNORM_IMAGES = 512  # on which the statistics of a narrow network are estimated again
STATISTICS_BATCH = 128
SCORED_BATCH = 256  # images, fewer where they do not fit into the memory


def score(
    net: nn.Module,
    split: Split,
    config: TrainConfig,
    *,
    compute_format: ComputeFormat | None = None,
    limit: int | None = None,
) -> float:
    """Return the score of a network on the first `limit` images by the task of a training: in [0, 1], 0.0 for no image.

    Args:
        config: names task, device and precision.
        compute_format: that of the training; None takes the precision that `config` declares.
    """
    return scores(net, split, config, compute_format=compute_format, limit=limit).score


def scores(
    net: nn.Module,
    split: Split,
    config: TrainConfig,
    *,
    compute_format: ComputeFormat | None = None,
    limit: int | None = None,
) -> "Scores":
    """Return all that `score` reads."""
    device = pick_device(config.device)
    read = reading_format(net, config, device, compute_format)
    return _scores(_read(net, split, task_of(config), device, read, SCORED_BATCH, limit))


def reading_format(
    net: nn.Module, config: TrainConfig, device: torch.device, compute_format: ComputeFormat | None = None
) -> ComputeFormat:
    """Return the format in which images pass through a network that is not trained: the precision of its training.

    Args:
        compute_format: that of the training; None takes the precision that `config` declares.
    """
    return ComputeFormat(
        autocast_dtype(config.precision, net, device) if compute_format is None else compute_format.autocast
    )


@dataclass(frozen=True)
class Scores:
    """What a network reaches on some images.

    Attributes:
        score: of the task, in [0, 1]; top-1 accuracy of classification.
        top5: top-5 accuracy; None for another task, or up to five classes.
    """

    score: float
    top5: float | None


def exact_score(net: nn.Module, split: Split, config: TrainConfig) -> Scores:
    """Return the scores in float32, in which networks are exported, as of the test images."""
    return _scores(_read(net, split, task_of(config), pick_device(config.device), PLAIN, SCORED_BATCH, None))


def _scores(reading: Reading) -> Scores:
    return Scores(reading.compute(), reading.top5())


def accuracy(
    net: nn.Module, split: Split, *, device: torch.device, batch_size: int = SCORED_BATCH, limit: int | None = None
) -> float:
    """Return top-1 accuracy in [0, 1] on the first `limit` images, in float32; 0.0 for an empty split."""
    return _read(net, split, Classification(), device, PLAIN, batch_size, limit).compute()


@torch.no_grad()
def _read(
    net: nn.Module,
    split: Split,
    task: Task,
    device: torch.device,
    compute_format: ComputeFormat,
    batch_size: int,
    limit: int | None,
) -> Reading:
    net = on_device(net, device)
    while True:
        try:
            reading = task.reading(device)
            with evaluating(net):
                for images, targets in split.batches(batch_size, device=device, limit=limit):
                    with compute_format.autocasting(device):
                        outputs = net(images)
                    reading.update(outputs.float(), targets)
            return reading
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2


def on_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Return a network itself where its weights are on the device, else a copy of it there."""
    tensors = [*net.parameters(), *net.buffers()]
    return net if all(_is_on(tensor, device) for tensor in tensors) else copy.deepcopy(net).to(device)


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    """Tell whether a tensor is on a device; "cuda" without a number is the present one, and any on this machine."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


@torch.no_grad()
def reestimate_batchnorm(
    net: nn.Module,
    split: Split,
    *,
    device: torch.device,
    images: int = BATCHNORM_IMAGES,
    compute_format: ComputeFormat = PLAIN,
) -> None:
    """Replace the running statistics of every BatchNorm, in place, by their mean over images without augmentation.

    After a cut, the old statistics describe sums over removed channels. Nothing else of the network changes. Every
    batch counts by its number of images, as in fvcore's `update_bn_stats`.

    Args:
        device: where the images pass through the network, or through a copy of it there.
        compute_format: the precision in which they do; the statistics themselves are kept in that of the buffers.
    """
    layers = _layers_with_statistics(net)
    if not layers:
        return
    there = on_device(net, device)
    used = layers if there is net else _layers_with_statistics(there)
    with evaluating(there), _keeping_momentum(used):
        for layer in used:
            layer.reset_running_stats()
            layer.train()
        seen = 0
        for batch, _ in split.batches(min(images, STATISTICS_BATCH), device=device, limit=images):
            seen += len(batch)
            for layer in used:
                layer.momentum = len(batch) / seen  # so that the running mean is the mean over all images
            # A layer whose maps are 1x1 has no statistics of one image; twice the same has its mean, and no variance.
            with compute_format.autocasting(device):
                there(batch if len(batch) > 1 else batch.repeat(2, *[1] * (batch.ndim - 1)))
    if there is not net:
        for layer, moved in zip(layers, used, strict=True):
            for own, estimated in zip(layer.buffers(recurse=False), moved.buffers(recurse=False), strict=True):
                own.copy_(estimated)


def _layers_with_statistics(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@contextmanager
def _keeping_momentum(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Restore the momentum of every layer after the block."""
    momenta = [layer.momentum for layer in layers]
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside the block; afterwards restore the mode of each."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
