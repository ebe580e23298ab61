"""Measure the latency of nets beside the dense one, in a window of its own.

The timing itself is in `runners.latency.timing`; this module sets the conditions. One process measures on a device at a
time (a lock among the processes of one user), and a search measures while none of its trials runs. Load from other
programs widens the intervals, and a reading tells why it is unsteady. Only a GPU that another program shares evenly all
the time cannot be detected.

All latencies are those of the idle machine (`runners.latency.idle_baseline`): the ratio to the dense net, measured in
turns, times what that takes on the idle machine.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from pruning.inference import choose_forms, layers_with_forms
from runners.cache import cache_root, digest_of, lock_folder
from runners.config import LatencyConfig
from runners.latency.engines import (
    Device,
    Placement,
    first_line,
    keep_freed_memory,
    parse_device,
    placed,
    prepare,
    versions,
)
from runners.latency.idle_baseline import shared_idle_seconds
from runners.latency.timing import (
    Place,
    Timing,
    Watch,
    brief_ratio,
    brief_seconds,
    fastest,
    inference,
    measure_idle_seconds,
    run_queue_delay,
    single_ratio,
    steady_timing,
)
from runners.training.compute_format import using_threads

EXTERNAL = "external"  # device of conditions under which a command or an agent measures; its name says which
REFERENCE = "dense"  # the name of the reference among the readings
LOCK_SECONDS = 600.0  # that a measurement waits for the one of another process


@dataclass(frozen=True)
class Conditions:
    """The conditions of a measurement; latencies under different conditions must not be compared.

    Attributes:
        device: text such as "cpu:1thread"; device_name: the maker's name of it.
        threads: number of threads on the processor.
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
    """A measured latency, or the reason why there is none.

    Attributes:
        network: "dense" or the label of the trial's network.
        refused: why there is no latency; empty when there is one.
        seconds: median of one inference of the whole batch on the idle machine; low, high: its 95% interval, from order
            statistics.
        ratio: to the latency of the dense net, which took turns with this one.
        tries: number of attempts until the reading was accepted or refused.
        slowdown: seconds of the dense net during the measurement over those on the idle machine; `seconds * slowdown`
            is what the clock showed. None in readings that were stored before it was recorded.
        unsteady: why the interval is wide; empty for a steady reading.
        millijoules: energy of one inference, where a command or an agent measures it.
        away: whether it was refused because the device did not answer, which may be back later.
        details: what an agent tells besides, such as its temperature.
    """

    network: str
    conditions: Conditions
    refused: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    tries: int = 1
    slowdown: float | None = None
    unsteady: str = ""
    millijoules: float | None = None
    away: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that a refused reading has no figures and any other has all of them."""
        figures = (self.seconds, self.low, self.high, self.ratio)
        if any((figure is None) != bool(self.refused) for figure in figures):
            raise ValueError(f"reading of {self.network} is either refused or has every figure: {self}")

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Reading":
        """Return the reading that `dataclasses.asdict` has turned into plain data."""
        return cls(**{**data, "conditions": Conditions(**data["conditions"])})


class Meter(Protocol):
    """Measures nets in turn with the dense one: here (`LatencyMeter`), or elsewhere (`external.ExternalMeter`).

    Attributes:
        dense: the reference.
        places: number of networks that can be measured at once, by threads.
    """

    config: LatencyConfig
    dense: nn.Module
    places: int

    @property
    def preparing(self) -> AbstractContextManager[Any]:
        """Lock, held while a thread makes or writes a network: PyTorch's exporters serve one at a time."""
        ...

    @property
    def first_batch(self) -> int:
        """The batch size of latency budgets and of the latency axis."""
        ...

    def conditions(self, batch: int) -> Conditions:
        """Return the conditions of a measurement at this batch size."""
        ...

    def read(self, network: str, net: nn.Module) -> tuple[Reading, ...]:
        """Measure a net, which is not changed, at every configured batch size."""
        ...

    def read_at(self, network: str, net: nn.Module, batch: int) -> Reading:
        """Measure a net, which is not changed, at one batch size."""
        ...

    def brief_seconds(self, net: nn.Module) -> float:
        """Return the seconds of a net from few calls at the first batch size; raises LatencyError without any."""
        ...

    def ratios(self) -> AbstractContextManager[Callable[[nn.Module], float]]:
        """Give a function that returns the seconds of a net over those of the dense one, from few turns."""
        ...

    def disagreement(self, net: nn.Module) -> str:
        """Say in one line which places disagree about the latency of a net; empty where none does."""
        ...

    def for_layers(self) -> "LatencyMeter | None":
        """Return the meter by which single layers are timed; None where only whole networks are measured."""
        ...


class LatencyMeter:
    """Measures nets in turn with the dense one.

    On one thread of the processor the CPU time of the thread is measured. On a quiet machine that is the time that
    passes, and beside other programs it leaves out the time in which they held the core.

    Args:
        config: device, batch sizes and number format.
        dense: the reference; it is not changed.
        input_shape: (C, H, W).
        watch: clocks; None takes the clocks of the system.

    Raises:
        LatencyError: this machine has no such device.
    """

    places = 1
    preparing = nullcontext()  # it measures one by one

    def __init__(
        self, config: LatencyConfig, dense: nn.Module, input_shape: Sequence[int], watch: Watch | None = None
    ) -> None:
        self.config, self.dense, self.shape = config, dense, tuple(input_shape)
        self.device = parse_device(config.device)
        keep_freed_memory()
        self.watch = watch or watch_of(self.device)
        self._idle: dict[int, float] = {}  # by batch size
        self._dense_programs: dict[int, Placement] = {}  # in ONNX Runtime, by batch size

    def disagreement(self, net: nn.Module) -> str:  # noqa: ARG002 - there is nothing to compare with
        """Return an empty text: there is one place."""
        return ""

    def for_layers(self) -> "LatencyMeter":
        """Return this meter, by which layers are timed too."""
        return self

    def brief_seconds(self, net: nn.Module) -> float:
        """Return the seconds of a net from few calls at the first batch size."""
        with using_threads(self.device.threads), torch.no_grad():
            return brief_seconds(self._places_of(net)(), self.watch)

    @contextmanager
    def ratios(self) -> Iterator[Callable[[nn.Module], float]]:
        """Give a function that returns the seconds of a net over those of the dense one, from few turns.

        On ONNX Runtime there are more: a latency model learns nearly all from whole nets there, and few turns made its
        errors for MobileNetV2 a third larger.

        Raises:
            Timeout: another process has measured on the device for too long.
        """
        ratio = single_ratio if self.config.engine == "onnxruntime" else brief_ratio
        with exclusive(self.device), using_threads(self.device.threads), torch.no_grad():
            reference = self._places_of(self.dense)
            yield lambda net: ratio(self._places_of(net), reference, self.watch)

    def forms(self, net: nn.Module) -> dict[str, str | None]:
        """Return the fastest form of every layer of a net that has several, by name, at the first batch size.

        Raises:
            Timeout: another process has measured on the device for too long.
        """
        images = torch.zeros(self.first_batch, *self.shape)
        with exclusive(self.device), using_threads(self.device.threads):
            net, images = placed(net, images, self.device, self.config)
            choose_forms(net, images, fastest)
        return {name: layer.form for name, layer in layers_with_forms(net).items()}

    def read(self, network: str, net: nn.Module) -> tuple[Reading, ...]:
        """Measure a net, which is not changed, at every configured batch size.

        Args:
            network: "dense" for the reference itself, else the label of the trial's network.
        """
        return tuple(self.read_at(network, net, batch) for batch in self.config.batch)

    @property
    def first_batch(self) -> int:
        """The batch size of latency budgets and of the latency axis."""
        return self.config.batch[0]

    def read_at(self, network: str, net: nn.Module, batch: int) -> Reading:
        """Measure a net, which is not changed, at one batch size."""
        images = torch.zeros(batch, *self.shape)
        conditions = self.conditions(batch)
        try:
            with exclusive(self.device), using_threads(self.device.threads), torch.no_grad():
                if conditions.engine == "torch.compile":
                    torch.compiler.reset()  # else the nets of a front, all of one class, exceed the recompilation limit
                reference = self._place(self.dense, images)
                place = reference if net is self.dense else self._place(net, images)
                timing = steady_timing(place, reference, self.watch, self._idle_seconds(reference, conditions))
        except Timeout:
            reason = f"another process has measured on {self.device.text} for over {LOCK_SECONDS:.0f} s"
            return Reading(network, conditions, reason)
        except Exception as error:  # engines raise errors of any class for a net that they cannot run
            return Reading(network, conditions, f"{conditions.engine} cannot run it: {first_line(error)}")
        return self._reading(network, conditions, timing)

    def conditions(self, batch: int) -> Conditions:
        """Return the conditions of a measurement at this batch size."""
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

    def _places_of(self, net: nn.Module) -> Place:
        """Return a net at the first batch size."""
        if self.config.engine == "torch.compile":
            torch.compiler.reset()  # else so many nets of one class exceed the recompilation limit
        return self._place(net, torch.zeros(self.first_batch, *self.shape))

    def _place(self, net: nn.Module, images: Tensor) -> Place:
        placement = self._dense_placement(images) if net is self.dense else self._prepared(net, images)
        return lambda: inference(*placement())

    def _dense_placement(self, images: Tensor) -> Placement:
        """Return that of the dense net; for ONNX Runtime it is kept, as an export takes longer than a reading."""
        if self.config.engine != "onnxruntime":
            return self._prepared(self.dense, images)
        if len(images) not in self._dense_programs:
            self._dense_programs[len(images)] = self._prepared(self.dense, images)
        return self._dense_programs[len(images)]

    def _prepared(self, net: nn.Module, images: Tensor) -> Placement:
        return prepare(net, images, self.device, self.config)

    def _reading(self, network: str, conditions: Conditions, timing: Timing) -> Reading:
        return Reading(
            network,
            conditions,
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            ratio=timing.ratio,
            tries=timing.tries,
            slowdown=timing.slowdown,
            unsteady=timing.problem,
        )

    def _idle_seconds(self, reference: Place, conditions: Conditions) -> float:
        """Return the seconds of the dense net on the idle machine, which this process then keeps.

        While others hold the cores, what other processes recorded is taken, or else what this one found.
        """
        if conditions.batch not in self._idle:
            found, idle = measure_idle_seconds(reference(), self.watch)
            recorded = shared_idle_seconds(self._idle_record(conditions), found if idle else None)
            self._idle[conditions.batch] = found if recorded is None else recorded
        return self._idle[conditions.batch]

    def _idle_record(self, conditions: Conditions) -> Path:
        """Return the file in which processes record the idle seconds of the dense net under these conditions."""
        tensors = [(name, list(tensor.shape)) for name, tensor in self.dense.state_dict().items()]
        content = [repr(self.dense), tensors, self.shape, dataclasses.asdict(conditions)]
        return cache_root() / "latency" / f"idle-{digest_of(content)[:24]}.json"


def watch_of(device: Device) -> Watch:
    """Return the clocks of the system by which nets are timed on a device of this machine."""
    one_thread = device.device.type == "cpu" and device.threads == 1
    return Watch(clock=time.thread_time) if one_thread else Watch(run_queue_delay=run_queue_delay)


def exclusive(device: Device, seconds: float = LOCK_SECONDS) -> AbstractContextManager[None]:
    """Lock a device of this machine inside a block; see `locked`."""
    return locked(f"latency-{str(device.device).replace(':', '-')}", seconds)


@contextmanager
def locked(name: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Lock a device, by its name, inside the block against measurements by other processes of this user.

    Raises:
        Timeout: another process has held the lock for more than `seconds`.
    """
    with FileLock(lock_folder() / f"{name}.lock", timeout=seconds):
        yield


def to_plain(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return readings as plain data."""
    return [dataclasses.asdict(reading) for reading in readings]
