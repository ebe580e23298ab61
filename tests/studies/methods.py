"""Every method and arm beside each other: python tests/studies/methods.py, under 90 minutes on two cores.

ResNet-20 on cluttered_digits at 50%, 20% and 8% of its FLOPs. One dense net, trained once and cached, is common to
all runs; seeds vary what a method and its training draw. Every run sees equally many training images, those on which a
method looks for filters included. Only images without a gradient, on which channels are scored, come on top: at most
1024 for a method. Widths are uniform, except where a row says that they are found. Runs go through
`runners.evaluation.evaluate`, as those of a search do, each on one thread.

A finished run is a line in a file, so the same command goes on where it was stopped; lines of other recipes or of
another dense net are passed over, but those of older code are not: `--fresh` forgets them. Validation accuracy chose
the rate (for uniform L2) and the methods' defaults, on seeds 0 and 1; test accuracy only reports.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from method_runs import ROWS, Finished, Job, Row

from pruning.base import METHODS, Goal
from pruning.checkpoint import from_bytes
from pruning.methods.common_steps import uniform_widths
from runners.cache import cache_root
from runners.config import DataConfig, TrainConfig
from runners.data.loading import load_data
from runners.evaluation.evaluate import SearchContext, TrialContext, evaluate
from runners.training.compute_format import measure_compute_format
from runners.training.dense import DenseRecipe, trained_net, weights_digest
from runners.training.loop import accuracy
from runners.trial import Trial, TrialResult
from spaces.budget import Budget
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
CONTROL = "l2"
SHARES = (50.0, 20.0, 8.0)  # of the dense FLOPs, in percent
FLAGS = "collapsed deviation deadline_cuts moves cuts weak_share exhausted latency_ratio".split()


def set_up(epochs: int, dense_epochs: int, learning_rate: float) -> SearchContext:
    """Return what all runs share, with what each method prepares for all of them."""
    data = load_data(DataConfig(name="cluttered_digits"), 0, SHAPE)
    train = TrainConfig(
        epochs=epochs,
        dense_epochs=dense_epochs,
        batch_size=64,
        lr=learning_rate,
        dense_lr=0.1,
        device="cpu",
    )
    spec = ModelSpec("resnet20", data.num_classes, SHAPE)
    compute_format = measure_compute_format(build(spec), SHAPE, train.batch_size, CPU)
    recipe = DenseRecipe(spec, data, train, 0)
    net = trained_net(
        recipe,
        cache_root(),
        compute_format=compute_format,
        on_epoch=lambda epoch, a: print(f"dense epoch {epoch}: {a:.3f}"),
    )
    return SearchContext(net, trace(net, torch.zeros(1, *SHAPE)), data, train, threads=1, compute_format=compute_format)


def prepared(search_context: SearchContext, rows: Iterable[Row]) -> SearchContext:
    """Let every method compute, once, what its runs share."""
    names = sorted({row.method for row in rows})
    context = TrialContext(search_context.data, search_context.train, 0, compute_format=search_context.compute_format)
    found = {name: METHODS[name]().prepare(search_context.net, search_context.space, context) for name in names}
    return dataclasses.replace(search_context, statistics=found)


def run(job: Job, search_context: SearchContext) -> dict[str, Any]:
    """Evaluate a job and return plain numbers; `error` says why there are none."""
    budgets = (Budget.parse(f"{job.share}%"),)
    widths = None if job.row.finds else uniform_widths(search_context.space, Goal(budgets=budgets))
    trial = Trial(0, job.row.method, Goal(widths, budgets), job.row.settings, job.seed)
    result = _result(trial, search_context)
    if result.cost is None or result.checkpoint is None:
        return {"error": result.error, "seconds": result.seconds}
    net = from_bytes(result.checkpoint, search_context.net)
    return {
        "error": "",
        "val": result.accuracy,
        "test": accuracy(net, search_context.data.test, device=CPU),
        "flops": result.cost.flops,
        "seconds": result.train_seconds,
        "curve": [report.accuracy for report in result.curve],
        "note": {name: value for name, value in result.note.items() if name in FLAGS},
    }


def _result(trial: Trial, search_context: SearchContext) -> TrialResult:
    running = evaluate(trial, search_context)
    try:
        while True:
            next(running)
    except StopIteration as end:
        result: TrialResult = end.value
        return result


_search_context: list[SearchContext] = []  # of a worker process


def _start(search_context: SearchContext) -> None:
    torch.set_num_threads(1)
    _search_context.append(search_context)


def _work(job: Job) -> tuple[Job, dict[str, Any]]:
    return job, run(job, _search_context[0])


def run_all(jobs: Sequence[Job], search_context: SearchContext, finished: Finished, workers: int) -> None:
    """Run what is not finished yet, long runs and worker processes side by side."""
    missing = [job for job in jobs if finished.of(job) is None]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are on file", flush=True)
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(min(workers, max(1, len(missing))), _start, (search_context,)) as pool:
        for count, (job, outcome) in enumerate(pool.imap_unordered(_work, missing), start=1):
            finished.add(job, outcome)
            reached = outcome["error"] or f"val {outcome['val']:.4f}, {outcome['seconds']:.0f} s"
            minutes = (time.perf_counter() - began) / 60
            print(
                f"{minutes:5.1f} min {count}/{len(missing)} {job.row.label} {job.share:g}% seed {job.seed}: {reached}",
                flush=True,
            )


@dataclass(frozen=True)
class Cell:
    """The runs of one row at one share of the FLOPs."""

    row: Row
    runs: Sequence[Mapping[str, Any]]

    def mean(self, name: str) -> float:
        return statistics.fmean(each[name] for each in self.runs)

    def error(self, name: str) -> float:
        """Return the squared standard error of the mean."""
        return statistics.variance([each[name] for each in self.runs]) / len(self.runs) if len(self.runs) > 1 else 0.0

    def percent(self, name: str) -> str:
        deviation = (self.error(name) * len(self.runs)) ** 0.5
        return f"{100 * self.mean(name):.1f} ± {100 * deviation:.1f}"

    def over(self, other: "Cell") -> str:
        """Return by how many standard errors of the difference the test accuracy is higher."""
        error = (self.error("test") + other.error("test")) ** 0.5
        return f" ({(self.mean('test') - other.mean('test')) / error:+.1f})" if error else ""

    def flags(self) -> str:
        """Return what the notes say: numbers as their range over the seeds, yes and no as counts."""
        said = []
        for name in FLAGS:
            values = [each["note"][name] for each in self.runs if name in each["note"]]
            if values and isinstance(values[0], bool):
                said.append(f"{name} {sum(values)} of {len(values)}")
            elif values:
                low, high = f"{min(values):.2g}", f"{max(values):.2g}"
                said.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
        return ", ".join(said)


def print_table(rows: Sequence[Row], shares: Sequence[float], seeds: int, finished: Finished) -> None:
    """Print a line per row, the most accurate at the last share first."""
    lines: dict[Row, list[Cell]] = {}
    for row in rows:
        runs = [[finished.of(Job(row, share, seed)) for seed in range(seeds)] for share in shares]
        cells = [Cell(row, [each for each in found if each is not None]) for found in runs]
        if all(cell.runs for cell in cells):
            lines[row] = cells
    control = next((cells for row, cells in lines.items() if row.label == CONTROL), None)
    print(f"\nTest accuracy in %, mean ± standard deviation over {seeds} seeds; in brackets the lead over uniform")
    print(f"{CONTROL} in standard errors of the difference. Flags are those at the last share.\n")
    per_share = " / ".join(f"{share:g}%" for share in shares)
    names = [f"{share:g}% of FLOPs" for share in shares]
    print("| " + " | ".join(["method", *names, f"validation, {per_share}", f"seconds, {per_share}", "flags"]) + " |")
    print("|---" * (len(shares) + 4) + "|")
    for row, cells in sorted(lines.items(), key=lambda line: -line[1][-1].mean("test")):
        leads = ["" if control in (None, cells) else a.over(b) for a, b in zip(cells, control or cells, strict=True)]
        entries = [row.label, *(cell.percent("test") + lead for cell, lead in zip(cells, leads, strict=True))]
        entries += [" / ".join(f"{100 * cell.mean('val'):.1f}" for cell in cells)]
        entries += [" / ".join(f"{cell.mean('seconds'):.0f}" for cell in cells), cells[-1].flags()]
        print("| " + " | ".join(entries) + " |")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows or methods, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of every run")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of every run's schedule")
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--budgets", default=",".join(f"{share:g}" for share in SHARES), help="percent of dense FLOPs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="file of finished runs; default: in the cache folder")
    parser.add_argument("--fresh", action="store_true", help="forget the runs on file")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 20%% of the FLOPs")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.epochs, chosen.budgets = 1, 1, "20"
    return chosen


def main() -> None:
    chosen = parsed()
    torch.set_num_threads(1)
    wanted = {name.strip() for name in chosen.only.split(";") if name.strip()}
    rows = [row for row in ROWS if not wanted or wanted & {row.label, row.method}]
    search_context = set_up(chosen.epochs, chosen.dense_epochs, chosen.learning_rate)
    recipe = f"{weights_digest(search_context.net)[:12]}, {chosen.epochs} epochs, {chosen.learning_rate:g}"
    dense = accuracy(search_context.net, search_context.data.test, device=CPU)
    print(
        f"dense: {100 * dense:.1f}% of the test images, {search_context.space.dense_cost.flops:,} flops; recipe {recipe}"
    )
    path = chosen.out or cache_root() / "benchmarks" / "methods.jsonl"
    if chosen.fresh:
        path.unlink(missing_ok=True)
    finished = Finished(path, recipe)
    shares = [float(each) for each in chosen.budgets.split(",")]
    jobs = [Job(row, share, seed) for seed in range(chosen.seeds) for row in rows for share in shares]
    run_all(jobs, prepared(search_context, rows), finished, chosen.workers)
    print_table(rows, shares, chosen.seeds, finished)


if __name__ == "__main__":
    main()
