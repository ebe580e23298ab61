"""Where and how a measured net runs: the devices of this machine, and the engines that make a net callable.

Engines are eager PyTorch, `torch.compile` and ONNX Runtime. `keep_freed_memory` sets the allocator of the process up
like that of a serving runtime.
"""

import copy
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count
from torch import Tensor, nn

from pruning.formats import ONNX_INPUT, RUNTIME_PACKAGES, write_network
from pruning.inference import choose_forms, for_inference
from runners.config import LatencyConfig
from runners.latency.timing import fastest
from runners.training.compute_format import using_threads
from spaces.errors import SlimfrontError

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of mallopt, see malloc.h
KEPT_BYTES = 2**30  # blocks up to this size are neither mapped one by one nor given back

Program = Callable[[Tensor], object]
Placement = Callable[[], tuple[Program, Tensor]]


class LatencyError(SlimfrontError):
    """Latency cannot be measured here with this device or engine; the message names the possible ones."""


@dataclass(frozen=True)
class Device:
    """A device on which latency is measured.

    Attributes:
        text: as the user gives it, such as "cpu:1thread".
        threads: number of threads that torch or the engine uses on the processor.
    """

    text: str
    device: torch.device
    threads: int

    @property
    def name(self) -> str:
        """The name that the maker gave the device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return _processor_name()


def devices() -> dict[str, Device]:
    """Return the devices of this machine, by their text."""
    found = {}
    for threads in range(1, cpu_count() + 1):
        text = f"cpu:{threads}thread" + ("s" if threads > 1 else "")
        found[text] = Device(text, torch.device("cpu"), threads)
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = Device(f"cuda:{index}", torch.device("cuda", index), 1)
    if torch.backends.mps.is_available():
        found["mps"] = Device("mps", torch.device("mps"), 1)
    return found


def parse_device(text: str) -> Device:
    """Return the device of a text such as "cpu:1thread" or "cuda:0".

    Raises:
        LatencyError: this machine has no such device; the message names the devices that it has.
    """
    found = devices()
    if text not in found:
        processors = [name for name in found if name.startswith("cpu")]
        others = [name for name in found if not name.startswith("cpu")]
        named = processors if len(processors) <= 4 else [processors[0], processors[1], f"... {processors[-1]}"]
        raise LatencyError(f"latency device {text!r} is not on this machine; there is: {', '.join([*named, *others])}")
    return found[text]


def check_latency(config: LatencyConfig) -> None:
    """Run a small net under the configured conditions, so that a long search does not fail at its first measurement.

    Raises:
        LatencyError: unknown device, or an engine or number format that does not work here.
    """
    if not config.measures:
        return
    device, engine = parse_device(config.device), config.engine
    if engine == "onnxruntime":
        _check_onnx(config, device)
    net, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)
    try:
        with using_threads(device.threads), torch.no_grad():
            program, placed = prepare(net, images, device, config)()
            program(placed)
    except Exception as error:  # compilers and libraries raise errors of any class
        raise LatencyError(
            f"latency engine {engine!r} with {config.dtype} does not work on {device.text} "
            f"({first_line(error)}); take --latency-engine eager or --latency-dtype float32"
        ) from error


def prepare(net: nn.Module, images: Tensor, device: Device, config: LatencyConfig) -> Placement:
    """Return a function that gives a net in its engine, and the images in its number format on the device.

    Every call of it gives both anew, at another place in memory; of a compiled net only the images. The net itself is
    unchanged. Layers that have several forms and none chosen yet take the one that is fastest in eager PyTorch.

    Args:
        images: shape (B, C, H, W), float32.
    """
    net, images = placed(net, images, device, config)
    choose_forms(net, images, fastest)
    net = for_inference(net)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if config.engine == "torch.compile":
        program = torch.compile(net, dynamic=False)
        return lambda: (program, images.clone())
    if config.engine == "onnxruntime":
        content = _onnx_file(net, images)
        return lambda: (onnx_program(content, device.threads), images.clone())
    return lambda: (copy.deepcopy(net), images.clone())


def placed(net: nn.Module, images: Tensor, device: Device, config: LatencyConfig) -> tuple[nn.Module, Tensor]:
    """Return a copy of a net in evaluation mode, and images, both in the configured number format on the device."""
    dtype = getattr(torch, config.dtype)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    net = copy.deepcopy(net).eval().to(device.device, dtype).to(memory_format=memory_format)
    images = images.to(device.device, dtype).contiguous(memory_format=memory_format)
    return net, images


def versions(engine: str) -> dict[str, str]:
    """Return the versions of the libraries that a latency depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    if engine == "onnxruntime":
        found[engine] = importlib.metadata.version(engine)
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees; return whether its C library supports this, as glibc does.

    By default glibc maps large blocks anew at every call of a network or keeps them, depending on what the process has
    allocated before. ResNet-20 at batch 8 then has 500 to 1,600 page faults a call and takes 4.9 or 5.8 ms on one
    thread: steady within a process, different in the next. Runtimes that serve networks keep their memory.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, KEPT_BYTES) == 1 for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))


def onnx_program(content: bytes, threads: int) -> Program:
    """Return the ONNX file of `pruning.formats` as a function of images, on so many threads of the processor."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def program(batch: Tensor) -> object:
        return session.run(None, {ONNX_INPUT: batch.numpy()})

    return program


def _check_onnx(config: LatencyConfig, device: Device) -> None:
    missing = [name for name in RUNTIME_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise LatencyError(
            f"latency engine 'onnxruntime' needs {', '.join(missing)}, not installed here; "
            "pip install 'slimfront[onnx]', or take --latency-engine eager"
        )
    if device.device.type != "cpu" or config.dtype != "float32" or config.channels_last:
        raise LatencyError(
            f"latency engine 'onnxruntime' runs float32 nets on the processor in its own memory format, and "
            f"{config.dtype} on {device.text}{', channels_last' if config.channels_last else ''} is "
            "asked for; take --latency-engine eager"
        )


def _onnx_file(net: nn.Module, images: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_network(net, "onnx", Path(folder) / "net.onnx", images.shape[1:], batch=len(images)).read_bytes()


def _processor_name() -> str:
    """Return the name of the processor from Linux's /proc/cpuinfo, else from Python's `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
