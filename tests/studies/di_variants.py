"""Which form of DI chooses the best channels, and which the best widths: python tests/studies/di_variants.py.

The third table is of the loop that tries every group at every step, by what judges the attempts: `--only judges`. The
authors judge by accuracy; judge=distillation is the stand-in for the structure distillation of their abstract.

ResNet-20 (or another `--model`) on cluttered_digits; the dense network is trained once and cached. Every variant cuts
to a share of the dense FLOPs and is fine-tuned. The tables show mean and standard deviation over fine-tuning seeds:
validation accuracy after BatchNorm re-estimation ("cut") and after fine-tuning, which chooses the defaults, and test
accuracy, which is only reported. `--quick` takes fewer variants, one seed and one epoch. The same command continues a
study that was stopped.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from harness import Rows, print_table, rows_of, seeds_of, spread, study_parser
from torch import nn

from pruning.allocation import Curve
from pruning.base import Context, Goal, Method
from pruning.calibration.activation_moments import ActivationMoments
from pruning.calibration.second_moments import ridge_for
from pruning.criteria.discriminant.information import RidgeInformation
from pruning.methods.di.method import DenseRankings, DiscriminantInformation
from pruning.methods.score_and_slice import RandomChannels, UniformL2
from runners.cache import cache_root
from runners.config import DataConfig, TrainConfig
from runners.data.loading import ImageData, load_data
from runners.evaluation.context import TrialContext
from runners.training.compute_format import ComputeFormat, measure_compute_format
from runners.training.dense import DenseRecipe, trained_net, weights_digest
from runners.training.scoring import accuracy
from spaces.budget import Budget
from spaces.groups import ChannelGroup
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
DI = DiscriminantInformation
LABELS = {"label_weight": 1.0, "ridge": 1e-3, "compensate": False}


@dataclass(frozen=True)
class RawInformation(DI):
    """Widths by raw DI per FLOP (pooled, standardised features, labels alone), which the default must beat."""

    def _curves(
        self, net: nn.Module, space: SearchSpace, context: Context, ranked: DenseRankings
    ) -> Mapping[str, Curve]:
        raw = DI(features="pooled", standardise=True, **LABELS)
        moments = raw.activation_moments(net, space, context)
        rankings = raw.rankings(net, space, moments)
        return {g.name: rankings[g.name].lost.numpy() * _information(raw, moments, g) for g in space.variable}


def _information(raw: DI, activation_moments: ActivationMoments, group: ChannelGroup) -> float:
    """Return the mean over sites of the DI of all channels, which turns shares into DI."""
    found = []
    for site, features, _ in activation_moments.sites_of(group):
        moments = site.moments.take(features).standardised()
        ridge = ridge_for(moments.scatter, raw.ridge)
        found.append(RidgeInformation(moments.scatter, moments.between(), ridge).information)
    return sum(found) / len(found) ** 2  # the shares are added over sites


SELECTION = {
    "random": RandomChannels(),
    "l2": UniformL2(),
    "l2, refit": UniformL2(compensate=True),
    "labels: pooled, standardised, greedy": DI(features="pooled", standardise=True, **LABELS),
    "labels: spatial, greedy": DI(**LABELS),
    "labels: spatial, drop": DI(score="drop", **LABELS),
    "labels: spatial, differential": DI(score="differential", **LABELS),
    "labels: spatial x consumers' weights": DI(combine="consumers", **LABELS),
    "labels: flattened pre-BN maps, differential": DI(features="flatten", where="output", **LABELS),
    "consumers: spatial, greedy": DI(label_weight=0.0, compensate=False),
    "labels, refit": DI(label_weight=1.0),
    "consumers, refit": DI(label_weight=0.0),
    "consumers + 10% labels, refit (default)": DI(),
}
QUICK_SELECTION = ("l2", "labels: pooled, standardised, greedy", "consumers + 10% labels, refit (default)")
ALLOCATION = {
    "raw DI per FLOP": RawInformation(),
    "uniform": DI(allocation="uniform"),
    "measured sensitivity": DI(compare="sensitivity"),
    "authors' loop, divergence": DI(allocation="accuracy"),
    "information lost at the consumers (default)": DI(),
}
JUDGES = {
    "uniform": DI(allocation="uniform"),
    "no loop: information lost at the consumers (default)": DI(),
    **{
        f"loop, judge={judge}": DI(allocation="accuracy", judge=judge)
        for judge in ("accuracy", "divergence", "distillation")
    },
}
QUICK_ALLOCATION = ("raw DI per FLOP", "uniform", "information lost at the consumers (default)")


@dataclass(frozen=True)
class Job:
    """One variant at a share of the dense FLOPs, in percent; `what` is the table that it belongs to."""

    what: str
    variant: str
    percent: float
    seed: int


@dataclass(frozen=True)
class Setup:
    """The dense network and the data on which all variants are compared."""

    net: nn.Module
    space: SearchSpace
    data: ImageData
    train: TrainConfig
    compute_format: ComputeFormat

    def context(self, seed: int, prepared: object = None) -> TrialContext:
        return TrialContext(self.data, self.train, seed, prepared=prepared, compute_format=self.compute_format)

    def run(self, job: Job, variant: Method, prepared: object) -> dict[str, float]:
        """Return the used share of the FLOPs, and the accuracies after the cut and after fine-tuning."""
        torch.manual_seed(job.seed)
        goal = Goal(budgets=(Budget.parse(f"{job.percent}%"),))
        cut = 0.0
        for snapshot in variant.run(self.net, self.space, goal, self.context(job.seed, prepared)):
            if snapshot.epoch == 0:
                cut = accuracy(snapshot.net, self.data.val, device=CPU)
        val, test = (accuracy(snapshot.net, split, device=CPU) for split in (self.data.val, self.data.test))
        used = self.space.cost(snapshot.widths).flops / self.space.dense_cost.flops
        return {"used": used, "cut": cut, "val": val, "test": test}


def set_up(
    epochs: int,
    dense_epochs: int,
    data_name: str = "cluttered_digits",
    model: str = "resnet20",
    rates: tuple[float, float] = (0.1, 0.05),
) -> Setup:
    """Return the trained dense network and its data; `rates` are the peaks of its training and of fine-tuning."""
    data = load_data(DataConfig(name=data_name), 0, SHAPE)
    train = TrainConfig(
        epochs=epochs,
        dense_epochs=dense_epochs,
        batch_size=64,
        lr=rates[1],
        dense_lr=rates[0],
        device="cpu",
    )
    spec = ModelSpec(model, data.num_classes, SHAPE)
    compute_format = measure_compute_format(build(spec), SHAPE, train.batch_size, CPU)
    recipe = DenseRecipe(spec, data, train, 0, compute_format)
    net = trained_net(
        recipe,
        cache_root(),
        on_epoch=lambda epoch, a: print(f"dense epoch {epoch}: {a:.3f}"),
    )
    return Setup(net, trace(net, torch.zeros(1, *SHAPE)), data, train, compute_format)


def print_results(
    setup: Setup, what: str, variants: Mapping[str, Method], shares: Sequence[float], seeds: range, rows: Rows
) -> None:
    """Print the table of one question, after running the variants that are not on file."""
    lines = []
    for percent in shares:
        for name, variant in variants.items():
            jobs = [Job(what, name, percent, seed) for seed in seeds]
            needed = isinstance(variant, DI) and any(rows.of(job) is None for job in jobs)
            prepared = variant.prepare(setup.net, setup.space, setup.context(0)) if needed else None
            found = [rows.measured(job, functools.partial(setup.run, job, variant, prepared)) for job in jobs]
            cells = [spread([row[key] for row in found], 1, 100) for key in ("cut", "val", "test")]
            lines.append([f"{percent:g}%", name, f"{100 * found[-1]['used']:.2f}", *cells])
            print(f"{percent:g}% {name}: validation {cells[1]}", flush=True)
    head = ["FLOPs", "variant", "used %", "cut, val", "tuned, val", "tuned, test"]
    print_table(f"{what}, accuracy in %", head, lines, seeds)


def main() -> None:
    parser = study_parser("di_variants", __doc__, seeds=3)
    parser.add_argument("--quick", action="store_true", help="few variants, one seed, one epoch, 20%% of FLOPs")
    parser.add_argument("--only", choices=("channels", "widths", "judges"), help="one of the three tables")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense-rate", type=float, default=0.1, help="peak of the schedule of the dense training")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of every fine-tuning's schedule")
    parser.add_argument("--dense-epochs", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.quick:
        chosen.seeds = 1
    seeds, epochs = seeds_of(chosen), 1 if chosen.quick else 2
    setup = set_up(epochs, chosen.dense_epochs, model=chosen.model, rates=(chosen.dense_rate, chosen.learning_rate))
    shares = [20] if chosen.quick else [8, 20]
    rows = rows_of(chosen, dense=weights_digest(setup.net)[:12], epochs=epochs)
    dense = accuracy(setup.net, setup.data.test, device=CPU)
    print(f"dense: {100 * dense:.1f}%, {setup.space.dense_cost.flops:,} flops")
    if chosen.only in (None, "channels"):
        # At uniform widths, so that only the channels differ.
        variants = {
            name: dataclasses.replace(variant, allocation="uniform") if isinstance(variant, DI) else variant
            for name, variant in SELECTION.items()
            if not chosen.quick or name in QUICK_SELECTION
        }
        print_results(setup, "Channels at uniform widths", variants, shares, seeds, rows)
    if chosen.only in (None, "widths"):
        variants = {name: ALLOCATION[name] for name in (QUICK_ALLOCATION if chosen.quick else ALLOCATION)}
        title = "Widths within a budget, channels as by default"
        print_results(setup, title, variants, shares if chosen.quick else [*shares, 50], seeds, rows)
    if chosen.only in (None, "judges"):
        print_results(setup, "Widths by the loop, by what judges its attempts", JUDGES, shares, seeds, rows)


if __name__ == "__main__":
    main()
