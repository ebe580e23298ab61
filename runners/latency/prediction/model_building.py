"""Build the latency model of a net under given conditions, from its layers and from whole nets, and cache it.

Whole nets take turns with the dense net, at most 30 with the dense one: nets of uniform widths and of random widths
calibrate the model, and pairs of nets show steps of channels. For a device elsewhere these nets determine all, by
`rates`. On a device of this machine layers are timed alone too, in half a minute at most, in PyTorch; their times are
kept in a table per device and runtime, from which later networks with layers of the same shapes take them. For another
runtime than PyTorch layers are timed only where rates do not come close.
"""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.steps import counted
from runners.cache import cache_root, digest_of, write_cached
from runners.latency.engines import LatencyError
from runners.latency.meter import Conditions, LatencyMeter, Meter, exclusive
from runners.latency.prediction.blocked import BLOCKS, blocked_terms
from runners.latency.prediction.kernels import Extent, Kernel, Operation, extent_matrix, list_operations
from runners.latency.prediction.layer_timing import TERMS, LayerTable, LayerTimer
from runners.latency.prediction.model import LatencyModel, Layers, ModelError, Readings, left_out_errors, stage_numbers
from runners.latency.prediction.rates import Rates, work_terms
from runners.latency.prediction.steps import find_step, step_pairs
from runners.latency.sharing import shared_out
from runners.training.compute_format import using_threads
from spaces.budget import Budget
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

LAYER_SECONDS = 30.0  # at most, for all layers
UNIFORM_FRACTIONS = (0.5, 0.25, 0.1)  # of the dense FLOPs; the smallest net is measured too
CLOSE = 0.03  # median error of rates, up to which no layer is timed for another runtime than PyTorch
HELD_OUT = 16  # nets of random widths; with the dense one, those of uniform widths and the pairs, at most 30
MAX_DRIFT = 0.1  # of the dense net while layers are timed; above it a model serves its search and is not cached
VERSION = 8  # of the cached files

Make = Callable[[int, Readings], Layers]  # of a step of channels, and of readings where these determine the layers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Building:
    """How a model was built.

    Attributes:
        seconds: duration of the building.
        timings: number of timings of layers alone, none for a device elsewhere; repeated: number of repetitions of
            unsteady ones; reused: number of timings that the table of layers had.
        failed: operations that do not run alone; the correction of the model accounts for them.
        drift: relative change of the dense net's seconds while the layers were timed.
        error: on nets of random widths that the model had not learned from.
        step: of channels, see `Layers`.
        cached: whether the model comes from the cache.
    """

    seconds: float
    timings: int
    reused: int
    repeated: int
    failed: tuple[str, ...]
    drift: float
    error: ModelError
    step: int = 1
    cached: bool = False


@dataclass(frozen=True)
class Explanation:
    """Layers that explain measured nets.

    Attributes:
        errors: log of measured over predicted seconds of every net, by a model of all others.
        unseen: those of nets of random widths.
    """

    layers: Layers
    errors: Sequence[float]
    unseen: Sequence[float]

    @property
    def error(self) -> ModelError:
        """Errors on nets of random widths."""
        return ModelError.of(self.unseen)

    @property
    def mean_error(self) -> float:
        """Mean error over all nets, by which explanations are compared."""
        return float(np.mean(np.abs(self.errors)))


@dataclass(frozen=True)
class MeasuredNetworks:
    """Whole nets that took turns with the dense one, from which models learn.

    Attributes:
        readings: of all nets, the dense one first.
        pairs: indices of the two readings of a pair that shows steps.
        unseen: indices of the readings of nets of random widths, on which models are judged.
    """

    readings: Readings
    pairs: Sequence[tuple[int, int]]
    unseen: Sequence[int]

    @classmethod
    def of(cls, meter: Meter, space: SearchSpace, dense_seconds: float) -> "MeasuredNetworks":
        """Measure nets of uniform and of random widths, the smallest one, and pairs that show steps."""
        flops, least = space.dense_cost.flops, space.smallest_cost.flops
        limits = [int(share * flops) for share in UNIFORM_FRACTIONS if share * flops > least]
        uniform = [space.fit(uniform_ratios(space), [Budget("flops", limit)]) for limit in limits]
        generator = np.random.default_rng(0)
        held_out = [random_widths(space, generator) for _ in range(HELD_OUT)]
        of_steps = step_pairs(space)
        tried = [*itertools.chain(*of_steps), *uniform, space.smallest, *held_out]
        readings, places = [(tuple(space.full.values()), dense_seconds)], dict[int, int]()
        for index, ratio in sorted(_measured(tried, meter, space).items()):
            places[index] = len(readings)
            readings.append((tuple(tried[index][name] for name in space.full), dense_seconds * ratio))
        ends = range(0, 2 * len(of_steps), 2)
        pairs = [(places[end], places[end + 1]) for end in ends if {end, end + 1} <= places.keys()]
        first = len(tried) - len(held_out)
        return cls(readings, pairs, [place for index, place in places.items() if index >= first])

    def explained_by(self, make: Make) -> Explanation:
        """Return the layers that a maker determines, with their step, and the errors of nets that were left out."""
        dense = self.readings[0][0]
        step = find_step(make, dense, self.readings, self.pairs)
        errors = left_out_errors(lambda others: make(step, others), dense, self.readings)
        return Explanation(make(step, self.readings), errors, [errors[index] for index in self.unseen])


def build_model(meter: Meter, space: SearchSpace, dense_seconds: float) -> tuple[LatencyModel, Building]:
    """Return the latency model of the meter's net at its first batch size, from the cache where it is there.

    A model that was built while the machine changed its speed serves its search and is not cached.

    Args:
        space: traced from the dense net of the meter.
        dense_seconds: latency of the dense net at the first batch size.

    Raises:
        LatencyError: a command or an agent gives no figures.
        Timeout: another process has measured on the device for too long.
    """
    path = cache_root() / "latency" / f"{_digest(meter, space)}.json"
    if (cached := _cached(path)) is not None:
        return cached
    start = time.perf_counter()
    kernels, operations = list_operations(meter.dense, space, meter.first_batch)
    plain = untimed_layers(kernels, operations, space)
    makers: list[Make] = [Rates(plain, work_terms([kernel.work for kernel in kernels])).fit]
    timer, drift, local = None, 0.0, meter.for_layers()
    in_pytorch = local is not None and local.config.engine != "onnxruntime"
    if not in_pytorch:
        terms = blocked_terms(kernels)
        makers += [Rates(dataclasses.replace(plain, block=block), terms).fit for block in BLOCKS]
    networks = MeasuredNetworks.of(meter, space, dense_seconds)
    found = [networks.explained_by(make) for make in makers]
    if local is not None and (in_pytorch or min(one.error.median for one in found) > CLOSE):
        timer, timed, drift = time_layers(local, space, plain, (kernels, operations))
        found.append(networks.explained_by(lambda step, _: dataclasses.replace(timed, step=step)))
    best = min(found, key=lambda one: one.mean_error)
    model = LatencyModel(best.layers, networks.readings[0][0], networks.readings, best.unseen)
    building = Building(
        time.perf_counter() - start,
        timings=timer.timings if timer else 0,
        reused=timer.reused if timer else 0,
        repeated=timer.repeated if timer else 0,
        failed=tuple(sorted(set(timer.failed))) if timer else (),
        drift=drift,
        error=best.error,
        step=model.layers.step,
    )
    content = {"model": model.to_plain(), "building": dataclasses.asdict(building)}
    if drift <= MAX_DRIFT:
        write_cached(path, json.dumps(content).encode())
        if timer is not None:
            timer.table.save()
    return model, building


def at_widths(net: nn.Module, space: SearchSpace, widths: Widths) -> nn.Module:
    """Return the net with the first channels of every group; its latency depends on the widths alone."""
    scores = {group.name: -torch.arange(group.width, dtype=torch.float32) for group in space.variable}
    return slice_channels(net, space, select_channels(space, scores, widths))


def random_widths(space: SearchSpace, generator: np.random.Generator) -> Widths:
    """Return widths of random ratios at FLOPs drawn log-uniformly between those of the smallest and the dense net."""
    low, high = space.smallest_cost.flops, space.dense_cost.flops
    flops = int(np.exp(generator.uniform(np.log(1.05 * low), np.log(max(high, 1.1 * low)))))
    ratios = generator.uniform(0.25, 1.0, len(space.variable))
    return space.fit((ratios / ratios.max()).tolist(), [Budget("flops", flops)])


def untimed_layers(kernels: Sequence[Kernel], operations: Sequence[Operation], space: SearchSpace) -> Layers:
    """Return the layers of a net, which take no time yet."""
    groups = len(space.variable)
    return Layers(
        names=tuple(group.name for group in space.variable),
        kernel=np.array([operation.kernel for operation in operations], dtype=np.int64),
        in_channels=extent_matrix([operation.in_channels for operation in operations], groups),
        out_channels=extent_matrix([operation.out_channels for operation in operations], groups),
        coefficients=np.zeros((len(kernels), TERMS, TERMS)),
        stage=stage_numbers([operation.stage for operation in operations]),
    )


def time_layers(
    meter: LatencyMeter,
    space: SearchSpace,
    layers: Layers,
    listed: tuple[Sequence[Kernel], Sequence[Operation]],
) -> tuple[LayerTimer, Layers, float]:
    """Time the kernels; return the timer, the layers with their times, and the drift of the dense net meanwhile."""
    config, (kernels, operations) = meter.config, listed
    low, high = ([group.lowest for group in space.variable], [group.width for group in space.variable])
    ranges = []
    for index in range(len(kernels)):
        sharing = [operation for operation in operations if operation.kernel == index]
        inputs = _range([operation.in_channels for operation in sharing], low, high)
        outputs = _range([operation.out_channels for operation in sharing], low, high)
        ranges.append(((inputs[0], outputs[0]), (inputs[1], outputs[1])))
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    table = LayerTable.of(dataclasses.asdict(meter.conditions(meter.first_batch)))
    timer = LayerTimer(meter.device.device, getattr(torch, config.dtype), memory_format, meter.watch, table)
    with exclusive(meter.device), using_threads(meter.device.threads), torch.no_grad():
        before = meter.brief_seconds(meter.dense)
        timed = dataclasses.replace(layers, coefficients=timer.fit(kernels, ranges, LAYER_SECONDS))
        drift = abs(meter.brief_seconds(meter.dense) / before - 1)
    return timer, timed, drift


def _range(extents: list[Extent], low: list[int], high: list[int]) -> tuple[int, int]:
    """Return the least channels at the lowest widths and the most at the full ones."""
    return min(extent.at(low) for extent in extents), max(extent.at(high) for extent in extents)


def _measured(tried: Sequence[Widths], meter: Meter, space: SearchSpace) -> dict[int, float]:
    """Return the seconds of networks over those of the dense one, by index; one that gives no figures is left out.

    Raises:
        LatencyError: more than half of them give no figures.
    """
    failures = list[LatencyError]()
    with meter.ratios() as ratio_of:

        def measure(index: int) -> float | None:
            with meter.preparing:
                net = at_widths(meter.dense, space, tried[index])
            try:
                return ratio_of(net)
            except LatencyError as error:
                _log.warning("a network of the latency model is left out: %s", error)
                failures.append(error)
                if 2 * len(failures) > len(tried):
                    raise
                return None

        shared = shared_out(measure, iter(counted(range(len(tried)))), meter.places)
        return {index: ratio for index, ratio in shared if ratio is not None}


def _digest(meter: Meter, space: SearchSpace) -> str:
    """Return a digest of all that a model depends on: the net's layers, the groups of the space, the conditions."""
    conditions: Conditions = meter.conditions(meter.first_batch)
    tensors = [(name, list(tensor.shape)) for name, tensor in meter.dense.state_dict().items()]
    groups = [(g.name, g.width, g.lowest, g.ceiling, g.divisor, g.fixed) for g in space.groups]
    spec = None if space.spec is None else dataclasses.asdict(space.spec)
    content = [VERSION, spec, tensors, groups, list(space.input_shape), dataclasses.asdict(conditions)]
    return digest_of(content)[:24]


def _cached(path: Path) -> tuple[LatencyModel, Building] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        building = {**data["building"], "error": ModelError(**data["building"]["error"]), "cached": True}
        building["failed"] = tuple(building["failed"])
        return LatencyModel.from_plain(data["model"]), Building(**building)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the latency model in %s cannot be read (%s); it is built again", path, error)
        return None
