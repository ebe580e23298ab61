"""ComputeFormat: the numerical precision and memory format in which a network is trained.

The precision is declared, by the settings or by a rule on device and network, so that equal searches compute alike
whatever the load of the machine. The memory format is measured: channels_last is faster for some networks and slower
for others, and does not change what is computed, rounding aside.
"""

import copy
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spaces.errors import SlimfrontError

logger = logging.getLogger(__name__)

MIN_SPEEDUP = 1.1  # a smaller one may be noise
MOST_IMAGES = 16  # of a timed step on a processor; accelerators take the whole batch
LONGEST_STEP = 0.5  # seconds that a timed step on a processor aims to take at most, by fewer images
TIMED_STEPS = 2
MOST_BESIDE = 4  # steps that are timed beside one another; more would need the memory of as many workers
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # of processors
TENSOR_CORES = (7, 0)  # least compute capability of CUDA devices on which float16 is faster than float32


class ComputeFormatError(SlimfrontError):
    """A network that cannot be trained in the precision that was asked for, or in the memory of its device."""


@dataclass(frozen=True)
class ComputeFormat:
    """Precision of autocast (None computes in float32), and memory format."""

    autocast: torch.dtype | None = None
    channels_last: bool = False

    def __str__(self) -> str:
        """Name the precision, and the memory format where it is not the usual one."""
        return str(self.autocast or torch.float32).removeprefix("torch.") + ", channels_last" * self.channels_last

    def autocasting(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context manager in which a forward pass runs."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    def convert(self, images: Tensor) -> Tensor:
        """Return images of shape (B, C, H, W) in the memory format."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    @contextmanager
    def applied_to(self, net: nn.Module) -> Iterator[None]:
        """Keep the weights of `net` in the memory format inside the block, and contiguous afterwards, as files need."""
        if not self.channels_last:
            yield
            return
        net.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            net.to(memory_format=torch.contiguous_format)


PLAIN = ComputeFormat()  # float32 and contiguous


@dataclass(frozen=True)
class StepTiming:
    """Training steps of a network, timed in one round for all that depends on their speed.

    Attributes:
        compute_format: of the declared precision, the faster memory format with the threads of a worker.
        worker_seconds: of one image in a training step with the threads of a worker, while the other workers train.
        alone_seconds: of one image in a training step while no trial runs, with `threads_alone` torch threads.
        forward_seconds: of one image in a forward pass, as networks are validated, under the conditions of a worker.
    """

    compute_format: ComputeFormat
    worker_seconds: float
    alone_seconds: float
    threads_alone: int
    forward_seconds: float = 0.0


@dataclass(frozen=True)
class _Fastest:
    """The fastest format, and the seconds of a step of so many images in it and of a forward pass."""

    compute_format: ComputeFormat
    seconds: float
    forward_seconds: float
    images: int


_measured: dict[tuple[object, ...], _Fastest] = {}


def autocast_dtype(precision: str, net: nn.Module, device: torch.device) -> torch.dtype | None:
    """Return the number format of autocast on a device; None computes in float32.

    "auto" takes bfloat16 on CUDA devices that have it (from compute capability 8.0), else float16 on those with tensor
    cores (from 7.0); on processors with AMX or AVX512-BF16 bfloat16, unless the network has depthwise convolutions, for
    which they have no fast path (docs/devices.md has the measured factors); everywhere else float32.

    Args:
        precision: "auto", or a name in `PRECISIONS`.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= TENSOR_CORES else None
    if device.type != "cpu" or not _has_bfloat16_instructions():
        return None
    return None if any(_is_depthwise(module) for module in net.modules()) else torch.bfloat16


def _has_bfloat16_instructions() -> bool:
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def time_steps(
    net: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    threads: int,
    precision: str = "auto",
    workers: int = 1,
) -> StepTiming:
    """Time training steps of `net`: in both memory formats with the threads of a worker, in the faster with all.

    Where other processes use the machine too, threads that wait for each other can be many times slower than one;
    then one thread trains the network while no trial runs. Workers share caches, memory and often the halves of a core,
    so their steps are timed beside one another.

    Args:
        net, input_shape, batch_size, device, precision: as for `measure_compute_format`.
        threads: of a worker.
        workers: that train at once on this processor.

    Raises:
        ComputeFormatError: see `measure_compute_format`.
    """
    with using_threads(threads):
        found = _measure(net, input_shape, batch_size, device, precision)
        images = _random_images(input_shape, found.images, device)
        slower = 1.0
        if workers > 1 and device.type == "cpu":
            beside = seconds_beside(net, images, found.compute_format, min(workers, MOST_BESIDE))
            slower = max(1.0, beside / found.seconds)
    single, every = found.seconds / found.images, torch.get_num_threads()
    in_worker, forward = slower * single, slower * found.forward_seconds / found.images
    if every == threads or device.type != "cpu":
        return StepTiming(found.compute_format, in_worker, single, every, forward)
    together = step_seconds(net, images, found.compute_format) / found.images
    if together * MIN_SPEEDUP >= single:
        return StepTiming(found.compute_format, in_worker, single, threads, forward)
    return StepTiming(found.compute_format, in_worker, together, every, forward)


def measure_compute_format(
    net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device, precision: str = "auto"
) -> ComputeFormat:
    """Return the declared precision of `net`, with the memory format in which a training step of it is faster.

    A format in which the network raises an error or runs out of memory is none to choose; where "auto" has taken a
    lower precision that the network cannot be computed in, float32 is left. The result is cached per process for
    networks of the same layers, whatever their widths. For several processes to agree, measure in one and pass its
    result to the others.

    Args:
        net: the network before any method has put its hooks on it; not changed.
        input_shape: (C, H, W).
        batch_size: images per step.
        device: where the steps are timed.
        precision: see `autocast_dtype`.

    Raises:
        ComputeFormatError: the network cannot be trained in this precision, or not with this batch in the memory.
    """
    return _measure(net, input_shape, batch_size, device, precision).compute_format


def _measure(
    net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device, precision: str
) -> _Fastest:
    layers = tuple(type(module).__qualname__ for module in net.modules())
    key = (layers, tuple(input_shape), batch_size, str(device), torch.get_num_threads(), precision)
    if key not in _measured:
        _measured[key] = _fastest(net, _images(net, input_shape, batch_size, device), precision)
    return _measured[key]


def step_seconds(net: nn.Module, images: Tensor, compute_format: ComputeFormat, steps: int = TIMED_STEPS) -> float:
    """Return the shortest time of a training step of a copy of `net` on `images`, after a step to warm up."""
    return _least_seconds(_step_of(net, images, compute_format), images.device, steps)


def seconds_beside(
    net: nn.Module, images: Tensor, compute_format: ComputeFormat, count: int, steps: int = TIMED_STEPS
) -> float:
    """Return the mean time of a training step while so many copies of `net` train, each in a Python thread.

    The copies begin every step together; torch lets go of Python's lock while it computes.
    """
    calls = [_step_of(net, images, compute_format) for _ in range(count)]
    together = threading.Barrier(count)

    def least(call: Callable[[], object]) -> float:
        try:
            return _least_seconds(call, images.device, steps, before=together.wait)
        except Exception:
            together.abort()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(count) as pool:
        return statistics.mean(pool.map(least, calls))


def _step_of(net: nn.Module, images: Tensor, compute_format: ComputeFormat) -> Callable[[], None]:
    """Return a call that does a training step of a copy of `net`."""
    copied = copy.deepcopy(net).to(images.device).train()
    if compute_format.channels_last:
        copied = copied.to(memory_format=torch.channels_last)
    images = compute_format.convert(images)

    def step() -> None:
        with compute_format.autocasting(images.device):
            outputs = copied(images)
        # Any loss takes as long beside the network, and this one suits the outputs of every task.
        outputs.float().square().mean().backward()
        copied.zero_grad()

    return step


def forward_seconds(net: nn.Module, images: Tensor, compute_format: ComputeFormat = PLAIN) -> float:
    """Return the shortest time of a forward pass of a copy of `net` in evaluation mode, after one to warm up."""
    copied = copy.deepcopy(net).to(images.device).eval()
    with torch.no_grad(), compute_format.autocasting(images.device):
        return _least_seconds(lambda: copied(images), images.device, TIMED_STEPS)


def _least_seconds(
    call: Callable[[], object], device: torch.device, times: int, before: Callable[[], object] = lambda: None
) -> float:
    # The CPU time of a single thread leaves out the time that other processes take meanwhile.
    single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if single else time.perf_counter
    seconds = []
    for _ in range(1 + times):
        before()
        _wait(device)
        begin = clock()
        call()
        _wait(device)
        seconds.append(clock() - begin)
    return min(seconds[1:])


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Set the number of torch threads inside the block; 0 does not change it."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads:
            torch.set_num_threads(before)


def _images(net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device) -> Tensor:
    """Return random images for timed steps; on a processor so few that a step takes half a second."""
    if device.type != "cpu":
        return _random_images(input_shape, max(2, batch_size), device)
    two = step_seconds(net, _random_images(input_shape, 2, device), PLAIN, steps=1)
    return _random_images(input_shape, max(2, min(batch_size, MOST_IMAGES, int(2 * LONGEST_STEP / two))), device)


def _random_images(input_shape: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    return torch.rand(count, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)


def _fastest(net: nn.Module, images: Tensor, precision: str) -> _Fastest:
    """Time both memory formats of the declared precision; of float32 where "auto" took one that fails."""
    declared = autocast_dtype(precision, net, images.device)
    error: Exception | None = None
    for autocast in dict.fromkeys((declared, None) if precision == "auto" else (declared,)):
        timed: dict[ComputeFormat, float] = {}
        for compute_format in (ComputeFormat(autocast), ComputeFormat(autocast, channels_last=True)):
            try:
                timed[compute_format] = step_seconds(net, images, compute_format)
            except Exception as raised:  # by the user's network, of whatever kind
                error = error or raised
                logger.debug("no step in %s", compute_format, exc_info=True)
                if not compute_format.channels_last:
                    break  # it fails in the other format too, and may take long to do so
        if timed:
            chosen = _chosen(timed)
            return _Fastest(chosen, timed[chosen], forward_seconds(net, images, chosen), len(images))
    raise _why_none(error, len(images), images.device, precision) from error


def _chosen(timed: dict[ComputeFormat, float]) -> ComputeFormat:
    """Return the first format, unless the second is faster by more than noise."""
    first, *rest = timed
    return next((later for later in rest if timed[later] * MIN_SPEEDUP < timed[first]), first)


def _why_none(error: Exception | None, count: int, device: torch.device, precision: str) -> ComputeFormatError:
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return ComputeFormatError(
            f"a training step of {count} images does not fit into the memory of {device} ({reason}); lower "
            "--batch-size, or raise --accumulate"
        )
    way_out = "take --precision auto" if precision not in ("auto", "float32") else "repair it"
    return ComputeFormatError(
        f"the network fails in a training step of {count} images on {device} ({type(error).__name__}: {reason}); "
        f"{way_out}"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
