"""Time each kernel alone over a small grid of channels, and fit its seconds by a curve with steps.

The steps come from vector widths: a layer of 17 channels may take as long as one of 32. The seconds are therefore a sum
of non-negative terms. A term is one of the `basis` terms of the input channels times one of the output channels: the
channels, the channels rounded up to multiples of 8 and of 16, and whether 16 divides them. The fit minimises relative
errors.
"""

import json
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pruning.steps import steps_done
from runners.cache import cache_root, digest_of, write_cached
from runners.latency.prediction.kernels import ChannelPair, Kernel
from runners.latency.timing import Watch, synchronize

TERMS = 5  # of `basis`
GRID_SIZES = (9, 7, 5, 4, 3)  # values per number of channels; the largest that the time allows
SAMPLES = 5
SAMPLE_SECONDS = 0.001
MAX_SPREAD = 1.15  # largest over least of the faster half of the samples; above it a timing is repeated
TRIES = 3
TABLE_PREFIX = "layers-"  # of the files of tables

_log = logging.getLogger(__name__)


@dataclass
class LayerTimer:
    """Times kernels alone, on one device and in one number format.

    Attributes:
        table: timings of earlier networks, which those of this one are added to.
        timings: number of timings; repeated: number of repetitions of unsteady ones; reused: number of timings that the
            table had.
        failed: names of kernels that do not run alone; the calibration on whole nets accounts for them.
    """

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    watch: Watch
    table: "LayerTable" = field(default_factory=lambda: LayerTable())
    timings: int = 0
    reused: int = 0
    repeated: int = 0
    failed: list[str] = field(default_factory=list)

    def fit(
        self, kernels: Sequence[Kernel], ranges: Sequence[tuple[ChannelPair, ChannelPair]], seconds: float
    ) -> NDArray[np.float64]:
        """Time all kernels and return their coefficients (see `fit_coefficients`), shape (kernels, TERMS, TERMS).

        Args:
            ranges: of each kernel, the least input and output channels and the largest.
            seconds: that all timings may take; the finest grid within them is used, at least the coarsest.
        """
        largest = [self._one_call(kernel, high) for kernel, (_, high) in zip(kernels, ranges, strict=True)]
        per_timing = [1.5 * SAMPLES * max(SAMPLE_SECONDS, 0.5 * (once or 0.0)) for once in largest]
        size = GRID_SIZES[-1]
        for size in GRID_SIZES:
            points = [len(grid(kernel, *span, size)) for kernel, span in zip(kernels, ranges, strict=True)]
            if sum(cost * count for cost, count in zip(per_timing, points, strict=True)) <= seconds:
                break
        expected = [cost * count for cost, count in zip(per_timing, points, strict=True)]
        coefficients = np.zeros((len(kernels), TERMS, TERMS))
        for index, (kernel, span) in enumerate(zip(kernels, ranges, strict=True)):
            steps_done(sum(expected[:index]), sum(expected))
            if largest[index] is None:
                self.failed.append(kernel.name)
                continue
            seconds_of = self._timed(kernel, span, grid(kernel, *span, size))
            pairs, timings = list(seconds_of), list(seconds_of.values())
            coefficients[index] = fit_coefficients(pairs, timings, independent=kernel.independent)
        return coefficients

    def _timed(
        self, kernel: Kernel, span: tuple[ChannelPair, ChannelPair], pairs: Sequence[ChannelPair]
    ) -> Mapping[ChannelPair, float]:
        """Return the seconds of a kernel from the table; where it has too few, of the missing pairs by timing them."""
        known = self.table.within(kernel.key, *span)
        if set(corners(kernel, span)) <= known.keys() and len(known) >= len(pairs):
            self.reused += len(known)
            return known
        self.reused += len(known)
        missing = {pair: self.time(kernel, pair) for pair in pairs if pair not in known}
        self.table.add(kernel.key, missing)
        return {**known, **missing}

    def time(self, kernel: Kernel, channels: ChannelPair) -> float:
        """Return the seconds of one call, from the steadiest of at most TRIES tries."""
        call = kernel.call(channels, self.device, self.dtype, self.memory_format)
        once = min(self._sample(call, 1) for _ in range(2))
        calls = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))
        self.timings += 1
        best = (math.inf, math.inf)
        for attempt in range(TRIES):
            self.repeated += attempt > 0
            samples = sorted(self._sample(call, calls) for _ in range(SAMPLES))
            half = samples[: SAMPLES // 2 + 1]
            best = min(best, (half[-1] / max(half[0], 1e-12), statistics.median(half)))
            if best[0] <= MAX_SPREAD:
                break
        return best[1] / calls

    def _one_call(self, kernel: Kernel, channels: ChannelPair) -> float | None:
        """Return the seconds of a second call; None for a kernel that does not run alone."""
        try:
            call = kernel.call(channels, self.device, self.dtype, self.memory_format)
            self._sample(call, 1)
            return self._sample(call, 1)
        except (RuntimeError, TypeError, ValueError, IndexError):  # a function that depends on more than shapes
            return None

    def _sample(self, call: Callable[[], object], calls: int) -> float:
        synchronize(self.device)
        start = self.watch.clock()
        for _ in range(calls):
            call()
        synchronize(self.device)
        return self.watch.clock() - start


@dataclass
class LayerTable:
    """Seconds of layers by their shape and channels, under the conditions of one device and runtime.

    Attributes:
        conditions: plain data.
        path: of the file; None keeps the table in memory alone.
        seconds: key of a kernel -> channels -> seconds of one call.
    """

    conditions: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    seconds: dict[str, dict[ChannelPair, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, conditions: Mapping[str, Any]) -> "LayerTable":
        """Return the table of these conditions in the cache; an empty one where there is none that can be read."""
        path = cache_root() / "latency" / f"{TABLE_PREFIX}{digest_of(conditions)[:24]}.json"
        table = cls(conditions, path)
        try:
            table.seconds = cls.read(path).seconds
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the table of layers in %s cannot be read (%s); it is made again", path, error)
        return table

    @classmethod
    def read(cls, path: Path) -> "LayerTable":
        """Read a table; raises OSError, ValueError, KeyError, TypeError or AttributeError for no such file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        seconds = {
            key: {(int(pair[0]), int(pair[1])): float(value) for *pair, value in rows}
            for key, rows in data["seconds"].items()
        }
        return cls(data["conditions"], path, seconds)

    def within(self, key: str, low: ChannelPair, high: ChannelPair) -> dict[ChannelPair, float]:
        """Return the timings of a kernel from `low` to `high`."""
        rows = self.seconds.get(key, {})
        return {
            pair: value for pair, value in rows.items() if low[0] <= pair[0] <= high[0] and low[1] <= pair[1] <= high[1]
        }

    def add(self, key: str, seconds: Mapping[ChannelPair, float]) -> None:
        """Add timings of a kernel."""
        self.seconds.setdefault(key, {}).update(seconds)

    def save(self) -> None:
        """Write the table to its file, in the place of what another process wrote meanwhile."""
        if self.path is not None:
            rows = {key: [[*pair, value] for pair, value in found.items()] for key, found in self.seconds.items()}
            write_cached(self.path, json.dumps({"conditions": dict(self.conditions), "seconds": rows}).encode())


def corners(kernel: Kernel, span: tuple[ChannelPair, ChannelPair]) -> list[ChannelPair]:
    """Return the ends of the grid of a kernel, between which a fit of its timings holds."""
    return grid(kernel, *span, 2)


def grid(kernel: Kernel, low: ChannelPair, high: ChannelPair, size: int) -> list[ChannelPair]:
    """Return the channels at which a kernel is timed: about `size` values per number, on the steps and beside them."""
    inputs = _grid_line(low[0], high[0], size, kernel.multiple)
    if not kernel.independent:
        return [(channels, channels) for channels in inputs]
    outputs = _grid_line(low[1], high[1], size, kernel.multiple)
    return [(in_channels, out_channels) for in_channels in inputs for out_channels in outputs]


def _grid_line(low: int, high: int, size: int, multiple: int) -> list[int]:
    """Return channels spread evenly in log from `low` to `high`, both included.

    Inside, multiples of 16 (of 8 below 16) alternate with channels that are none.
    """
    points = np.geomspace(max(1, low), max(1, high), size)
    found = {low, high}
    for index, point in enumerate(points[1:-1]):
        step = 16 if point >= 16 else 8
        on_step = max(step, round(point / step) * step)
        found.add(on_step if index % 2 == 0 else (round(point) + 1 if round(point) % step == 0 else round(point)))
    legal = {max(multiple, round(channels / multiple) * multiple) for channels in found}
    return sorted(channels for channels in legal if low <= channels <= max(high, multiple))


def basis(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the terms of numbers of channels, along a new last axis of length TERMS."""
    terms = np.empty((*channels.shape, TERMS))
    terms[..., 0], terms[..., 1] = 1.0, channels
    terms[..., 2], terms[..., 3] = 8 * np.ceil(channels / 8), 16 * np.ceil(channels / 16)
    terms[..., 4] = channels * (channels != terms[..., 3])
    return terms


def fit_coefficients(
    pairs: Sequence[ChannelPair], seconds: Sequence[float], *, independent: bool
) -> NDArray[np.float64]:
    """Return coefficients C of shape (TERMS, TERMS): the seconds are `basis(in_channels) @ C @ basis(out_channels)`.

    Args:
        independent: whether both numbers count; otherwise only the first column of C is not zero.
    """
    from scipy.optimize import nnls  # takes a fifth of the start of a worker, most of which never fit anything

    channels = np.array(pairs, dtype=np.float64)
    inputs, outputs = basis(channels[:, 0]), basis(channels[:, 1])
    terms = np.einsum("nf,ng->nfg", inputs, outputs).reshape(len(pairs), -1) if independent else inputs
    weight = 1 / np.maximum(np.array(seconds), 1e-9)  # so that the fit minimises relative errors
    scale = np.maximum(terms.max(axis=0), 1e-12)
    solution = nnls((terms / scale) * weight[:, None], np.ones(len(pairs)))[0] / scale
    if independent:
        return np.asarray(solution.reshape(TERMS, TERMS))
    coefficients = np.zeros((TERMS, TERMS))
    coefficients[:, 0] = solution
    return coefficients
