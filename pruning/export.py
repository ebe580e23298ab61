"""Export of a network as files: its weights and widths, and a program that runs without this project.

The program is a torch.export archive, or a TorchScript trace where torch.export fails. It is read back and compared
with the network before it counts as written.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning import checkpoint
from pruning.formats import Program, find_format, read_program, write_network
from spaces.errors import SlimfrontError
from spaces.space import ModelSpec
from spaces.widths import Widths

CHECKPOINT = "model.safetensors"
WIDTHS = "widths.json"
ARCHIVE = "model.pt2"
TORCHSCRIPT = "model.torchscript.pt"
TOLERANCE = 1e-5  # largest difference of a logit over the largest logit; both run the same kernels in float32
TOLERANCES = {"onnx": 1e-4}  # other kernels, which add up in another order

_log = logging.getLogger(__name__)


class ExportError(SlimfrontError):
    """A network that cannot be written as files."""


class RefusedError(ExportError):
    """A file that does not compute what the network does."""


@dataclass(frozen=True)
class WrittenFile:
    """A network in one format.

    Attributes:
        name: of the format.
        max_difference: largest difference between the logits of the file and of the network, divided by the largest
            logit; None for a file of weights alone.
    """

    name: str
    path: Path
    max_difference: float | None


@dataclass(frozen=True)
class Exported:
    """The files of one network.

    Attributes:
        program: `model.pt2` for `torch.export.load(...).module()`, or `model.torchscript.pt` for `torch.jit.load(...)`;
            takes any number of images. None when it was not asked for, or the network can be neither exported nor
            traced.
        max_difference: largest difference between the logits of the program and of the network, divided by the largest
            logit; at most `TOLERANCE`, and 0 without a program.
    """

    folder: Path
    checkpoint: Path
    widths: Path
    program: Path | None
    max_difference: float

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """The checkpoint and the program."""
        weights = WrittenFile("safetensors", self.checkpoint, None)
        if self.program is None:
            return (weights,)
        name = "pt2" if self.program.name == ARCHIVE else "torchscript"
        return (weights, WrittenFile(name, self.program, self.max_difference))


def export_network(
    net: nn.Module,
    spec: ModelSpec | None,
    widths: Mapping[str, int],
    input_shape: tuple[int, int, int],
    folder: Path | str,
    program: bool = True,
) -> Exported:
    """Write a narrow network into a folder, which is made where it is missing; `net` stays as it is.

    Args:
        program: whether to write the program too, which takes some seconds.

    Raises:
        ExportError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WIDTHS).write_text(Widths(widths).to_json() + "\n")
        checkpoint.save(folder / CHECKPOINT, net, spec, widths)
        for name in (ARCHIVE, TORCHSCRIPT):
            (folder / name).unlink(missing_ok=True)  # of an earlier run
        written, difference = None, 0.0
        if program:
            written, difference = _write_program(copy.deepcopy(net).cpu().eval(), input_shape, folder)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error
    return Exported(folder, folder / CHECKPOINT, folder / WIDTHS, written, difference)


def write_format(
    net: nn.Module, name: str, folder: Path, input_shape: tuple[int, int, int], header: checkpoint.Header
) -> WrittenFile:
    """Write a network in a format of `pruning.formats` as `model.SUFFIX`, for any number of images.

    Args:
        net: in evaluation mode, on the CPU.
        folder: is made where it is missing.
        header: of the checkpoint of the network.

    Raises:
        FormatError: the network cannot be written in this format.
        RefusedError: the program in the file gives other logits; the file is removed.
        ExportError: the folder cannot be written.
    """
    form, tolerance = find_format(name), TOLERANCES.get(name, TOLERANCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"model{form.suffix}"
        write_network(net, name, path, input_shape, spec=header.spec, widths=header.widths)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error
    if form.read is None:
        return WrittenFile(name, path, None)
    images = torch.rand(3, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        difference = _difference(net, read_program(name, path), images)
    if not difference <= tolerance:
        path.unlink()
        raise RefusedError(
            f"{name} refused: its logits differ by {difference:.1e} of the largest one, over the limit of "
            f"{tolerance:.0e}; take another format"
        )
    return WrittenFile(name, path, difference)


def _write_program(net: nn.Module, input_shape: tuple[int, int, int], folder: Path) -> tuple[Path | None, float]:
    images = torch.rand(3, *input_shape, generator=torch.Generator().manual_seed(0))
    for name, form in ((ARCHIVE, "pt2"), (TORCHSCRIPT, "torchscript")):
        path = folder / name
        try:
            write_network(net, form, path, input_shape)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of its own internals
                difference = _difference(net, read_program(form, path), images)
        except OSError:
            raise
        except Exception as error:  # torch raises errors of any class for what it cannot capture
            _log.warning("%s cannot be written: %s", path, str(error).partition("\n")[0])
            difference = float("inf")
        if difference <= TOLERANCE:
            return path, difference
        path.unlink(missing_ok=True)
    return None, 0.0


def _difference(net: nn.Module, program: Program, images: Tensor) -> float:
    """Compare on one image and on several, because a program may have recorded the number of images as a constant."""
    worst = 0.0
    for batch in (images[:1], images):
        expected, got = net(batch), program(batch)
        if got.shape != expected.shape:
            return float("inf")
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)))
    return worst
