"""Which form of DI chooses the best channels, and which way the best widths: python tests/studies/di_variants.py.

ResNet-20 on cluttered_digits, the dense net trained once and cached. Every arm cuts to a share of the dense FLOPs and
is fine-tuned; printed are mean and standard deviation over fine-tuning seeds: validation accuracy after BatchNorm
re-estimation ("cut") and after fine-tuning, which chooses the defaults, and test accuracy, which only reports.
`--quick` takes fewer arms, one seed and one epoch.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
from runners.evaluation.evaluate import TrialContext
from runners.training.compute_format import ComputeFormat, measure_compute_format
from runners.training.dense import DenseRecipe, trained_net
from runners.training.loop import accuracy
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
DI = DiscriminantInformation
LABELS = {"label_weight": 1.0, "ridge": 1e-3, "compensate": False}


@dataclass(frozen=True)
class RawInformation(DI):
    """Widths by raw DI per FLOP: pooled, standardised features, labels alone. What the default is to beat."""

    def _curves(
        self, net: nn.Module, space: SearchSpace, context: Context, ranked: DenseRankings
    ) -> Mapping[str, Curve]:
        raw = DI(features="pooled", standardise=True, **LABELS)
        statistics = raw.activation_moments(net, space, context)
        rankings = raw.rankings(net, space, statistics)
        return {g.name: rankings[g.name].lost.numpy() * _information(raw, statistics, g) for g in space.variable}


def _information(raw: DI, statistics: ActivationMoments, group) -> float:
    """The mean over sites of the DI of all channels, which turns shares into DI."""
    found = []
    for site, features, _ in statistics.sites_of(group):
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
QUICK_ALLOCATION = ("raw DI per FLOP", "uniform", "information lost at the consumers (default)")


@dataclass(frozen=True)
class Setup:
    """The dense net and what it is compared on."""

    net: nn.Module
    space: SearchSpace
    data: ImageData
    train: TrainConfig
    seeds: int
    compute_format: ComputeFormat

    def context(self, seed: int, statistics: object = None) -> TrialContext:
        return TrialContext(self.data, self.train, seed, statistics=statistics, compute_format=self.compute_format)

    def row(self, baseline: Method, percent: float) -> list[str]:
        """Share used; validation accuracy after the cut and after fine-tuning, and test accuracy, over the seeds."""
        prepared = baseline.prepare(self.net, self.space, self.context(0)) if isinstance(baseline, DI) else None
        rows = []
        for seed in range(self.seeds):
            torch.manual_seed(seed)
            goal = Goal(budgets=(Budget.parse(f"{percent}%"),))
            cut = 0.0
            for snapshot in baseline.run(self.net, self.space, goal, self.context(seed, prepared)):
                if snapshot.epoch == 0:
                    cut = accuracy(snapshot.net, self.data.val, device=CPU)
            rows.append(
                [cut, *(accuracy(snapshot.net, split, device=CPU) for split in (self.data.val, self.data.test))]
            )
        used = 100 * self.space.cost(snapshot.widths).flops / self.space.dense_cost.flops
        table = 100 * torch.tensor(rows)
        deviation = table.std(dim=0) if self.seeds > 1 else torch.zeros(table.shape[1])
        return [f"{used:.2f}", *(f"{m:.1f} ± {d:.1f}" for m, d in zip(table.mean(dim=0), deviation, strict=True))]


def set_up(epochs: int, dense_epochs: int, seeds: int) -> Setup:
    data = load_data(DataConfig(name="cluttered_digits"), 0, SHAPE)
    train = TrainConfig(
        epochs=epochs,
        dense_epochs=dense_epochs,
        batch_size=64,
        lr=0.05,
        dense_lr=0.1,
        device="cpu",
    )
    spec = ModelSpec("resnet20", data.num_classes, SHAPE)
    recipe = DenseRecipe(spec, data, train, 0)
    compute_format = measure_compute_format(build(spec), SHAPE, train.batch_size, CPU)
    net = trained_net(
        recipe,
        cache_root(),
        compute_format=compute_format,
        on_epoch=lambda epoch, a: print(f"dense epoch {epoch}: {a:.3f}"),
    )
    return Setup(net, trace(net, torch.zeros(1, *SHAPE)), data, train, seeds, compute_format)


def table(setup: Setup, title: str, baselines: Mapping[str, Method], shares: list[float]) -> None:
    print(f"\n{title} (accuracy in %, n = {setup.seeds})\n")
    print("| FLOPs | arm | used % | cut, val | tuned, val | tuned, test |\n|---|---|---|---|---|---|")
    for percent in shares:
        for name, baseline in baselines.items():
            print("| " + " | ".join([f"{percent:g}%", name, *setup.row(baseline, percent)]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few arms, one seed, one epoch, 20%% of FLOPs")
    parser.add_argument("--only", choices=("channels", "widths"), help="one of the two tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense-epochs", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setup = set_up(1 if chosen.quick else 2, chosen.dense_epochs, 1 if chosen.quick else chosen.seeds)
    dense = accuracy(setup.net, setup.data.test, device=CPU)
    print(f"dense: {100 * dense:.1f}%, {setup.space.dense_cost.flops:,} flops")
    if chosen.only != "widths":
        baselines = {name: SELECTION[name] for name in (QUICK_SELECTION if chosen.quick else SELECTION)}
        # At uniform widths, so that only the channels differ.
        baselines = {
            n: dataclasses.replace(a, allocation="uniform") if isinstance(a, DI) else a for n, a in baselines.items()
        }
        table(setup, "Channels at uniform widths", baselines, [20] if chosen.quick else [8, 20])
    if chosen.only != "channels":
        baselines = {name: ALLOCATION[name] for name in (QUICK_ALLOCATION if chosen.quick else ALLOCATION)}
        table(setup, "Widths within a budget, channels as by default", baselines, [20] if chosen.quick else [8, 20, 50])


if __name__ == "__main__":
    main()
