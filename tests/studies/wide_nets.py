"""Whether a wide network, pruned back, is better than the normal one that was trained as long.

    python tests/studies/wide_nets.py redesign     # AOFP's re-design: widen, prune back to the normal network's FLOPs
    python tests/studies/wide_nets.py redundancy   # C-SGD's redundancy: a wide network trained into the normal widths
    python tests/studies/wide_nets.py redesign --short

The wide network has `--widen` times all widths, is trained for `--dense-epochs` and pruned for `--epochs`, a method's
own training included; the normal network is trained for the sum of both, so every row has seen equally many images. An
epoch of the wide network costs more: the column of training says how much, over that of the normal network. In
`redesign` methods find their widths within the normal network's FLOPs, in `redundancy` they get its widths. Every seed
has its own split, initial weights and training. The same command continues a study that was stopped. Validation is read
beside test; nothing is chosen by either.
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from cell_runs import evaluated
from harness import mean_and_error, print_table, rows_of, seeds_of, study_parser

from pruning.base import Goal
from pruning.checkpoint import from_bytes
from runners.cache import cache_root
from runners.config import DataConfig, TrainConfig
from runners.data.loading import load_data
from runners.evaluation.context import SearchContext
from runners.training.dense import DenseRecipe, trained_net
from runners.training.scoring import accuracy
from runners.trial import Trial
from spaces.budget import Budget
from spaces.space import ModelSpec, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
NORMAL, WIDE = "normal network, trained as long", "wide network, not pruned"
# study -> row -> method that prunes the wide network; None for a network that is only trained
STUDIES: Mapping[str, Mapping[str, str | None]] = {
    "redesign": {
        NORMAL: None, WIDE: None, "wide, back by aofp": "aofp", "wide, back by di": "di", "wide, back by l2": "l2",
    },
    "redundancy": {
        NORMAL: None, WIDE: None, "wide, by csgd": "csgd", "wide, cut by di": "di", "wide, cut by l2": "l2",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A row of a study for one seed."""

    study: str
    row: str
    seed: int


@dataclass(frozen=True, eq=False)
class Study:
    """A study with its settings; networks are made once for each seed."""

    name: str
    flags: argparse.Namespace

    @functools.cache  # noqa: B019 (one study lives as long as the process)
    def context(self, wide: bool, seed: int) -> SearchContext:
        """Return the wide or the normal network with the data and the training of a seed, trained or from the cache."""
        flags = self.flags
        data = load_data(DataConfig(name=flags.data), seed, SHAPE)
        spec = ModelSpec(flags.model, data.num_classes, SHAPE, widen=flags.widen if wide else 1.0)
        dense_epochs = flags.dense_epochs + (0 if wide else flags.epochs)
        train = TrainConfig(
            epochs=flags.epochs,
            dense_epochs=dense_epochs,
            batch_size=64,
            lr=flags.learning_rate,
            dense_lr=flags.dense_rate,
            device="cpu",
        )
        net = trained_net(DenseRecipe(spec, data, train, seed), cache_root())
        legal = SpaceConfig(divisor=1) if self.name == "redundancy" else None  # whatever widths the normal network has
        return SearchContext(net, trace(net, torch.zeros(1, *SHAPE), legal, spec), data, train, threads=1)

    def goal(self, seed: int) -> Goal:
        """Return the normal network's FLOPs as a budget, or its widths."""
        normal = self.context(False, seed).space
        if self.name == "redundancy":
            return Goal(Widths({group.name: group.width for group in normal.variable}))
        return Goal(budgets=(Budget("flops", normal.dense_cost.flops),))

    def measure(self, job: Job) -> dict[str, Any]:
        """Return accuracies, cost and the training over that of the normal network, or the `error` of a failed run."""
        flags, method = self.flags, STUDIES[self.name][job.row]
        normal, context = self.context(False, job.seed), self.context(job.row != NORMAL, job.seed)
        wide = context.space.dense_cost.flops / normal.space.dense_cost.flops
        if method is None:
            cost, net = context.space.dense_cost, context.net
            val, epochs = accuracy(net, context.data.val, device=CPU), context.train.dense_epochs
            training = wide * epochs / normal.train.dense_epochs
        else:
            result = evaluated(Trial(0, method, self.goal(job.seed), {}, job.seed), context)
            if result.cost is None or result.checkpoint is None:
                return {"error": result.error}
            cost, val, net = result.cost, result.accuracy, from_bytes(result.checkpoint, context.net)
            own = wide * flags.epochs if method == "csgd" else flags.epochs * cost.flops / normal.space.dense_cost.flops
            training = (wide * flags.dense_epochs + own) / normal.train.dense_epochs
        test = accuracy(net, context.data.test, device=CPU)
        return {"error": "", "val": val, "test": test, **dataclasses.asdict(cost), "training": training}


def parsed() -> argparse.Namespace:
    parser = study_parser("wide_nets", __doc__, seeds=3)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="cluttered_digits")
    parser.add_argument("--widen", type=float, default=1.5)
    parser.add_argument("--epochs", type=int, default=10, help="of pruning")
    parser.add_argument("--dense-epochs", type=int, default=20, help="of the wide network before it is pruned")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of every pruning's schedule")
    parser.add_argument("--dense-rate", type=float, default=0.1, help="peak of the schedules before pruning")
    parser.add_argument("--short", action="store_true", help="lenet5, one seed, 8 epochs and then 4")
    flags = parser.parse_args()
    if flags.short:
        flags.model, flags.seeds, flags.dense_epochs, flags.epochs = "lenet5", 1, 8, 4
        flags.learning_rate, flags.dense_rate = 0.02, 0.05
    return flags


def main() -> None:
    flags = parsed()
    torch.set_num_threads(1)
    settings = ("model", "data", "widen", "epochs", "dense_epochs", "learning_rate", "dense_rate")
    rows = rows_of(flags, **{name: getattr(flags, name) for name in settings})
    study, seeds = Study(flags.study, flags), seeds_of(flags)
    for seed in seeds:
        for row in STUDIES[flags.study]:
            job = Job(flags.study, row, seed)
            found = rows.measured(job, functools.partial(study.measure, job))
            print(f"seed {seed}, {row}: {found['error'] or format(100 * found['test'], '.1f')}", flush=True)
    table = []
    for row in STUDIES[flags.study]:
        runs = [run for seed in seeds if (run := rows.of(Job(flags.study, row, seed))) is not None]
        if runs:
            accuracies = [mean_and_error([run[name] for run in runs], 1, 100) for name in ("test", "val")]
            flops, params = (statistics.fmean(run[name] for run in runs) / 1e6 for name in ("flops", "params"))
            training = statistics.fmean(run["training"] for run in runs)
            table.append([row, *accuracies, f"{flops:.1f} M", f"{params:.3f} M", f"{training:.2f}"])
    title = (
        f"{flags.model} on {flags.data}, {flags.widen:g} times as wide, {flags.dense_epochs} epochs and then "
        f"{flags.epochs}: accuracy in %, mean ± standard error"
    )
    print_table(title, ["network", "test", "validation", "FLOPs", "params", "training"], table, list(seeds))


if __name__ == "__main__":
    main()
