"""Which number and memory format trains fastest here: measured, not guessed.

bfloat16 pays on processors with the instructions for it and costs elsewhere; channels_last helps some nets and hurts
others. One real training step per combination settles it.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MUST_WIN_BY = 1.1  # times: a smaller gain may be noise, and would make equal runs differ
MEASURED_IMAGES = {"cpu": 8}  # per step; accelerators take the whole batch
TIMED_STEPS = 2
SECONDS = 1.0  # after which no further combination is tried


@dataclass(frozen=True)
class ComputeFormat:
    """How to compute: the number format of autocast (None: float32 throughout), and the memory format."""

    autocast: torch.dtype | None = None
    channels_last: bool = False

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which the forward pass runs."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    def placed(self, images: Tensor) -> Tensor:
        """Return images of shape (B, C, H, W) in the memory format."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    @contextmanager
    def format_of(self, net: nn.Module) -> Iterator[None]:
        """Keep the weights of `net` in the memory format, and in the ordinary one afterwards, as files need them."""
        if not self.channels_last:
            yield
            return
        net.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            net.to(memory_format=torch.contiguous_format)


PLAIN = ComputeFormat()
_measured: dict[tuple[object, ...], ComputeFormat] = {}


def measure_compute_format(
    net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device
) -> ComputeFormat:
    """Time a training step of `net` in every number and memory format the device has, and return the fastest.

    The answer is kept per process for nets of the same layers, whatever their widths, so that a narrow net is
    trained like the dense one it came from. To have several processes agree, measure in one and hand the answer on.

    Args:
        net: not changed.
        input_shape: (C, H, W).
        batch_size: images per step.
        device: where to measure.
    """
    layers = tuple(type(module).__qualname__ for module in net.modules())
    key = (layers, tuple(input_shape), batch_size, str(device), torch.get_num_threads())
    if key not in _measured:
        _measured[key] = _fastest(net, tuple(input_shape), batch_size, device)
    return _measured[key]


def step_seconds(net: nn.Module, images: Tensor, compute_format: ComputeFormat, steps: int = TIMED_STEPS) -> float:
    """Return the least time of a training step of a copy of `net` on `images`, after one to warm up."""
    trial = copy.deepcopy(net).to(images.device).train()
    if compute_format.channels_last:
        trial = trial.to(memory_format=torch.channels_last)
    images = compute_format.placed(images)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    # With one thread the thread's own time is what counts: it leaves out what other processes take meanwhile.
    alone = images.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    seconds = []
    for _ in range(1 + steps):
        _wait(images.device)
        begin = clock()
        with compute_format.precision(images.device):
            logits = trial(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        trial.zero_grad()
        _wait(images.device)
        seconds.append(clock() - begin)
    return min(seconds[1:])


def fastest_threads(net: nn.Module, images: Tensor, compute_format: ComputeFormat) -> int:
    """Return how many torch threads train `net` fastest here, now: all of them, or one.

    On a machine that others use too, threads that wait for each other can be many times slower than one alone.

    Args:
        images: shape (B, C, H, W), of the timed step.
    """
    every = torch.get_num_threads()
    if every == 1 or images.device.type != "cpu":
        return every
    together = step_seconds(net, images, compute_format)
    with using_threads(1):
        alone = step_seconds(net, images, compute_format)
    return every if together * MUST_WIN_BY < alone else 1


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Have torch use this many threads inside the block; 0 leaves their number alone."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads:
            torch.set_num_threads(before)


def _fastest(net: nn.Module, input_shape: tuple[int, ...], batch_size: int, device: torch.device) -> ComputeFormat:
    count = min(batch_size, MEASURED_IMAGES.get(device.type, batch_size))
    images = torch.rand(max(2, count), *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    best, chosen = step_seconds(net, images, PLAIN), PLAIN
    begin = time.perf_counter()
    for compute_format in _candidates(device):
        seconds = step_seconds(net, images, compute_format)
        if seconds * MUST_WIN_BY < best:
            best, chosen = seconds, compute_format
        if time.perf_counter() - begin > SECONDS:
            break
    return chosen


def _candidates(device: torch.device) -> list[ComputeFormat]:
    """List the other ways to compute on the device, the most promising first."""
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
