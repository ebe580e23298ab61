"""`python -m search latency show|measure|clear`: what is kept of the latency of layers, per device and runtime."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.loading import parse_flags
from runners.cache import cache_root
from runners.latency.devices import make_meter
from runners.latency.engines import LatencyError
from runners.latency.prediction.layer_timing import TABLE_PREFIX, LayerTable
from runners.latency.prediction.model_building import build_model
from runners.training.devices import pick_device
from search.commands.arguments import CommandParser
from search.environment import alignment_of, with_latency_device
from search.reporting.wording import TextTable, make_console, milliseconds, print_parts
from spaces.errors import ExitCode
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build, default_input_shape

CLASSES = 10  # of the network that is measured; they hardly matter


def latency(arguments: Sequence[str]) -> int:
    """Show, fill or delete the tables of layers."""
    parser = CommandParser(
        "latency",
        "Tables of the time of layers, by shape and channels, per device and runtime. Searches that need latency fill "
        "them and take from them.",
    )
    parser.add_argument(
        "action",
        choices=("show", "measure", "clear"),
        help="show lists the tables; measure fills that of --latency-device with the layers of --model, and takes the "
        "flags of a search; clear deletes tables and latency models",
    )
    parser.add_argument("--shape", default="", metavar="CxHxW", help="of one image (default: that of the model)")
    read, flags = parser.parse_known_args(arguments)
    if read.action != "measure" and flags:
        parser.error(f"latency {read.action} takes no {flags[0]}")
    if read.action == "clear":
        return _clear()
    return _show() if read.action == "show" else _measure(flags, read.shape)


def _folder() -> Path:
    return cache_root() / "latency"


def _show() -> int:
    rows = []
    for path in sorted(_folder().glob(f"{TABLE_PREFIX}*.json")):
        try:
            table = LayerTable.read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            way_out = "`python -m search latency clear` deletes it"
            raise LatencyError(f"{path} cannot be read ({error}); {way_out}") from error
        timings = sum(len(found) for found in table.seconds.values())
        rows.append((*_place(table.conditions), str(len(table.seconds)), str(timings)))
    columns = ("device", "runtime", ">batch", ">shapes of layers", ">timings")
    shown = TextTable(f"Times of layers in {_folder()}", columns, rows)
    empty = f"No table of layers in {_folder()}; a search under a latency budget makes one, and `latency measure` too."
    print_parts(make_console(sys.stdout), [shown if rows else empty])
    return ExitCode.RESULT


def _place(conditions: Mapping[str, Any]) -> tuple[str, str, str]:
    versions = " ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    runtime = ", ".join(filter(None, (conditions["engine"], conditions["dtype"], versions)))
    return f"{conditions['device']} ({conditions['device_name']})", runtime, str(conditions["batch"])


def _measure(flags: Sequence[str], shape_text: str) -> int:
    """Build the latency model of a network, which fills the table of the device."""
    config = dataclasses.replace(parse_flags(flags), budget=("50%latency",))  # one that needs latency
    config = with_latency_device(config, pick_device(config.train.device))
    shape = _shape(shape_text) if shape_text else default_input_shape(config.model)
    spec = ModelSpec(config.model, CLASSES, shape, config.output, config.widen)
    net = build(spec).eval()
    space = trace(net, torch.empty(1, *shape), config.space, spec, alignment_of(config))
    meter = make_meter(config.latency, net, shape)
    dense = meter.read_at("dense", net, meter.first_batch)
    seconds = dense.seconds or meter.brief_seconds(net)
    model, building = build_model(meter, space, seconds)
    steps = f" Its latency has steps of {building.step} channels." if building.step > 1 else ""
    text = (
        f"{config.network} at {'x'.join(map(str, shape))} takes {milliseconds(seconds)} ms on {config.latency.place}. "
        f"{building.timings} timings of layers were made and {building.reused} taken from the table; with "
        f"{len(model.learned)} networks the model is off by {building.error.median:.1%} at the median, and by "
        f"{building.error.upper:.1%} at the 90% quantile.{steps}"
        + (" The model was in the cache already." if building.cached else "")
    )
    print_parts(make_console(sys.stdout), [text])
    return ExitCode.RESULT


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise LatencyError(f"--shape is {text!r} and must be channels, height and width, as in 3x64x64")
    channels, height, width = map(int, sizes)
    return channels, height, width


def _clear() -> int:
    """Delete the tables of layers and the models that were built from them; idle baselines stay."""
    found = [path for path in sorted(_folder().glob("*.json")) if not path.name.startswith("idle-")]
    for path in found:
        path.unlink()
    tables = sum(path.name.startswith(TABLE_PREFIX) for path in found)
    text = f"Deleted {tables} tables of layers and {len(found) - tables} latency models from {_folder()}."
    print_parts(make_console(sys.stdout), [text])
    return ExitCode.RESULT
