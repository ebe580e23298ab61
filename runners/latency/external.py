"""Measure networks where this process does not run: by a command of the user's, or by agents on boards.

A `Bench` compares two files in turn on the device; `ExternalMeter` writes networks as such files and makes readings of
what the bench answers, in the same terms as those of this machine: the ratio to the dense network, measured in turns,
times the seconds that the dense one takes.
"""

import dataclasses
import itertools
import logging
import math
import shutil
import statistics
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import Timeout
from torch import nn

from pruning.formats import FormatError, find_format, write_network
from runners.cache import cache_root, digest_of
from runners.config import LatencyConfig
from runners.latency.engines import LatencyError
from runners.latency.idle_baseline import shared_idle_seconds
from runners.latency.meter import EXTERNAL, Conditions, Reading
from runners.latency.timing import MAX_WIDTH, Timing, median_interval

ROUNDS = 6  # the fewest whose least and largest ratio hold the median with 95%
MAX_ROUNDS = 24  # while the interval is too wide
BRIEF_ROUNDS = 2
LARGEST = 1e9  # milliseconds or millijoules
AGREE = 1.05  # times the ratio at another place, up to which two places agree though their intervals are apart
ALIKE = 1.15  # times the dense latency at another place, up to which two places are alike
SHOWN = 300  # characters of an answer in a message
PAUSE = 1.0  # seconds before a failed measurement is tried again

_log = logging.getLogger(__name__)


class BenchError(LatencyError):
    """A measurement that gave no figures; one line says why."""


class AwayError(BenchError):
    """The device does not answer at all; it may come back."""


@dataclass(frozen=True)
class Comparison:
    """What a bench found.

    Attributes:
        rounds: seconds of the network and of the dense one, per turn.
        millijoules: energy of one inference, where the bench measures it.
        details: what else the bench tells, such as its temperature.
    """

    rounds: tuple[tuple[float, float], ...]
    millijoules: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __add__(self, other: "Comparison") -> "Comparison":
        """Return the turns of both."""
        return dataclasses.replace(other, rounds=self.rounds + other.rounds)


class Bench(Protocol):
    """Measures files on a device."""

    @property
    def name(self) -> str:
        """The device and its runtime in words; readings of different names must not be compared."""
        ...

    @property
    def places(self) -> int:
        """The number of `compare` that may run at once, in threads."""
        ...

    def compare(self, network: Path, dense: Path, batch: int, rounds: int) -> Comparison:
        """Measure two files in turn, while no other process does; where both are the same, once per turn.

        Raises:
            BenchError: no figures; `AwayError` where the device does not answer.
            Timeout: another process has measured on the device for too long.
        """
        ...

    def compare_all(self, network: Path, dense: Path, rounds: int) -> Mapping[str, Comparison]:
        """Measure two files at every place alone; return what those that answer found, by their names.

        Raises:
            BenchError: no figures.
        """
        ...


class ExternalMeter:
    """Measures networks beside the dense one by a bench.

    Args:
        config: batch sizes and file format.
        dense: the reference; it is not changed.
        input_shape: (C, H, W).
        pause: waits for the given seconds.
    """

    def __init__(
        self,
        config: LatencyConfig,
        dense: nn.Module,
        input_shape: Sequence[int],
        bench: Bench,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.dense, self.shape, self.bench = config, dense, tuple(input_shape), bench
        self._pause = pause
        self._folder = Path(tempfile.mkdtemp(prefix="slimfront-latency-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._unit: dict[int, float] = {}  # seconds of the dense net by batch size
        self.places, self.preparing = bench.places, threading.Lock()
        self._numbers = itertools.count()  # of files

    @property
    def first_batch(self) -> int:
        """The batch size of latency budgets and of the latency axis."""
        return self.config.batch[0]

    def conditions(self, batch: int) -> Conditions:
        """Return the conditions of a measurement at this batch size."""
        return Conditions(EXTERNAL, self.bench.name, 0, batch, "float32", False, self.config.format, {})

    def for_layers(self) -> None:
        """Return None: what single layers take here says nothing about another device."""

    def read(self, network: str, net: nn.Module) -> tuple[Reading, ...]:
        """Measure a net, which is not changed, at every configured batch size."""
        return tuple(self.read_at(network, net, batch) for batch in self.config.batch)

    def read_at(self, network: str, net: nn.Module, batch: int) -> Reading:
        """Measure a net, which is not changed, at one batch size."""
        conditions = self.conditions(batch)
        try:
            with self._files(net, batch) as files:
                found, tries = compare_files(self.bench, files, batch, self._pause)
        except AwayError as error:
            return Reading(network, conditions, str(error), away=True)
        except (BenchError, FormatError, Timeout, OSError) as error:
            return Reading(network, conditions, str(error))
        return self._reading(network, conditions, found, tries)

    def brief_seconds(self, net: nn.Module) -> float:
        """Return the seconds of a net from few turns at the first batch size.

        Raises:
            LatencyError: the bench gives no figures.
        """
        with self._files(net, self.first_batch) as files:
            found = _compare(self.bench, files, self.first_batch, BRIEF_ROUNDS, self._pause)
        return statistics.median(own for own, _ in found.rounds)

    @contextmanager
    def ratios(self) -> Iterator[Callable[[nn.Module], float]]:
        """Give a function that returns the seconds of a net over those of the dense one, from few turns."""

        def ratio(net: nn.Module) -> float:
            with self._files(net, self.first_batch) as files:
                found = _compare(self.bench, files, self.first_batch, BRIEF_ROUNDS, self._pause)
            return statistics.median(_ratios(found))

        yield ratio

    def disagreement(self, net: nn.Module) -> str:
        """Measure a net beside the dense one at every place, and name the places whose findings differ in one line.

        It is empty where there is one place, and where all agree: the intervals of the ratio overlap or its medians are
        close, and the dense net takes about as long everywhere.
        """
        if self.places == 1:
            return ""
        with self._files(net, self.first_batch) as files:
            return _apart(self.bench.compare_all(*files, ROUNDS))

    @contextmanager
    def _files(self, net: nn.Module, batch: int) -> Iterator[tuple[Path, Path]]:
        """Write a net and the dense one, which stays written, and remove the file of the net afterwards."""
        folder, suffix = self._folder, find_format(self.config.format).suffix
        dense = path = folder / f"dense-batch{batch}{suffix}"
        with self.preparing:
            if not dense.exists():
                write_network(self.dense, self.config.format, dense, self.shape, batch=batch)
            if net is not self.dense:
                path = folder / f"network{next(self._numbers)}-batch{batch}{suffix}"
                write_network(net, self.config.format, path, self.shape, batch=batch)
        try:
            yield path, dense
        finally:
            if path != dense:
                path.unlink(missing_ok=True)

    def _reading(self, network: str, conditions: Conditions, found: Comparison, tries: int) -> Reading:
        ratios, dense = _ratios(found), [beside for _, beside in found.rounds]
        low, high = median_interval(ratios)
        unit, ratio = self._dense_seconds(conditions, min(dense)), statistics.median(ratios)
        return Reading(
            network,
            conditions,
            seconds=unit * ratio,
            low=unit * low,
            high=unit * high,
            ratio=ratio,
            tries=tries,
            slowdown=statistics.median(dense) / unit,
            unsteady=_width_problem(found),
            millijoules=found.millijoules,
            details=found.details,
        )

    def _dense_seconds(self, conditions: Conditions, found: float) -> float:
        """Return the seconds of the dense net, which this process then keeps: so ratios stay comparable as seconds."""
        with self.preparing:
            return self._shared_seconds(conditions, found)

    def _shared_seconds(self, conditions: Conditions, found: float) -> float:
        if conditions.batch not in self._unit:
            tensors = [(name, list(tensor.shape)) for name, tensor in self.dense.state_dict().items()]
            digest = digest_of([repr(self.dense), tensors, self.shape, dataclasses.asdict(conditions)])
            record = cache_root() / "latency" / f"idle-{digest[:24]}.json"
            self._unit[conditions.batch] = shared_idle_seconds(record, found) or found
        return self._unit[conditions.batch]


def compare_files(
    bench: Bench, files: tuple[Path, Path], batch: int, pause: Callable[[float], None] = time.sleep
) -> tuple[Comparison, int]:
    """Measure two files in turn until the interval of their ratio is narrow; return the turns, and how many tries.

    Raises:
        BenchError, Timeout: as `Bench.compare`, for the first try; one that fails later ends the measurement.
    """
    found, tries = Comparison(()), 0
    while len(found.rounds) < MAX_ROUNDS and (not found.rounds or _width(found) > MAX_WIDTH):
        try:
            more = _compare(bench, files, batch, max(ROUNDS, len(found.rounds)), pause)
        except (BenchError, Timeout) as error:
            if not found.rounds:
                raise
            _log.warning("a repetition of a measurement failed, and what was measured before stands: %s", error)
            break
        tries, found = tries + 1, found + more
    return found, tries


def timing_of(found: Comparison) -> Timing:
    """Return the timing of the first file, in seconds of the second as it was meanwhile."""
    ratios, unit = _ratios(found), statistics.median(beside for _, beside in found.rounds)
    low, high = median_interval(ratios)
    return Timing(unit * statistics.median(ratios), unit * low, unit * high, unit, unit, _width_problem(found))


def _compare(
    bench: Bench, files: tuple[Path, Path], batch: int, rounds: int, pause: Callable[[float], None]
) -> Comparison:
    """Measure once, and once more where that fails."""
    try:
        return bench.compare(*files, batch, rounds)
    except BenchError as error:
        _log.info("measuring once more: %s", error)
        pause(PAUSE)
        return bench.compare(*files, batch, rounds)


def check_bench(config: LatencyConfig, bench: Bench) -> None:
    """Have a bench measure a small net, so that a long search does not fail at its first measurement.

    Raises:
        LatencyError: it gives no figures; the message says why.
    """
    meter = ExternalMeter(config, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (3, 8, 8), bench)
    try:
        meter.brief_seconds(meter.dense)
    except (BenchError, FormatError) as error:
        raise LatencyError(f"a first measurement, of a small network, failed: {error}") from error


def positive(value: Any, unit: str, source: str, wanted: str = "positive finite numbers") -> float:
    """Return a number that a bench gave, in its unit.

    Raises:
        BenchError: it is no positive finite number; the message names the source and what it must give.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise BenchError(f"{source} gave {shortened(value)} for {unit}; it must give {wanted}") from None
    if not 0 < number <= LARGEST:  # false for NaN, too
        raise BenchError(f"{source} gave {shortened(value)} {unit}; it must give {wanted}")
    return number


def shortened(value: Any) -> str:
    """Return a value as one line of at most SHOWN characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _apart(found: Mapping[str, Comparison]) -> str:
    """Say which places disagree about the ratio or about the dense net; empty where none does."""
    ratios = {name: _ratios(comparison) for name, comparison in found.items()}
    intervals = {name: median_interval(values) for name, values in ratios.items()}
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    dense = {name: min(beside for _, beside in comparison.rounds) for name, comparison in found.items()}
    for one, other in itertools.combinations(found, 2):
        low, high = max(intervals[one][0], intervals[other][0]), min(intervals[one][1], intervals[other][1])
        if low > high and max(medians[one], medians[other]) > AGREE * min(medians[one], medians[other]):
            told = ", ".join(f"{100 * medians[name]:.1f}% on {name}" for name in found)
            return f"the smallest network takes {told} of the dense one's time; name agents of one kind"
        if max(dense[one], dense[other]) > ALIKE * min(dense[one], dense[other]):
            told = ", ".join(f"{1000 * dense[name]:.4g} ms on {name}" for name in found)
            return f"the dense network takes {told}; name agents of one kind, or see what keeps the slower one busy"
    return ""


def _ratios(found: Comparison) -> list[float]:
    return [own / beside for own, beside in found.rounds]


def _width_problem(found: Comparison) -> str:
    wide = _width(found)
    return f"the 95% interval is {wide:.1%} of the median wide" if wide > MAX_WIDTH else ""


def _width(found: Comparison) -> float:
    """Return the width of the interval over the median."""
    low, high = median_interval(_ratios(found))
    return (high - low) / statistics.median(_ratios(found))
