"""Build the latency model of a net under given conditions, from its layers and from whole nets, and cache it.

On a device of this machine the layers are timed alone, in half a minute at most; their times are kept in a table per
device and runtime, from which later networks with layers of the same shapes take them. Then whole nets take turns with
the dense net, at most 30 with the dense one: nets of uniform widths and of random widths calibrate the model, and pairs
of nets show steps of channels. For a device elsewhere these nets determine all, by `rates`.
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
HELD_OUT = 16  # nets of random widths; with the dense one, those of uniform widths and the pairs, at most 30
MAX_DRIFT = 0.1  # of the dense net while layers are timed; above it a model serves its search and is not cached
VERSION = 7  # of the cached files

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
    if local is None or local.config.engine == "onnxruntime":
        terms = blocked_terms(kernels)
        makers += [Rates(dataclasses.replace(plain, block=block), terms).fit for block in BLOCKS]
    if local is not None:
        timer, timed, drift = time_layers(local, space, plain, (kernels, operations))
        makers.insert(0, lambda step, _: dataclasses.replace(timed, step=step))
    model, error = _calibrated(makers, meter, space, dense_seconds)
    building = Building(
        time.perf_counter() - start,
        timings=timer.timings if timer else 0,
        reused=timer.reused if timer else 0,
        repeated=timer.repeated if timer else 0,
        failed=tuple(sorted(set(timer.failed))) if timer else (),
        drift=drift,
        error=error,
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


def _calibrated(
    makers: Sequence[Make], meter: Meter, space: SearchSpace, dense_seconds: float
) -> tuple[LatencyModel, ModelError]:
    """Have a model learn from whole nets, the dense one included; return it with its error.

    Of several ways to make its layers the one is taken that predicts nets best which it has not learned from. The error
    is of each net of random widths by a model of all other nets.
    """
    flops, least = space.dense_cost.flops, space.smallest_cost.flops
    limits = [int(share * flops) for share in UNIFORM_FRACTIONS if share * flops > least]
    uniform = [space.fit(uniform_ratios(space), [Budget("flops", limit)]) for limit in limits]
    generator = np.random.default_rng(0)
    held_out = [random_widths(space, generator) for _ in range(HELD_OUT)]
    of_steps = step_pairs(space)
    tried = [*itertools.chain(*of_steps), *uniform, space.smallest, *held_out]
    measured = _measured(tried, meter, space)
    dense = tuple(space.full.values())
    readings, places = [(dense, dense_seconds)], dict[int, int]()
    for index, ratio in sorted(measured.items()):
        places[index] = len(readings)
        readings.append((tuple(tried[index][name] for name in space.full), dense_seconds * ratio))
    ends = range(0, 2 * len(of_steps), 2)
    pairs = [(places[end], places[end + 1]) for end in ends if {end, end + 1} <= places.keys()]
    found = [_explained(make, readings, pairs) for make in makers]
    layers, errors = min(found, key=lambda one: float(np.mean(np.abs(one[1]))))
    first = len(tried) - len(held_out)
    unseen = [errors[place] for index, place in places.items() if index >= first]
    return LatencyModel(layers, dense, readings, unseen), ModelError.of(unseen)


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


def _explained(make: Make, readings: Readings, pairs: Sequence[tuple[int, int]]) -> tuple[Layers, list[float]]:
    """Return the layers that readings determine, with their step, and the errors of nets that were left out."""
    dense = readings[0][0]
    step = find_step(make, dense, readings, pairs)
    errors = left_out_errors(lambda others: make(step, others), dense, readings)
    return make(step, readings), errors


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
