"""ComputeFormat: the numerical precision and memory format that train fastest on a device, found by measuring.

bfloat16 is faster on processors with instructions for it and slower on others; channels_last is faster for some
networks and slower for others. One training step is timed for each combination.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_SPEEDUP = 1.1  # a smaller one may be noise, and would make equal runs differ
MOST_IMAGES = 16  # of a timed step on a processor; accelerators take the whole batch
LONGEST_STEP = 0.5  # seconds that a timed step on a processor aims to take at most, by fewer images
TIMED_STEPS = 2
SECONDS = 1.0  # after which no other combination is timed


@dataclass(frozen=True)
class ComputeFormat:
    """Precision of autocast (None computes in float32), and memory format."""

    autocast: torch.dtype | None = None
    channels_last: bool = False

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
        compute_format: the fastest, with the threads of a worker.
        worker_seconds: of one image in a training step with the threads of a worker.
        alone_seconds: the same while no trial runs, with `threads_alone` torch threads.
        forward_seconds: of one image in a forward pass in float32, as accuracy is read, with the threads of a worker.
    """

    compute_format: ComputeFormat
    worker_seconds: float
    alone_seconds: float
    threads_alone: int
    forward_seconds: float = 0.0


@dataclass(frozen=True)
class _Fastest:
    """The fastest format, and the seconds of a step of so many images in it and of a forward pass in float32."""

    compute_format: ComputeFormat
    seconds: float
    forward_seconds: float
    images: int


_measured: dict[tuple[object, ...], _Fastest] = {}


def time_steps(
    net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device, threads: int, low: bool = True
) -> StepTiming:
    """Time training steps of `net`: in every format with the threads of a worker, and in the fastest with all threads.

    Where other processes use the machine too, threads that wait for each other can be many times slower than one;
    then one thread trains the network while no trial runs.

    Args:
        net, input_shape, batch_size, device: as for `measure_compute_format`.
        threads: of a worker.
        low: whether formats with lower precision may be taken; otherwise float32 alone is timed.
    """
    with using_threads(threads):
        if low:
            found = _measure(net, input_shape, batch_size, device)
        else:
            images = _images(net, input_shape, batch_size, device)
            found = _Fastest(PLAIN, step_seconds(net, images, PLAIN), forward_seconds(net, images), len(images))
    in_worker, forward = found.seconds / found.images, found.forward_seconds / found.images
    every = torch.get_num_threads()
    if every == threads or device.type != "cpu":
        return StepTiming(found.compute_format, in_worker, in_worker, every, forward)
    images = _random_images(input_shape, found.images, device)
    together = step_seconds(net, images, found.compute_format) / found.images
    if together * MIN_SPEEDUP >= in_worker:
        return StepTiming(found.compute_format, in_worker, in_worker, threads, forward)
    return StepTiming(found.compute_format, in_worker, together, every, forward)


def measure_compute_format(
    net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device
) -> ComputeFormat:
    """Time a training step of `net` in every precision and memory format of the device, and return the fastest.

    The result is cached per process for networks of the same layers, whatever their widths, so that a narrow network is
    trained like its dense network. For several processes to agree, measure in one and pass its result to the others.

    Args:
        net: not changed.
        input_shape: (C, H, W).
        batch_size: images per step.
        device: where the steps are timed.
    """
    return _measure(net, input_shape, batch_size, device).compute_format


def _measure(net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device) -> _Fastest:
    layers = tuple(type(module).__qualname__ for module in net.modules())
    key = (layers, tuple(input_shape), batch_size, str(device), torch.get_num_threads())
    if key not in _measured:
        _measured[key] = _fastest(net, _images(net, input_shape, batch_size, device))
    return _measured[key]


def step_seconds(net: nn.Module, images: Tensor, compute_format: ComputeFormat, steps: int = TIMED_STEPS) -> float:
    """Return the shortest time of a training step of a copy of `net` on `images`, after a step to warm up."""
    copied = copy.deepcopy(net).to(images.device).train()
    if compute_format.channels_last:
        copied = copied.to(memory_format=torch.channels_last)
    images = compute_format.convert(images)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> None:
        with compute_format.autocasting(images.device):
            logits = copied(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        copied.zero_grad()

    return _least_seconds(step, images.device, steps)


def forward_seconds(net: nn.Module, images: Tensor) -> float:
    """Return the shortest time of a forward pass of a copy of `net` in evaluation mode, after one to warm up."""
    copied = copy.deepcopy(net).to(images.device).eval()
    with torch.no_grad():
        return _least_seconds(lambda: copied(images), images.device, TIMED_STEPS)


def _least_seconds(call: Callable[[], object], device: torch.device, times: int) -> float:
    # The CPU time of a single thread leaves out the time that other processes take meanwhile.
    single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if single else time.perf_counter
    seconds = []
    for _ in range(1 + times):
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


def _fastest(net: nn.Module, images: Tensor) -> _Fastest:
    best, chosen = step_seconds(net, images, PLAIN), PLAIN
    begin = time.perf_counter()
    for compute_format in _candidates(images.device):
        seconds = step_seconds(net, images, compute_format)
        if seconds * MIN_SPEEDUP < best:
            best, chosen = seconds, compute_format
        if time.perf_counter() - begin > SECONDS:
            break
    return _Fastest(chosen, best, forward_seconds(net, images), len(images))


def _candidates(device: torch.device) -> list[ComputeFormat]:
    """List the formats of the device besides `PLAIN`, the most promising first."""
    low = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        low = torch.float16
    if device.type == "mps":
        low = torch.float16
    return [ComputeFormat(low, True), ComputeFormat(low, False), ComputeFormat(None, True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
