"""What each kind of layer takes, timed alone over a small grid of channels, as a smooth curve with stairs.

The stairs are those of vector widths: a layer of 17 channels may take what one of 32 does. So a time is a sum of
non-negative terms in the channels, the channels rounded up to 8 and to 16, and whether 16 divides them, each read
term times each written one; fitted to the timings by relative error.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from runners.latency.kernels import Kernel, Slots
from runners.latency.timing import Watch, wait

TERMS = 5  # of `basis`
GRIDS = (9, 7, 5, 4, 3)  # channels tried per number, as many as there is time for
SAMPLES = 5
SAMPLE_SECONDS = 0.001
SPREAD = 1.15  # of the better half of the samples, largest over least; above it a timing is repeated
TRIES = 3


@dataclass
class LayerTimer:
    """Times kernels alone.

    Attributes:
        timings: how many were made; repeated: how many more, since they were unsteady; failed: kernels that do not run
            alone and are left to the calibration.
    """

    device: torch.device
    dtype: torch.dtype
    form: torch.memory_format
    watch: Watch
    timings: int = 0
    repeated: int = 0
    failed: list[str] = field(default_factory=list)

    def fitted(
        self, kernels: Sequence[Kernel], ranges: Sequence[tuple[Slots, Slots]], seconds: float
    ) -> NDArray[np.float64]:
        """Return the coefficients of every kernel, shape (kernels, TERMS, TERMS).

        Args:
            ranges: of each kernel, the least channels read and written and the most.
            seconds: that all timings should take; the grid is the finest that does.
        """
        largest = [self._one_call(kernel, high) for kernel, (_, high) in zip(kernels, ranges, strict=True)]
        runs = [each is not None for each in largest]
        per_timing = [1.5 * SAMPLES * max(SAMPLE_SECONDS, 0.5 * (each or 0.0)) for each in largest]
        counts = GRIDS[-1]
        for counts in GRIDS:
            points = [len(grid(kernel, *span, counts)) for kernel, span in zip(kernels, ranges, strict=True)]
            if sum(cost * count for cost, count in zip(per_timing, points, strict=True)) <= seconds:
                break
        found = np.zeros((len(kernels), TERMS, TERMS))
        for index, (kernel, span) in enumerate(zip(kernels, ranges, strict=True)):
            if runs[index]:
                slots = grid(kernel, *span, counts)
                found[index] = fit(slots, [self.time(kernel, each) for each in slots], two=kernel.two)
            else:
                self.failed.append(kernel.name)
        return found

    def time(self, kernel: Kernel, slots: Slots) -> float:
        """Return the seconds of one call, from the steadiest of a few tries."""
        call = kernel.call(slots, self.device, self.dtype, self.form)
        once = min(self._sample(call, 1) for _ in range(2))
        calls = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))
        self.timings += 1
        best = (math.inf, math.inf)
        for attempt in range(TRIES):
            self.repeated += attempt > 0
            samples = sorted(self._sample(call, calls) for _ in range(SAMPLES))
            half = samples[: SAMPLES // 2 + 1]
            best = min(best, (half[-1] / max(half[0], 1e-12), statistics.median(half)))
            if best[0] <= SPREAD:
                break
        return best[1] / calls

    def _one_call(self, kernel: Kernel, slots: Slots) -> float | None:
        try:
            call = kernel.call(slots, self.device, self.dtype, self.form)
            self._sample(call, 1)
            return self._sample(call, 1)
        except (RuntimeError, TypeError, ValueError, IndexError):  # a function that asks for more than its shapes
            return None

    def _sample(self, call: Callable[[], object], calls: int) -> float:
        wait(self.device)
        begin = self.watch.clock()
        for _ in range(calls):
            call()
        wait(self.device)
        return self.watch.clock() - begin


def grid(kernel: Kernel, low: Slots, high: Slots, count: int) -> list[Slots]:
    """Return the channels at which a kernel is timed: up to `count` per number, on the stairs and beside them."""
    read = _line(low[0], high[0], count, kernel.multiple)
    if not kernel.two:
        return [(each, each) for each in read]
    return [(r, w) for r in read for w in _line(low[1], high[1], count, kernel.multiple)]


def _line(low: int, high: int, count: int, multiple: int) -> list[int]:
    """Spread channels evenly in log, the ends among them, every other one a multiple of 16, or of 8 below it."""
    points = np.geomspace(max(1, low), max(1, high), count)
    found = {low, high}
    for index, point in enumerate(points[1:-1]):
        step = 16 if point >= 16 else 8
        on = max(step, round(point / step) * step)
        found.add(on if index % 2 == 0 else (round(point) + 1 if round(point) % step == 0 else round(point)))
    legal = {max(multiple, round(each / multiple) * multiple) for each in found}
    return sorted(each for each in legal if low <= each <= max(high, multiple))


def basis(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the terms of so many channels, in a last axis of length TERMS."""
    terms = np.empty((*channels.shape, TERMS))
    terms[..., 0], terms[..., 1] = 1.0, channels
    terms[..., 2], terms[..., 3] = 8 * np.ceil(channels / 8), 16 * np.ceil(channels / 16)
    terms[..., 4] = channels * (channels != terms[..., 3])
    return terms


def fit(slots: Sequence[Slots], seconds: Sequence[float], *, two: bool) -> NDArray[np.float64]:
    """Return coefficients C of shape (TERMS, TERMS): the time is `basis(read) @ C @ basis(written)`.

    Args:
        two: whether both numbers count; otherwise only the first column is used.
    """
    numbers = np.array(slots, dtype=np.float64)
    read, written = basis(numbers[:, 0]), basis(numbers[:, 1])
    terms = np.einsum("nf,ng->nfg", read, written).reshape(len(slots), -1) if two else read
    weight = 1 / np.maximum(np.array(seconds), 1e-9)  # relative errors count
    scale = np.maximum(terms.max(axis=0), 1e-12)
    solution = nnls((terms / scale) * weight[:, None], np.ones(len(slots)))[0] / scale
    found = np.zeros((TERMS, TERMS))
    if two:
        return np.asarray(solution.reshape(TERMS, TERMS))
    found[:, 0] = solution
    return found
