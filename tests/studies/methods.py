"""All methods and baselines beside each other: python tests/studies/methods.py, under 90 minutes on two cores.

ResNet-20 on cluttered_digits at 50%, 20% and 8% of its FLOPs. All runs share one dense network, which is trained once
and cached; seeds vary the random numbers of a method and of its training. Every run sees equally many training images,
including those on which a method looks for filters. Only the images without a gradient, on which channels are scored,
are additional: at most 1024 for a method. Widths are uniform, except in rows whose method finds them. Runs go through
`runners.evaluation.evaluate` like those of a search, each on one thread.

The same command continues a study that was stopped. Validation accuracy on seeds 0 and 1 chose the learning rate (for
uniform L2) and the defaults of the methods; test accuracy is only reported.
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Rows, mean_of, print_table, rows_of, seeds_of, spread, squared_error, study_parser

from pruning.base import METHODS, Goal
from pruning.checkpoint import from_bytes
from pruning.methods.common_steps import uniform_widths
from runners.cache import cache_root
from runners.config import DataConfig, TrainConfig
from runners.data.loading import load_data
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.training.compute_format import measure_compute_format
from runners.training.dense import DenseRecipe, trained_net, weights_digest
from runners.training.scoring import accuracy
from runners.trial import Trial, TrialResult
from spaces.budget import Budget
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
BASELINE = "l2"
SHARES = (50.0, 20.0, 8.0)  # of the dense FLOPs, in percent
NOTES = "collapsed deviation deadline_cuts moves cuts weak_share exhausted latency_ratio".split()


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the table: a method with settings; `finds` says that the method chooses the widths."""

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    finds: bool = False


LINES = (
    Line("l2", "l2"),
    Line("l1", "l1"),
    Line("geometric median", "geometric_median"),
    Line("BatchNorm scale", "bn_scale"),
    Line("taylor", "taylor"),
    Line("feature rank", "feature_rank"),
    Line("chip", "chip"),
    Line("random", "random"),
    Line("scratch", "scratch"),
    Line("l2, compensated", "l2", {"compensate": True}),
    Line("l2, global widths", "l2", {"allocation": "global"}, finds=True),
    Line("di, uniform widths", "di"),
    Line("di, found widths", "di", finds=True),
    Line("csgd", "csgd"),
    Line("abfp", "abfp"),
    Line("aofp, uniform widths", "aofp"),
    Line("aofp, found widths", "aofp", finds=True),
    Line("kse, found structure", "kse", finds=True),
)


@dataclass(frozen=True)
class Job:
    """One run of a line, at a share of the dense FLOPs in percent."""

    method: str
    settings: Mapping[str, Any]
    finds: bool
    share: float
    seed: int

    @classmethod
    def of(cls, line: Line, share: float, seed: int) -> "Job":
        return cls(line.method, line.settings, line.finds, share, seed)

    def __str__(self) -> str:
        settings = "".join(f" {name}={value}" for name, value in self.settings.items())
        return f"{self.method}{settings}{', found structure' * self.finds}, {self.share:g}%, seed {self.seed}"


def set_up(epochs: int, dense_epochs: int, learning_rate: float) -> SearchContext:
    """Train or read the dense network, and return it with the data that all runs share."""
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
    recipe = DenseRecipe(spec, data, train, 0, compute_format)
    net = trained_net(
        recipe,
        cache_root(),
        on_epoch=lambda epoch, a: print(f"dense epoch {epoch}: {a:.3f}"),
    )
    return SearchContext(net, trace(net, torch.zeros(1, *SHAPE)), data, train, threads=1, compute_format=compute_format)


def prepared(search_context: SearchContext, lines: Iterable[Line]) -> SearchContext:
    """Let every method compute once the statistics that its runs share."""
    names = sorted({line.method for line in lines})
    context = TrialContext(search_context.data, search_context.train, 0, compute_format=search_context.compute_format)
    found = {name: METHODS[name]().prepare(search_context.net, search_context.space, context) for name in names}
    return dataclasses.replace(search_context, prepared=found)


def run(job: Job, search_context: SearchContext) -> dict[str, Any]:
    """Evaluate a job and return plain numbers, or the `error` of a failed one."""
    budgets = (Budget.parse(f"{job.share}%"),)
    widths = None if job.finds else uniform_widths(search_context.space, Goal(budgets=budgets))
    trial = Trial(0, job.method, Goal(widths, budgets), job.settings, job.seed)
    result = evaluated(trial, search_context)
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
        "note": {name: value for name, value in result.note.items() if name in NOTES},
    }


def evaluated(trial: Trial, search_context: SearchContext) -> TrialResult:
    """Run a trial to its end in this process."""
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


def _measure(job: Job) -> dict[str, Any]:
    return run(job, _search_context[0])


@dataclass(frozen=True)
class Cell:
    """The runs of one line at one share of the FLOPs, one for each seed."""

    runs: Sequence[Mapping[str, Any]]

    @functools.cached_property
    def test(self) -> list[float]:
        return [run["test"] for run in self.runs]

    def over(self, other: "Cell") -> str:
        """Return by how many standard errors of the difference the test accuracy is higher."""
        error = (squared_error(self.test) + squared_error(other.test)) ** 0.5
        return f" ({(statistics.fmean(self.test) - statistics.fmean(other.test)) / error:+.1f})" if error else ""

    def notes(self) -> str:
        """Describe the notes of the methods: numbers by their range over the seeds, yes and no by counts."""
        texts = []
        for name in NOTES:
            values = [run["note"][name] for run in self.runs if name in run["note"]]
            if values and isinstance(values[0], bool):
                texts.append(f"{name} {sum(values)} of {len(values)}")
            elif values:
                low, high = f"{min(values):.2g}", f"{max(values):.2g}"
                texts.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
        return ", ".join(texts)


def print_results(lines: Sequence[Line], shares: Sequence[float], seeds: range, rows: Rows) -> None:
    """Print the lines whose runs are all on file, the most accurate at the last share first."""
    cells: dict[Line, list[Cell]] = {}
    for line in lines:
        runs = [[rows.of(Job.of(line, share, seed)) for seed in seeds] for share in shares]
        found = [Cell([run for run in at_share if run is not None]) for at_share in runs]
        if all(cell.runs for cell in found):
            cells[line] = found
    baseline = next((found for line, found in cells.items() if line.label == BASELINE), None)
    per_share = " / ".join(f"{share:g}%" for share in shares)
    names = [f"{share:g}% of FLOPs" for share in shares]
    table = []
    for line, found in sorted(cells.items(), key=lambda item: -statistics.fmean(item[1][-1].test)):
        leads = ["" if baseline in (None, found) else a.over(b) for a, b in zip(found, baseline or found, strict=True)]
        entries = [line.label, *(spread(cell.test, 1, 100) + text for cell, text in zip(found, leads, strict=True))]
        entries += [" / ".join(f"{100 * mean_of(cell.runs, 'val'):.1f}" for cell in found)]
        entries += [" / ".join(f"{mean_of(cell.runs, 'seconds'):.0f}" for cell in found), found[-1].notes()]
        table.append(entries)
    title = (
        "Test accuracy in %, mean ± standard deviation over the seeds; in brackets the lead over uniform "
        f"{BASELINE} in standard errors of the difference. Flags are those at the last share."
    )
    print_table(title, ["method", *names, f"validation, {per_share}", f"seconds, {per_share}", "flags"], table, seeds)


def parsed() -> argparse.Namespace:
    parser = study_parser("methods", __doc__, seeds=3)
    parser.add_argument("--only", default="", help="lines or methods, separated by semicolons")
    parser.add_argument("--epochs", type=int, default=2, help="of every run")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of every run's schedule")
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--budgets", default=",".join(f"{share:g}" for share in SHARES), help="percent of dense FLOPs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 20%% of the FLOPs")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.epochs, chosen.budgets = 1, 1, "20"
    return chosen


def main() -> None:
    chosen = parsed()
    torch.set_num_threads(1)
    wanted = {name.strip() for name in chosen.only.split(";") if name.strip()}
    lines = [line for line in LINES if not wanted or wanted & {line.label, line.method}]
    context = set_up(chosen.epochs, chosen.dense_epochs, chosen.learning_rate)
    recipe = {"dense": weights_digest(context.net)[:12], "epochs": chosen.epochs, "rate": chosen.learning_rate}
    dense = accuracy(context.net, context.data.test, device=CPU)
    print(f"dense: {100 * dense:.1f}% of the test images, {context.space.dense_cost.flops:,} flops; recipe {recipe}")
    rows = rows_of(chosen, **recipe)
    shares = [float(share) for share in chosen.budgets.split(",")]
    jobs = [Job.of(line, share, seed) for seed in seeds_of(chosen) for line in lines for share in shares]
    rows.complete(jobs, _measure, processes=chosen.workers, start=_start, shared=(prepared(context, lines),))
    print_results(lines, shares, seeds_of(chosen), rows)


if __name__ == "__main__":
    main()
