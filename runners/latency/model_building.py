"""Build the latency model of a net under given conditions, from its layers and from whole nets, and cache it.

Timing the layers takes half a minute at most. Then whole nets take turns with the dense net: nets of uniform widths
and of random widths calibrate the model, at most 30 with the dense one, and show steps of channels. For a device
elsewhere the layers are timed on this machine, and what the device measures of whole nets corrects them. The timings of
layers are kept in a table per device and runtime, from which later networks with layers of the same shapes take them.
"""

import dataclasses
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.steps import counted
from runners.cache import cache_root, digest_of, write_cached
from runners.latency.kernels import Extent, extent_matrix, list_operations
from runners.latency.layer_timing import LayerTable, LayerTimer
from runners.latency.meter import Conditions, LatencyMeter, Meter, exclusive
from runners.latency.model import LatencyModel, Layers, ModelError, left_out_errors, stage_numbers, with_step
from runners.training.compute_format import using_threads
from spaces.budget import Budget
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

LAYER_SECONDS = 30.0  # at most, for all layers
UNIFORM_FRACTIONS = (0.5, 0.25, 0.1)  # of the dense FLOPs; the smallest net is measured too
MAX_DRIFT = 0.1  # of the dense net while layers are timed; above it a model serves its search and is not cached
VERSION = 4  # of the cached files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Building:
    """How a model was built.

    Attributes:
        seconds: duration of the building.
        timings: number of timings of layers alone; repeated: number of repetitions of unsteady ones; reused: number of
            timings that the table of layers had.
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
    start, local = time.perf_counter(), meter.for_layers()
    with exclusive(local.device), using_threads(local.device.threads), torch.no_grad():
        before = local.brief_seconds(local.dense)
        layers, timer = _time_layers(local, space)
        drift = abs(local.brief_seconds(local.dense) / before - 1)
    if local is not meter:
        layers = layers.scaled(dense_seconds, tuple(space.full.values()))
    model, error = _calibrated(layers, meter, space, dense_seconds)
    seconds = time.perf_counter() - start
    failed = tuple(sorted(set(timer.failed)))
    counts = timer.timings, timer.reused, timer.repeated
    building = Building(seconds, *counts, failed, drift, error, step=model.layers.step)
    content = {"model": model.to_plain(), "building": dataclasses.asdict(building)}
    if drift <= MAX_DRIFT:
        write_cached(path, json.dumps(content).encode())
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


def _time_layers(meter: LatencyMeter, space: SearchSpace) -> tuple[Layers, LayerTimer]:
    config = meter.config
    kernels, operations = list_operations(meter.dense, space, config.batch[0])
    groups = len(space.variable)
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
    coefficients = timer.fit(kernels, ranges, LAYER_SECONDS)
    layers = Layers(
        names=tuple(group.name for group in space.variable),
        kernel=np.array([operation.kernel for operation in operations], dtype=np.int64),
        in_channels=extent_matrix([operation.in_channels for operation in operations], groups),
        out_channels=extent_matrix([operation.out_channels for operation in operations], groups),
        coefficients=coefficients,
        stage=stage_numbers([operation.stage for operation in operations]),
    )
    return layers, timer


def _range(extents: list[Extent], low: list[int], high: list[int]) -> tuple[int, int]:
    """Return the least channels at the lowest widths and the most at the full ones."""
    return min(extent.at(low) for extent in extents), max(extent.at(high) for extent in extents)


def _calibrated(
    layers: Layers, meter: Meter, space: SearchSpace, dense_seconds: float
) -> tuple[LatencyModel, ModelError]:
    """Have the model learn from whole nets, the dense one included; return it with its error.

    The error is of each net of random widths by a model of all other nets.
    """
    flops, least = space.dense_cost.flops, space.smallest_cost.flops
    limits = [int(share * flops) for share in UNIFORM_FRACTIONS if share * flops > least]
    uniform = [space.fit(uniform_ratios(space), [Budget("flops", limit)]) for limit in limits]
    generator = np.random.default_rng(0)
    held_out = [random_widths(space, generator) for _ in range(meter.held_out)]
    dense = tuple(space.full.values())
    readings: list[tuple[tuple[int, ...], float]] = [(dense, dense_seconds)]
    with meter.ratios() as ratio_of:
        for widths in counted([*uniform, space.smallest, *held_out]):
            seconds = dense_seconds * ratio_of(at_widths(meter.dense, space, widths))
            readings.append((tuple(widths[name] for name in layers.names), seconds))
    layers = with_step(layers, dense, readings)
    errors = left_out_errors(layers, dense, readings)[-len(held_out) :]
    return LatencyModel(layers, dense, readings, errors), ModelError.of(errors)


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
