"""Do networks measured on a busy machine keep a latency budget? python tests/studies/busy_machine.py, resumable.

A case is a search under `50%latency` on a machine that has never measured: its cache is empty. Accuracies are a
formula, so that nothing is trained, and everything about latency is real: the dense network, the latency model and all
readings, on one thread. Half of the cases have a neighbour: a process per core that computes and
copies memory for random times and then rests for random times. When the search has ended the neighbour is stopped, and
every network of the front is measured again. A case is inside when the ratios of all its networks to the dense one are
inside the budget, and the largest uses the budget when its ratio is above 85% of it.

On a machine that other programs share the measurement afterwards is not quiet either. It then stands on the ratio
alone, and the table says by how much the dense network was slower than the search took it to be on the idle machine.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import Rows, print_table, rows_of, seeds_of, study_parser

sys.path.insert(0, str(Path(__file__).parents[1]))

from made_up_latency import NamedFiles
from made_up_search import problem_of, search_of

from runners.config import LatencyConfig
from runners.latency.meter import Meter, Reading
from runners.latency.prediction.model_building import at_widths
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import TrialResult
from search.callbacks import SearchCallback
from search.latency.calibration import calibrate_latency
from search.results.pareto import is_unclear
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build, default_input_shape

SHARE = 0.5
USED = 0.85  # of the budget, which the largest network of a front must use
AFTERWARDS = 2  # readings of each network, whose mean ratio counts
BUSY_SECONDS, IDLE_SECONDS = 0.4, 0.4  # of a neighbour, means of exponential times


@dataclasses.dataclass(frozen=True)
class Case:
    """A search beside a neighbour, or alone."""

    neighbour: bool
    model: str
    trials: int
    seed: int


def disturb(seed: int) -> None:
    """Load a core at random until this process is killed."""
    generator = random.Random(seed)
    matrix, block = np.ones((256, 256), np.float32), np.ones(4_000_000, np.float32)
    while True:
        ends = time.perf_counter() + generator.expovariate(1 / BUSY_SECONDS)
        while time.perf_counter() < ends:
            matrix @ matrix
            block.copy()
        time.sleep(generator.expovariate(1 / IDLE_SECONDS))


@contextlib.contextmanager
def neighbours(seed: int) -> Iterator[None]:
    """Load every core inside the block."""
    started = []
    for core in sorted(os.sched_getaffinity(0)):
        command = [sys.executable, __file__, "--disturb", str(1000 * seed + core)]
        started.append(subprocess.Popen(["taskset", "-c", str(core), *command]))
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_case(case: Case) -> dict[str, Any]:
    """Search, and measure the front afterwards; return what the table shows."""
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SLIMFRONT_CACHE"] = cache
        with neighbours(case.seed) if case.neighbour else contextlib.nullcontext():
            meter, net, search = searched(case)
        seconds = time.perf_counter() - began
        ratios, slowdowns = {}, list[float]()
        for network in search.front:
            narrow = at_widths(net, search.problem.space, network.widths)
            readings = [meter.read_at(network.label, narrow, 1) for _ in range(AFTERWARDS)]
            ratios[network.label] = statistics.fmean(reading.ratio for reading in readings if reading.ratio)
            slowdowns += [reading.slowdown for reading in readings if reading.slowdown]
    unclear = sum(is_unclear(network, search.problem.budgets) for network in search.results)
    return {
        "ratios": ratios,
        "unclear": unclear,
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "slowdown": statistics.median(slowdowns) if slowdowns else None,
    }


def searched(case: Case) -> tuple[Meter, torch.nn.Module, Any]:
    """Search as the command does, but with accuracies of a formula; return the meter, the dense network, the search."""
    shape = default_input_shape(case.model)
    spec = ModelSpec(case.model, 10, shape)
    net = build(spec).eval()
    space = trace(net, torch.zeros(1, *shape), spec=spec)
    problem = problem_of(space, [f"{100 * SHARE:g}%latency"], trials=case.trials, seed=case.seed)
    config = dataclasses.replace(problem.config, latency=LatencyConfig("cpu:1thread", (1,)))
    environment = SimpleNamespace(
        problem=problem, config=config, net=net, data=SimpleNamespace(input_shape=shape), folder=Path()
    )
    latency = calibrate_latency(environment, SearchCallback())
    assert latency is not None

    def read(network: TrialResult) -> list[Reading]:
        return [latency.meter.read_at(network.label, at_widths(net, space, network.widths), 1)]

    search = search_of(latency.predictor.problem, latency.predictor, read=read, checkpoints=NamedFiles())
    SimulatedRunner(outcome=SaturatingAccuracy(space)).run(search, None)
    return latency.meter, net, search


def line_of(name: str, found: list[Mapping[str, Any]]) -> list[str]:
    """Return the line of the cases with or without a neighbour."""
    ratios = [list(row["ratios"].values()) for row in found]
    kept = sum(bool(of_case) and max(of_case) <= SHARE for of_case in ratios)
    used = sum(bool(of_case) and max(of_case) > USED * SHARE for of_case in ratios)
    networks = [ratio for of_case in ratios for ratio in of_case]
    inside = sum(ratio <= SHARE for ratio in networks)
    largest = [max(of_case) / SHARE for of_case in ratios if of_case]
    slowdowns = [row["slowdown"] for row in found if row["slowdown"]]
    return [
        name,
        f"{kept} of {len(found)}",
        f"{inside} of {len(networks)}",
        f"{used} of {len(found)}",
        f"{100 * min(largest):.1f} to {100 * max(largest):.1f}%" if largest else "-",
        f"{sum(row['unclear'] for row in found)}",
        f"{statistics.median(slowdowns):.2f}" if slowdowns else "-",
        f"{statistics.median(row['seconds'] for row in found):.0f}",
    ]


def main() -> None:
    parser = study_parser("busy_machine", __doc__, seeds=20)
    parser.add_argument("--model", default="resnet20", help="of the zoo")
    parser.add_argument("--trials", type=int, default=6, help="of a search")
    parser.add_argument("--cases", choices=("all", "neighbour", "alone"), default="all")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no case begins")
    parser.add_argument("--disturb", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.disturb is not None:
        disturb(chosen.disturb)
    torch.set_num_threads(1)
    rows: Rows = rows_of(chosen)
    ends = time.monotonic() + 60 * chosen.minutes
    pairs = itertools.product(seeds_of(chosen), (True, False))
    cases = [Case(neighbour, chosen.model, chosen.trials, seed) for seed, neighbour in pairs]
    asked = {"all": cases, "neighbour": cases[::2], "alone": cases[1::2]}[chosen.cases]
    for case in asked:
        if rows.of(case) is None and time.monotonic() < ends:
            row = rows.add(case, run_case(case))
            shown = ", ".join(f"{100 * ratio / SHARE:.1f}%" for ratio in row["ratios"].values()) or "no network"
            print(f"{case}: {shown} of the budget, searched in {row['seconds']:.0f} s", flush=True)
    columns = ("", "cases inside", "networks inside", "largest over 85%", "largest", "unclear", "slowdown", "seconds")
    lines = []
    for name, neighbour in (("with a neighbour", True), ("alone", False)):
        found = [row for case in cases if case.neighbour == neighbour and (row := rows.of(case))]
        lines += [line_of(name, found)] if found else []
    print_table(f"{chosen.model} under {100 * SHARE:g}%latency, measured afterwards", columns, lines)


if __name__ == "__main__":
    main()
