"""Measured latency: a net on the device that is asked for, in a slot of its own, or refused with the reason.

The timing itself is `runners.latency.timing`; here are the conditions it is done under. One process measures on a device at
a time (a lock among the processes of one user); a search measures when none of its trials runs. What others compute
meanwhile shows in the readings, which are then refused; a GPU that another program shares evenly all the time is the
one thing that nothing here can see.

All figures are of the quiet machine (`runners.latency.idle_baseline`): a process that meets a machine up to a quarter
slower corrects for it, one that meets a machine further off refuses.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from runners.cache import cache_root, digest_of
from runners.config import LatencyConfig
from runners.latency.engines import Device, first_line, parse_device, prepared, versions
from runners.latency.held_memory import keep_freed_memory
from runners.latency.idle_baseline import quietest
from runners.latency.run_queue import stalled_seconds
from runners.latency.timing import Call, Quiet, Timing, Watch, inference, quiet_seconds, steady
from runners.training.compute_format import using_threads

REFERENCE = "dense"  # the name of the reference among the readings
LOCK_SECONDS = 600.0  # that a measurement waits for another process's


@dataclass(frozen=True)
class Conditions:
    """What a figure was measured under; latencies under different conditions are not to be compared.

    Attributes:
        device: as asked for; device_name: what the maker calls it.
        threads: that the processor used, a fixed number.
        batch: images of one inference.
    """

    device: str
    device_name: str
    threads: int
    batch: int
    dtype: str
    channels_last: bool
    engine: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Reading:
    """A measured latency, or why there is none.

    Attributes:
        network: "dense" or the label of the trial's network.
        refused: why no figure is given; empty when there is one.
        seconds: median of one inference of the whole batch when the machine is quiet; low, high: 95% interval of it,
            from order statistics.
        ratio: to the dense net, which took turns with it.
        pace: how many times as long as on the quiet machine everything took meanwhile; seconds x pace is what the
            clock showed. None in readings from before it was noted.
        tries: how often it was measured until it was accepted or refused.
    """

    network: str
    conditions: Conditions
    refused: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    tries: int = 1
    pace: float | None = None

    def __post_init__(self) -> None:
        """A refused reading has no figures, any other has all of them."""
        if any((figure is None) != bool(self.refused) for figure in (self.seconds, self.low, self.high, self.ratio)):
            raise ValueError(f"reading of {self.network} is either refused or has every figure: {self}")

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Reading":
        """Read back what `dataclasses.asdict` gave."""
        return cls(**{**data, "conditions": Conditions(**data["conditions"])})


class LatencyMeter:
    """Measures nets beside the dense one.

    Args:
        config: names the device.
        dense: the reference; left as it is.
        input_shape: (C, H, W).
        watch: tells the time and how long threads waited for a core.

    Raises:
        LatencyError: there is no such device.
    """

    def __init__(
        self, config: LatencyConfig, dense: nn.Module, input_shape: Sequence[int], watch: Watch | None = None
    ) -> None:
        self.config, self.dense, self.shape = config, dense, tuple(input_shape)
        self.device = parse_device(config.device)
        keep_freed_memory()
        self.watch = watch or Watch(stalled=stalled_seconds)
        self._quiet: dict[int, Quiet] = {}  # by batch size

    def watched_by(self, watch: Watch) -> "LatencyMeter":
        """Return a meter of the same net and device that tells the time otherwise."""
        return LatencyMeter(self.config, self.dense, self.shape, watch)

    def read(self, network: str, net: nn.Module) -> tuple[Reading, ...]:
        """Measure a net, left as it is, at every batch size that is asked for.

        Args:
            network: "dense" for the reference itself, else the label.
        """
        return tuple(self.read_at(network, net, batch) for batch in self.config.batch)

    @property
    def first_batch(self) -> int:
        """The batch size that budgets and the latency axis go by."""
        return self.config.batch[0]

    def read_at(self, network: str, net: nn.Module, batch: int) -> Reading:
        """Measure a net, left as it is, at one batch size."""
        images = torch.zeros(batch, *self.shape)
        conditions = self.conditions(batch)
        try:
            with exclusive(self.device), using_threads(self.device.threads), torch.no_grad():
                if conditions.engine == "torch.compile":
                    torch.compiler.reset()  # else the nets of a front, all of one class, are too many recompilations
                reference = self._call(self.dense, images)
                call = reference if net is self.dense else self._call(net, images)
                timing = steady(call, reference, self.watch, self._quiet_machine(reference, conditions))
        except Timeout:
            reason = f"another process has measured on {self.device.text} for over {LOCK_SECONDS:.0f} s"
            return Reading(network, conditions, reason)
        except Exception as error:  # an engine that cannot take this net raises whatever it meets, of any class
            return Reading(network, conditions, f"{conditions.engine} cannot run it: {first_line(error)}")
        return self._judged(network, conditions, timing)

    def _call(self, net: nn.Module, images: Tensor) -> Call:
        return inference(*prepared(net, images, self.device, self.config))

    def _judged(self, network: str, conditions: Conditions, timing: Timing) -> Reading:
        if timing.problem:
            return Reading(network, conditions, timing.problem, tries=timing.tries)
        return Reading(
            network,
            conditions,
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            ratio=timing.ratio,
            tries=timing.tries,
            pace=timing.pace,
        )

    def _quiet_machine(self, reference: Call, conditions: Conditions) -> Quiet | None:
        """Return what the dense net takes on the quiet machine, the same for as long as this process lives.

        It is None while others hold the cores and no process has found it before.
        """
        if (known := self._quiet.get(conditions.batch)) is not None:
            return known
        found, notes = quiet_seconds(reference, self.watch), self._notes(conditions)
        if (seconds := quietest(notes, found)) is None:
            return None
        quiet = Quiet(seconds, f"; if it is slower for good, remove {notes}")
        if found is not None:
            self._quiet[conditions.batch] = quiet
        return quiet

    def _notes(self, conditions: Conditions) -> Path:
        """Return the file in which processes leave what the dense net took them."""
        tensors = [(name, list(each.shape)) for name, each in self.dense.state_dict().items()]
        content = [repr(self.dense), tensors, self.shape, dataclasses.asdict(conditions)]
        return cache_root() / "latency" / f"quiet-{digest_of(content)[:24]}.json"

    def conditions(self, batch: int) -> Conditions:
        """Return what a figure at this batch size is measured under."""
        config, device = self.config, self.device
        return Conditions(
            device=device.text,
            device_name=device.name,
            threads=device.threads,
            batch=batch,
            dtype=config.dtype,
            channels_last=config.channels_last,
            engine=config.engine,
            versions=versions(config.engine),
        )


@contextmanager
def exclusive(device: Device, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only process of this user that measures on the device inside the block.

    Raises:
        Timeout: another one has not let go within so many seconds.
    """
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"latency-{str(device.device).replace(':', '-')}.lock", timeout=seconds):
        yield


def to_plain(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return readings as plain data."""
    return [dataclasses.asdict(reading) for reading in readings]
