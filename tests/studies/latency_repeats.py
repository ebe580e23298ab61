"""Does a latency repeat from process to process, and while other programs keep every core busy?

    python tests/studies/latency_repeats.py [--model resnet20] [--latency-device cpu:1thread] [--part all]

Measures one net (half the FLOPs) beside the dense one in three separate processes, first as the machine is, then
while other processes keep every core busy. It prints each reading and how far the processes are apart, both corrected
by the idle baseline (which processes record in the cache) and as the clock showed it. It ends with 1 when accepted
readings differ by more than 5%, those under load included, or when the machine is too busy to judge.

The part `places` tells why a reading is taken at many places in memory: it prints by how much ratios of that net to the
dense one differ when they are measured again and again at one place, and when each is measured at a new one.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
AGREE = 0.05
PROCESSES = 3
PLACES, PLACE_TURNS = 16, 27  # enough turns that what differs is the places


def measure(model: str, config_text: str) -> None:
    """Measure in this process and print the readings as a line of JSON."""
    import torch

    from runners.config import LatencyConfig
    from runners.latency.meter import LatencyMeter, to_plain
    from spaces.space import ModelSpec
    from spaces.tracing.tracer import trace
    from spaces.zoo.models import build, default_input_shape

    options = json.loads(config_text)
    options["batch"] = tuple(options["batch"])
    shape = default_input_shape(model)
    spec = ModelSpec(model, 10, shape)
    torch.manual_seed(0)
    dense = build(spec).eval()
    narrow = narrowed(dense, trace(dense, torch.zeros(1, *shape), spec=spec))
    meter = LatencyMeter(LatencyConfig(**options), dense, shape)
    print(json.dumps([to_plain(meter.read("dense", dense)), to_plain(meter.read("half", narrow))]))


def measure_places(model: str, config_text: str) -> None:
    """Measure ratios at one place and at new ones, and print how much they differ."""
    import torch

    from runners.config import LatencyConfig
    from runners.latency.engines import keep_freed_memory, parse_device, prepare
    from runners.latency.meter import watch_of
    from runners.latency.timing import brief_seconds, inference, place_ratio
    from spaces.space import ModelSpec
    from spaces.tracing.tracer import trace
    from spaces.zoo.models import build, default_input_shape

    options = json.loads(config_text)
    config = LatencyConfig(**{**options, "batch": tuple(options["batch"])})
    device, shape = parse_device(config.device), default_input_shape(model)
    torch.set_num_threads(device.threads)
    keep_freed_memory()
    dense = build(ModelSpec(model, 10, shape)).eval()
    images, watch = torch.zeros(config.batch[0], *shape), watch_of(device)
    narrow = narrowed(dense, trace(dense, images[:1], spec=ModelSpec(model, 10, shape)))
    placements = [prepare(net, images, device, config) for net in (narrow, dense)]
    with torch.no_grad():
        for title, anew in (("at one place", False), ("each at a new place", True)):
            calls = [inference(*placement()) for placement in placements]
            ratios = []
            for _ in range(PLACES):
                if anew:
                    calls = [inference(*placement()) for placement in placements]
                times = [max(1, round(0.01 / brief_seconds(call, watch))) for call in calls]
                ratios.append(place_ratio((calls[0], calls[1]), times, PLACE_TURNS, watch)[0])
            deviation = statistics.stdev(ratios) / statistics.fmean(ratios)
            print(
                f"{model}, {PLACES} ratios {title}: {statistics.fmean(ratios):.1%} of dense, deviation {deviation:.1%}"
            )


def narrowed(dense, space):
    """Return the net at half the FLOPs, with uniform width ratios and the first channels of every group."""
    import torch

    from pruning.rewriting.surgery import slice_channels
    from pruning.selection import select_channels
    from spaces.budget import Budget
    from spaces.space import uniform_ratios

    widths = space.fit(uniform_ratios(space), [Budget("flops", space.dense_cost.flops // 2)])
    scores = {group.name: -torch.arange(group.width, dtype=torch.float32) for group in space.variable}
    return slice_channels(dense, space, select_channels(space, scores, widths))


def busy(parent: int) -> None:
    """Keep a core busy until the parent process ends."""
    while os.getppid() == parent:
        sum(range(100_000))


@contextmanager
def loaded(cores: int) -> Iterator[None]:
    """Keep every core busy inside the block."""
    others = [multiprocessing.Process(target=busy, args=(os.getpid(),), daemon=True) for _ in range(cores)]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.terminate()
            process.join()


def readings_of(model: str, options: dict[str, object]) -> list[dict[str, object]]:
    """Measure in a process of its own; print and return its readings, dense first."""
    command = [sys.executable, __file__, "--model", model, "--child", json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    readings = [reading for network in json.loads(done.stdout.splitlines()[-1]) for reading in network]
    print("\n".join(["a process:", *map(shown, readings)]), flush=True)
    return readings


def shown(reading: dict[str, object]) -> str:
    """Describe a reading."""
    name = f"  {reading['network']:<6} batch {reading['conditions']['batch']}"
    if reading["refused"]:
        return f"{name}: refused after {reading['tries']} tries: {reading['refused']}"
    low, high = 1e3 * reading["low"], 1e3 * reading["high"]
    middle = 1e3 * reading["seconds"]
    ratio, slowdown, tries = reading["ratio"], reading["slowdown"], reading["tries"]
    unsteady = f", unsteady: {reading['unsteady']}" if reading["unsteady"] else ""
    return (
        f"{name}: {middle:.4g} ms ({low:.4g} to {high:.4g}), {ratio:.1%} of dense, slowdown {slowdown:.3f}, "
        f"try {tries}{unsteady}"
    )


def spread(readings: Sequence[dict[str, object]], *, clock: bool = False) -> float | None:
    """Return largest over smallest of the accepted readings, minus one; None for fewer than two.

    Args:
        clock: compare the seconds that the clock showed, not the corrected ones.
    """
    accepted = [reading for reading in readings if not reading["refused"]]
    good = [reading["seconds"] * (reading["slowdown"] if clock else 1) for reading in accepted]
    return max(good) / min(good) - 1 if len(good) > 1 else None


def compare(title: str, runs: Sequence[list[dict[str, object]]], others: Sequence[dict[str, object]] = ()) -> bool:
    """Print how far several processes are apart; return whether their accepted readings and `others` agree."""
    fine = True
    for row in zip(*runs, strict=True):
        key = row[0]["network"], row[0]["conditions"]["batch"]
        same = [other for other in others if (other["network"], other["conditions"]["batch"]) == key]
        apart, given = spread([*row, *same]), sum(not reading["refused"] for reading in row)
        fine = fine and (apart is None or apart <= AGREE)
        far = "nothing to compare"
        if apart is not None:
            far = f"{apart:.1%} apart, {spread([*row, *same], clock=True):.1%} by the clock"
            far += " (with the idle ones)" if same else ""
        print(f"{title}: {key[0]} at batch {key[1]}: {given} of {len(row)} given out, {far}")
    return fine


def main() -> int:
    """Return 0 when all accepted readings agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--latency-device", default="cpu:1thread")
    parser.add_argument("--latency-batch", default="1,8")
    parser.add_argument("--latency-engine", default="eager")
    parser.add_argument("--part", choices=("idle", "busy", "places", "all"), default="all")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        measure(flags.model, flags.child)
        return 0
    batches = [int(text) for text in flags.latency_batch.split(",")]
    options = {"device": flags.latency_device, "batch": batches, "engine": flags.latency_engine}
    fine, idle = True, []
    if flags.part in ("places", "all"):
        measure_places(flags.model, json.dumps(options))
    if flags.part == "places":
        return 0
    if flags.part in ("idle", "all"):
        idle = [readings_of(flags.model, options) for _ in range(PROCESSES)]
        fine = compare("as it is", idle)
        if any(spread(row) is None for row in zip(*idle, strict=True)):
            print("the machine is too busy to say whether readings agree; run it again on an idle one")
            return 1
    if flags.part in ("busy", "all"):
        with loaded(os.cpu_count() or 1):
            under_load = [readings_of(flags.model, options) for _ in range(PROCESSES)]
        fine &= compare("every core busy", under_load, [reading for run in idle for reading in run])
    print("readings that were given out agree" if fine else f"readings that were given out differ by over {AGREE:.0%}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
