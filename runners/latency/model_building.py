"""Builds a latency model for a net, a device and conditions: layers alone, then whole nets; kept in the cache.

Half a minute at most goes to the layers. Then the dense net, uniform widths and random ones take turns with the
dense net: the uniform ones calibrate, the 20 random ones tell how far the model is off before it learns from them.
"""

import dataclasses
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from runners.cache import cache_root, digest_of, write_cached
from runners.latency.engines import prepared
from runners.latency.kernels import Extent, matrix, operations
from runners.latency.layer_timing import LayerTimer
from runners.latency.meter import Conditions, LatencyMeter, exclusive
from runners.latency.model import LatencyModel, Layers, ModelError, stage_numbers
from runners.latency.timing import Call, Watch, brief_ratio, brief_seconds, inference
from runners.training.compute_format import using_threads
from spaces.budget import Budget
from spaces.space import SearchSpace, uniform_ratios
from spaces.widths import Widths

LAYER_SECONDS = 30.0  # at most, for all layers
UNIFORM = (0.5, 0.25, 0.1)  # of the dense FLOPs, beside the smallest net
HELD_OUT = 20
MOST_DRIFT = 0.1  # of the dense net while layers are timed; a model beyond serves its search and is not kept
VERSION = 1  # of what the cache holds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Building:
    """How a model was built.

    Attributes:
        seconds: that it took; timings: of layers alone; repeated: of these, since they were unsteady.
        failed: operations that do not run alone, which the correction stands in for.
        drift: of the dense net from before to after the layers were timed.
        error: on random widths that the model had not seen.
        cached: whether it was built by an earlier run.
    """

    seconds: float
    timings: int
    repeated: int
    failed: tuple[str, ...]
    drift: float
    error: ModelError
    cached: bool = False


def build_model(meter: LatencyMeter, space: SearchSpace, dense_seconds: float) -> tuple[LatencyModel, Building]:
    """Return the model of the net that the meter measures, at its first batch size, from the cache where it is there.

    One built while the machine changed its speed is corrected like any other, and not kept.

    Args:
        space: traced from the dense net of the meter.
        dense_seconds: that the dense net takes.

    Raises:
        Timeout: another process measures on the device for too long.
    """
    path = cache_root() / "latency" / f"{_digest(meter, space)}.json"
    if (kept := _cached(path)) is not None:
        return kept
    began = time.perf_counter()
    meter = meter.watched_by(_watch(meter))
    with exclusive(meter.device), using_threads(meter.device.threads), torch.no_grad():
        before = brief_seconds(call_of(meter, meter.dense), meter.watch)
        layers, timer = _timed_layers(meter, space)
        drift = abs(brief_seconds(call_of(meter, meter.dense), meter.watch) / before - 1)
        model = LatencyModel(layers, tuple(space.full.values()))
        held_out = _calibrated(model, meter, space, dense_seconds)
    seconds = time.perf_counter() - began
    building = Building(seconds, timer.timings, timer.repeated, tuple(sorted(set(timer.failed))), drift, held_out)
    content = {"model": model.to_plain(), "building": dataclasses.asdict(building)}
    if drift <= MOST_DRIFT:
        write_cached(path, json.dumps(content).encode())
    return model, building


def at_widths(net: nn.Module, space: SearchSpace, widths: Widths) -> nn.Module:
    """Return the net with the first channels of every group kept: widths alone decide its time."""
    scores = {group.name: -torch.arange(group.width, dtype=torch.float32) for group in space.variable}
    return slice_channels(net, space, select_channels(space, scores, widths))


def random_widths(space: SearchSpace, generator: np.random.Generator) -> Widths:
    """Return widths of random proportions at random FLOPs, even in log between the smallest net and the dense."""
    low, high = space.smallest_cost.flops, space.dense_cost.flops
    flops = int(np.exp(generator.uniform(np.log(1.05 * low), np.log(max(high, 1.1 * low)))))
    point = generator.uniform(0.25, 1.0, len(space.variable))
    return space.fit((point / point.max()).tolist(), [Budget("flops", flops)])


def _watch(meter: LatencyMeter) -> Watch:
    """Return what tells the time: of one thread its own, which leaves out what others take of its core meanwhile."""
    alone = meter.device.device.type == "cpu" and meter.device.threads == 1
    own = meter.watch.clock is time.perf_counter and alone
    return dataclasses.replace(meter.watch, clock=time.thread_time) if own else meter.watch


def _timed_layers(meter: LatencyMeter, space: SearchSpace) -> tuple[Layers, LayerTimer]:
    config = meter.config
    kernels, found = operations(meter.dense, space, config.batch[0])
    groups = len(space.variable)
    read, written = ([getattr(each, name) for each in found] for name in ("read", "written"))
    number = [each.kernel for each in found]
    low, high = ([group.lowest for group in space.variable], [group.width for group in space.variable])
    ranges = []
    for kernel in range(len(kernels)):
        own = [index for index, each in enumerate(number) if each == kernel]
        reads, writes = (_ends([side[index] for index in own], low, high) for side in (read, written))
        ranges.append(((reads[0], writes[0]), (reads[1], writes[1])))
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    timer = LayerTimer(meter.device.device, getattr(torch, config.dtype), form, meter.watch)
    coefficients = timer.fitted(kernels, ranges, LAYER_SECONDS)
    layers = Layers(
        names=tuple(group.name for group in space.variable),
        kernel=np.array(number, dtype=np.int64),
        read=matrix(read, groups),
        written=matrix(written, groups),
        coefficients=coefficients,
        stage=stage_numbers([each.stage for each in found]),
    )
    return layers, timer


def _ends(extents: list[Extent], low: list[int], high: list[int]) -> tuple[int, int]:
    return min(each.at(low) for each in extents), max(each.at(high) for each in extents)


def _calibrated(model: LatencyModel, meter: LatencyMeter, space: SearchSpace, dense_seconds: float) -> ModelError:
    """Have the model learn from whole nets; return its error on random widths, of which it had learned none."""
    reference = call_of(meter, meter.dense)

    def measured(widths: Widths) -> float:
        call = call_of(meter, at_widths(meter.dense, space, widths))
        return dense_seconds * brief_ratio(call, reference, meter.watch)

    flops, least = space.dense_cost.flops, space.smallest_cost.flops
    limits = [int(share * flops) for share in UNIFORM if share * flops > least]
    uniform = [space.fit(uniform_ratios(space), [Budget("flops", limit)]) for limit in limits]
    model.observe(space.full, dense_seconds)
    for widths in [*uniform, space.smallest]:
        model.observe(widths, measured(widths))
    model.errors.clear()  # of a model without its correction
    generator = np.random.default_rng(0)
    held_out = [random_widths(space, generator) for _ in range(HELD_OUT)]
    seconds = [measured(widths) for widths in held_out]
    unseen = [math.log(taken / model.predict(widths)) for widths, taken in zip(held_out, seconds, strict=True)]
    for widths, taken in zip(held_out, seconds, strict=True):
        model.observe(widths, taken)
    model.errors[:] = unseen
    return ModelError.of(unseen)


def call_of(meter: LatencyMeter, net: nn.Module) -> Call:
    """Return one inference of a net under the meter's conditions, at its first batch size."""
    if meter.config.engine == "torch.compile":
        torch.compiler.reset()  # else so many nets of one class are too many recompilations
    images = torch.zeros(meter.first_batch, *meter.shape)
    return inference(*prepared(net, images, meter.device, meter.config))


def _digest(meter: LatencyMeter, space: SearchSpace) -> str:
    """Return what tells models apart: the net's layers, what of it may vary, the conditions."""
    conditions: Conditions = meter.conditions(meter.first_batch)
    tensors = [(name, list(each.shape)) for name, each in meter.dense.state_dict().items()]
    groups = [(each.name, each.width, each.lowest, each.ceiling, each.divisor, each.fixed) for each in space.groups]
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
