"""The file formats of a network for other runtimes: ONNX, torch.export, TorchScript, safetensors, a state_dict.

`write_network` writes any of them; `read_program` runs the file of a format that holds a program, for comparison.
"""

import copy
import importlib
import importlib.util
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning import checkpoint
from pruning.inference import for_inference
from spaces.errors import SlimfrontError
from spaces.registry import unknown_name
from spaces.space import ModelSpec

ONNX_PACKAGES = ("onnx", "onnxscript")
RUNTIME_PACKAGES = ("onnxruntime", *ONNX_PACKAGES)  # that writing and running an ONNX file needs
ONNX_INPUT, ONNX_OUTPUT = "images", "logits"  # names of the tensors in an ONNX file

_ZIP_PADDING = 64  # torch aligns tensors in its zip files to so many bytes
_ONNX_PADDING = 16  # lengths and sizes take a byte more with every seventh bit

Program = Callable[[Tensor], Tensor]


class FormatError(SlimfrontError):
    """A network that cannot be written in a format; the message names the package that is missing, or the cause."""


@dataclass(frozen=True)
class Source:
    """A network as every format needs it.

    Attributes:
        net: in evaluation mode, on the CPU.
        images: example images, shape (B, C, H, W).
        any_batch: whether the file takes any number of images; otherwise it takes B.
        spec, widths: of a checkpoint, which rebuilds its network by them; other formats leave them out.
    """

    net: nn.Module
    images: Tensor
    any_batch: bool = True
    spec: ModelSpec | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of its files.
        write: writes a network into a file.
        read: returns the program in a file; None for a format that holds weights alone.
        padding: bytes by which the space before each tensor may differ between two files.
        packages: that writing needs, in the extra `extra` of this project.
    """

    suffix: str
    write: Callable[[Source, Path], None]
    read: Callable[[Path], Program] | None = None
    packages: tuple[str, ...] = ()
    padding: int = 0
    extra: str = ""


def write_network(
    net: nn.Module,
    name: str,
    path: Path | str,
    input_shape: Sequence[int],
    *,
    batch: int | None = None,
    spec: ModelSpec | None = None,
    widths: Mapping[str, int] | None = None,
) -> Path:
    """Write a network as a file in evaluation mode, and return its path; `net` stays as it is.

    Args:
        name: of the format, a key of `FORMATS`.
        path: of the file, which is replaced as a whole or not at all.
        input_shape: (C, H, W).
        batch: number of images that the file takes; None for any number.
        spec, widths: with which a safetensors file can be loaded as a network again.

    Raises:
        UnknownNameError: no such format.
        FormatError: a package is missing, or the network cannot be written in this format.
        OSError: the file cannot be written.
    """
    form = find_format(name)
    check_packages(name)
    path = Path(path)
    images = torch.rand(batch or 2, *input_shape, generator=torch.Generator().manual_seed(0))
    written_net = copy.deepcopy(net).eval() if form.read is None else for_inference(net)
    source = Source(written_net.cpu(), images, batch is None, spec, widths or {})
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        written = Path(folder) / f"model{form.suffix}"
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporters warn of their own internals
                form.write(source, written)
        except OSError:
            raise
        except Exception as error:  # torch raises errors of any class for what it cannot capture
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FormatError(
                f"the network cannot be written as {name} ({reason}); take another format: "
                f"{', '.join(other for other in FORMATS if other != name)}"
            ) from error
        os.replace(written, path)
    return path


def read_program(name: str, path: Path | str) -> Program:
    """Return the program in a file, a function of images to logits on the CPU.

    Raises:
        FormatError: the format holds weights alone, or the package that runs it is missing.
    """
    read = find_format(name).read
    if read is None:
        raise FormatError(f"a {name} file holds weights and no program; `search.load` makes a network of a safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        return read(Path(path))


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UnknownNameError: no such format; the message names the nearest.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, sorted(FORMATS))
    return FORMATS[name]


def parse_formats(text: str) -> tuple[str, ...]:
    """Read "pt2,onnx", and check that the packages of these formats are installed.

    Raises:
        UnknownNameError: no such format.
        FormatError: a package is missing, or no format is named.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise FormatError(f"{text!r} names no format; give one or more of {','.join(FORMATS)}")
    for name in names:
        find_format(name)
        check_packages(name)
    return names


def check_packages(name: str) -> None:
    """Raise FormatError with the line that installs them where packages of a format are missing."""
    form = find_format(name)
    missing = [package for package in form.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise FormatError(
            f"format {name} needs {', '.join(missing)}, not installed here; pip install 'slimfront[{form.extra}]'"
        )


def _write_onnx(source: Source, path: Path) -> None:
    """Write a program without what PyTorch notes of its source: stack traces hold the paths of this machine."""
    shapes = ({0: torch.export.Dim("batch")},) if source.any_batch else None
    program = torch.onnx.export(
        source.net,
        (source.images,),
        input_names=[ONNX_INPUT],
        output_names=[ONNX_OUTPUT],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise FormatError("PyTorch gave no ONNX program of this network")
    program.model.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Program:
    if importlib.util.find_spec("onnxruntime") is None:
        raise FormatError("running an ONNX file needs onnxruntime, not installed here; pip install 'slimfront[onnx]'")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def program(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {ONNX_INPUT: images.numpy()})[0])

    return program


def _write_archive(source: Source, path: Path) -> None:
    """Write a program without stack traces, which hold the paths of this machine."""
    shapes = ({0: torch.export.Dim("batch")},) if source.any_batch else None
    program = torch.export.export(source.net, (source.images,), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, os.fspath(path))


def _read_archive(path: Path) -> Program:
    return torch.export.load(os.fspath(path)).module()


def _write_torchscript(source: Source, path: Path) -> None:
    """Write a program without its debug files, which hold the paths of this machine and which no runtime needs."""
    traced = path.with_suffix(".traced")
    torch.jit.trace(source.net, source.images).save(os.fspath(traced))  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(traced) as given, zipfile.ZipFile(path, "w") as written:
        for entry in given.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                written.writestr(entry, given.read(entry))


def _read_torchscript(path: Path) -> Program:
    loaded: Program = torch.jit.load(os.fspath(path))  # type: ignore[no-untyped-call]
    return loaded


def _write_checkpoint(source: Source, path: Path) -> None:
    checkpoint.save(path, source.net, source.spec, source.widths)


def _write_state_dict(source: Source, path: Path) -> None:
    torch.save(source.net.state_dict(), path)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ONNX_PACKAGES, padding=_ONNX_PADDING, extra="onnx"),
    "pt2": Format(".pt2", _write_archive, _read_archive, padding=_ZIP_PADDING),
    "torchscript": Format(".torchscript.pt", _write_torchscript, _read_torchscript, padding=_ZIP_PADDING),
    "safetensors": Format(".safetensors", _write_checkpoint),
    "state_dict": Format(".pt", _write_state_dict, padding=_ZIP_PADDING),
}
