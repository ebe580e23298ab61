"""Searches, single methods and other libraries at equal training: python tests/studies/equal_training.py, resumable.

A cell is a network on an image set. In every cell a search answers four targets at once with B epochs of training in
all. Beside it stand arms, that is one method used once: each target has a run of its own from the dense network with
B / 4 epochs, which is B in all too. Peers are arms by other libraries (`peers.py`). All of them start from the same
dense weights, use the same training loop and learning rate, and have the same images; each on one thread. A first table
compares arms and peers after two epochs at every target; the peers that are best there on validation also get the long
training.

Every seed has its own split of the training images and its own dense network, which is trained out first and not
counted. Validation accuracy chooses the learning rate of a cell (for uniform L2, from RATES, at the first seed) and the
networks of a search. Test images are read once for each network of a table.

Cells are measured one after the other, and every table is printed as soon as its runs are on file. By the time of an
epoch the default takes about 2.5 hours on two quiet cores, `--short` about 5 minutes. `--parts` chooses what is
measured: short, long, search and ablation, that is searches with one part switched off (VARIANTS).
"""

import argparse
import itertools
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peers
import torch
from cell_runs import BATCH, NETWORKS, Dense, Run, Setup, format_of, measure, network_of, start
from fronts import finished_search, outcome_of
from harness import Rows, lead, mean_and_error, mean_of, print_table, rows_of, seeds_of, study_parser

from runners.cache import cache_root
from runners.training.dense import cached_file

SETS = ("glyphs", "cluttered_digits")
CELLS = tuple(f"{network}/{images}" for network in NETWORKS for images in SETS)
PARTS = ("short", "long", "search", "ablation")
SHORT_EPOCHS = 2
RATES = (0.02, 0.05, 0.12)
RATE_TARGETS = slice(1, None, 2)  # the second target, and of four the last, for which the learning rate is chosen;
# of a single target, that one
OWN, BASELINE, SEARCH = "di, own widths", "l2, uniform", "search"

COMPARED = (OWN, "di, uniform", BASELINE)  # arms that stand beside the search; `methods.py` compares all of them

# Flags of `python -m search` by the name of a line, besides those of every search.
VARIANTS: dict[str, tuple[str, ...]] = {
    SEARCH: (),
    "without inheritance": ("--inherit", "false"),
    "without final training": ("--final-epochs", "none"),
    "without screening": ("--screen", "none"),
    "without searched widths": ("--allocation", "method"),
    "uniform widths only": ("--method", "di", "--allocation", "method", "--set", "di.allocation=uniform"),
    "without distillation": ("--final-distill-weight", "0"),
    "distillation by half": ("--final-distill-weight", "0.5"),
    "without rescaled weights": ("--rescale-weights", "none"),
}


@dataclass(frozen=True)
class Search:
    """A search for all targets; `budget` holds the flags that set its training."""

    cell: str
    variant: str
    targets: tuple[float, ...]
    budget: tuple[str, ...]
    rate: float
    seed: int


def run_search(job: Search, setup: Setup) -> dict[str, Any]:
    """Run a search, or go on with one that was stopped, and return what it gives at each target."""
    network = NETWORKS[network_of(job.cell)]
    recipe = replace(setup.recipe(job.cell, job.seed), compute_format=format_of(network_of(job.cell)))
    weights = cached_file(recipe, cache_root())
    flags = ["--model", network.model, "--weights", str(weights), "--data", setup.data_name(job.cell)]
    flags += ["--image-size", str(network.side), "--targets", ",".join(f"{target:g}" for target in job.targets) + "%"]
    flags += ["--lr", f"{job.rate:g}", "--batch-size", str(BATCH), "--seed", str(job.seed), "--device", "cpu"]
    flags += ["--latency-device", "none", *job.budget, *VARIANTS[job.variant]]
    words = [job.cell, f"seed{job.seed}", job.variant, *job.budget, f"{job.rate:g}", f"{setup.images}images"]
    folder = setup.folder / "searches" / "-".join(words).replace("/", "-").replace(" ", "-")
    found = outcome_of(finished_search(folder, flags), job.targets)
    reached = {"val": list(found.val.values()), "test": list(found.test.values())}
    return {**reached, "epochs": found.epochs, "minutes": found.minutes}


@dataclass(frozen=True)
class Line:
    """The line of an arm, a peer or a search in a table.

    Attributes:
        test, val: per seed, the accuracies at the targets; seeds and targets are in the same order in all lines.
        epochs: of training in all, mean over the seeds.
    """

    name: str
    test: Sequence[Sequence[float]]
    val: Sequence[Sequence[float]]
    epochs: float

    @property
    def means(self) -> list[float]:
        """Mean test accuracy over the targets, per seed."""
        return [statistics.fmean(per_target) for per_target in self.test]

    def at(self, index: int) -> list[float]:
        """Test accuracy at a target, per seed."""
        return [per_target[index] for per_target in self.test]


def table_of(lines: Iterable[Line], ours: Line | None, targets: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of a table, the best first; brackets hold the lead of `ours`, paired by seed."""

    def entry(theirs: Sequence[float], own: Sequence[float] | None, ahead: bool) -> str:
        return mean_and_error(theirs, 1, 100) + (f" ({lead(own, theirs, 1, 100)})" if own and ahead else "")

    table = []
    for line in sorted(lines, key=lambda line: -statistics.fmean(line.means)):
        ahead = ours is not None and line.name != ours.name
        entries = [entry(line.at(index), ours and ours.at(index), ahead) for index in range(len(targets))]
        entries.append(entry(line.means, ours and ours.means, ahead))
        val = [statistics.fmean(column) for column in zip(*line.val, strict=True)]
        entries += [" / ".join(f"{100 * mean:.1f}" for mean in val), f"{line.epochs:.0f}"]
        table.append([line.name, *entries])
    return ["", *(f"test at {target:g}%" for target in targets), "mean", "validation", "epochs"], table


@dataclass(frozen=True)
class Study:
    """The jobs of the study, and the rows of what was measured for them.

    Attributes:
        epochs: training in all of a search, and of an arm over all targets.
        budget: flags of a search that set this training.
    """

    setup: Setup
    rows: Rows
    seeds: range
    targets: tuple[float, ...]
    epochs: int
    budget: tuple[str, ...]
    workers: int

    @property
    def share(self) -> int:
        """Epochs of an arm at each target."""
        return self.epochs // len(self.targets)

    def complete(self, jobs: Sequence[Dense | Run]) -> None:
        """Measure jobs of one cell that have no row."""
        if any(self.rows.of(job) is None for job in jobs):
            shared = (self.setup, format_of(network_of(jobs[0].cell)))
            self.rows.complete(jobs, measure, processes=self.workers, start=start, shared=shared)

    def dense(self, cell: str) -> None:
        """Train the dense networks; print their accuracy, and whether they were still improving."""
        jobs = [Dense(cell, seed) for seed in self.seeds]
        self.complete(jobs)
        rows = [row for job in jobs if (row := self.rows.of(job))]
        if len(rows) < len(jobs):
            raise SystemExit(f"a dense network of {cell} could not be trained")
        print(
            f"\n## {cell}\n\ndense: test {mean_and_error([row['test'] for row in rows], 1, 100)}, "
            f"{rows[0]['flops']:,} flops; validation {late_gain(rows)} in the last quarter of its training",
            flush=True,
        )

    def rate(self, cell: str, epochs: int) -> float:
        """Return the learning rate at which uniform L2 has the highest mean validation accuracy at RATE_TARGETS."""
        chosen_at = self.targets[RATE_TARGETS] or self.targets
        runs = {
            rate: [Run(cell, BASELINE, target, epochs, rate, self.seeds[0]) for target in chosen_at] for rate in RATES
        }
        self.complete(list(itertools.chain(*runs.values())))
        val = {
            rate: mean_of([self.rows.of(run) or {"val": 0.0} for run in of_rate], "val")
            for rate, of_rate in runs.items()
        }
        chosen = max(val, key=lambda rate: val[rate])
        found = ", ".join(f"{100 * reached:.1f} at {rate:g}" for rate, reached in val.items())
        print(
            f"{cell}, {epochs} epochs: learning rate {chosen:g}, by the validation of {BASELINE}: {found}", flush=True
        )
        return chosen

    def train(self, cell: str, arms: Sequence[str], epochs: int, rate: float) -> None:
        """Train arms or peers: seed by seed, and within a seed the largest networks first."""
        jobs = itertools.product(self.seeds, self.targets, arms)
        self.complete([Run(cell, arm, target, epochs, rate, seed) for seed, target, arm in jobs])

    def search(self, cell: str, variants: Iterable[str], rate: float) -> None:
        """Run searches one after the other, because each uses all cores."""
        for seed, variant in itertools.product(self.seeds, variants):
            job = Search(cell, variant, self.targets, self.budget, rate, seed)
            row = self.rows.measured(job, lambda job=job: run_search(job, self.setup))
            print(f"{job}: {row['epochs']:.1f} epochs in {row['minutes']:.1f} minutes", flush=True)

    def line(self, cell: str, arm: str, epochs: int, rate: float) -> Line | None:
        """Return the line of an arm or a peer; None while a run is missing."""
        of_seed = [
            [self.rows.of(Run(cell, arm, target, epochs, rate, seed)) for target in self.targets] for seed in self.seeds
        ]
        if any(row is None for of_target in of_seed for row in of_target):
            return None
        test, val = ([[row[name] for row in of_target if row] for of_target in of_seed] for name in ("test", "val"))
        return Line(arm, test, val, float(epochs * len(self.targets)))

    def search_line(self, cell: str, variant: str, rate: float) -> Line | None:
        """Return the line of the searches of a variant; None while one is missing."""
        found = [self.rows.of(Search(cell, variant, self.targets, self.budget, rate, seed)) for seed in self.seeds]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            return None
        return Line(variant, [row["test"] for row in rows], [row["val"] for row in rows], mean_of(rows, "epochs"))

    def show(self, title: str, lines: Sequence[Line], ours: str) -> None:
        """Print a table; brackets hold the lead of the line called `ours`."""
        own = next((line for line in lines if line.name == ours), None)
        brackets = f"; in brackets the lead of {ours!r} in points ± standard error, paired by seed" if own else ""
        head, table = table_of(lines, own, self.targets)
        print_table(f"{title}. Test accuracy in %, mean ± standard error{brackets}", head, table, self.seeds)


def late_gain(rows: Iterable[dict[str, Any]]) -> str:
    """Return by how many points the curves of dense trainings rose over their last quarter, as a mean."""
    curves = [row["curve"] for row in rows if row["curve"]]
    gains = [curve[-1] - curve[len(curve) * 3 // 4 - 1] for curve in curves]
    return f"{100 * statistics.fmean(gains):+.1f} points" if gains else "not recorded"


def present(names: Iterable[str], line_of: Callable[[str], Line | None]) -> list[Line]:
    """Return the lines whose runs are all on file, and name the others."""
    found = {name: line_of(name) for name in names}
    if missing := [name for name, line in found.items() if line is None]:
        print(f"\nWithout all of their runs: {'; '.join(missing)}.")
    return [line for line in found.values() if line is not None]


def best_peers(lines: Sequence[Line], count: int) -> list[str]:
    """Return the `count` variants of torch-pruning of the highest mean validation accuracy, and FastNAS if it ran."""
    validation = {line.name: statistics.fmean(itertools.chain(*line.val)) for line in lines}
    ranked = sorted((name for name in validation if name in peers.TORCH_PRUNING), key=lambda name: -validation[name])
    return [*ranked[:count], *(name for name in validation if name == peers.FASTNAS)]


def short_table(study: Study, cell: str, measured: bool) -> list[Line]:
    """Compare arms and peers after two epochs at every target."""
    rate, arms = study.rate(cell, SHORT_EPOCHS), (*COMPARED, *peers.names())
    if measured:
        study.train(cell, arms, SHORT_EPOCHS, rate)
    lines = present(arms, lambda arm: study.line(cell, arm, SHORT_EPOCHS, rate))
    study.show(f"{cell} after {SHORT_EPOCHS} epochs at every target", lines, OWN)
    return lines


def long_table(study: Study, cell: str, rivals: Sequence[str], parts: Sequence[str]) -> list[Line]:
    """Compare searches with arms and peers at equal training in all."""
    rate, arms = study.rate(cell, study.share), (*COMPARED, *rivals)
    if "long" in parts:
        study.train(cell, arms, study.share, rate)
    if "search" in parts:
        study.search(cell, [SEARCH], rate)
    lines = present(arms, lambda arm: study.line(cell, arm, study.share, rate))
    lines += present([SEARCH], lambda variant: study.search_line(cell, variant, rate))
    study.show(f"{cell}, {study.epochs} epochs in all", lines, SEARCH)
    if "ablation" in parts:
        study.search(cell, VARIANTS, rate)
        variants = present(VARIANTS, lambda variant: study.search_line(cell, variant, rate))
        study.show(f"{cell}, searches with a part switched off", variants, SEARCH)
    return lines


def over_cells(per_cell: dict[str, list[Line]], name: str, index: int | None) -> list[float] | None:
    """Return the lead of the search over a line as a mean over the cells that have both, per seed; None without one.

    Args:
        index: of the target; None takes the mean over the targets.
    """
    leads = []
    for lines in per_cell.values():
        by_name = {line.name: line.means if index is None else line.at(index) for line in lines}
        if name in by_name and SEARCH in by_name:
            leads.append([own - other for own, other in zip(by_name[SEARCH], by_name[name], strict=True)])
    return [statistics.fmean(of_seed) for of_seed in zip(*leads, strict=True)] if leads else None


def show_leads(per_cell: dict[str, list[Line]], study: Study) -> None:
    """Print the lead of the search over every line as a mean over the cells."""
    table = []
    for name in dict.fromkeys(line.name for lines in per_cell.values() for line in lines if line.name != SEARCH):
        found = [over_cells(per_cell, name, index) for index in (*range(len(study.targets)), None)]
        cells = sum({name, SEARCH} <= {line.name for line in lines} for lines in per_cell.values())
        if cells:
            table.append([name, str(cells), *(lead(leads, [0.0] * len(leads), 1, 100) for leads in found if leads)])
    head = ["lead of the search over", "cells", *(f"at {target:g}%" for target in study.targets), "mean"]
    if table:
        print_table("Points of test accuracy ± standard error, means over the cells", head, table, study.seeds)


def parsed() -> argparse.Namespace:
    parser = study_parser("equal_training", __doc__, seeds=3)
    parser.add_argument("--cells", default=",".join(CELLS), help="NETWORK/SET, separated by commas")
    parser.add_argument("--parts", default="short,long,search", help=f"of {','.join(PARTS)}; the others are only shown")
    parser.add_argument("--targets", default="50,20,8,3", help="percent of the dense FLOPs")
    parser.add_argument("--epochs", type=int, default=48, help="of a search, and of an arm over all targets")
    parser.add_argument("--images", type=int, default=2000, help="training images, of which a fifth is for validation")
    parser.add_argument("--dense-epochs", type=int, default=0, help="of every dense network; default: its own number")
    parser.add_argument("--long-peers", type=int, default=1, help="variants of torch-pruning with the long training")
    parser.add_argument("--search-budget", default="", help="flags of a search; default: --train-budget EPOCHSepochs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, for all but searches")
    parser.add_argument("--short", action="store_true", help="one seed of one cell with few images and epochs")
    chosen = parser.parse_args()
    if chosen.short:
        chosen.seeds, chosen.cells, chosen.epochs, chosen.images, chosen.dense_epochs = 1, CELLS[0], 16, 600, 20
    return chosen


def study_of(chosen: argparse.Namespace) -> Study:
    targets = tuple(sorted((float(target) for target in chosen.targets.split(",")), reverse=True))
    setup = Setup(chosen.images, chosen.dense_epochs, cache_root() / "studies" / "equal_training")
    budget = tuple(shlex.split(chosen.search_budget)) or ("--train-budget", f"{chosen.epochs}epochs")
    rows = rows_of(chosen, images=chosen.images, dense_epochs=chosen.dense_epochs)
    return Study(setup, rows, seeds_of(chosen), targets, chosen.epochs, budget, chosen.workers)


def main() -> None:
    chosen = parsed()
    torch.set_num_threads(1)  # as in the processes that train, for the compute format
    study, parts = study_of(chosen), chosen.parts.split(",")
    if peers.FASTNAS not in peers.names():
        print(f"{peers.FASTNAS} is left out: nvidia-modelopt is not installed")
    per_cell = {}
    for cell in chosen.cells.split(","):
        study.dense(cell)
        short = short_table(study, cell, "short" in parts)
        per_cell[cell] = long_table(study, cell, best_peers(short, chosen.long_peers), parts)
    show_leads(per_cell, study)


if __name__ == "__main__":
    main()
