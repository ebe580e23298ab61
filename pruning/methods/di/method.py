"""Pruning by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

Differences from the authors' code, each of which is a setting:
- The ridge regression may predict the outputs of the next layers instead of, or besides, the labels.
- Channels are removed one by one.
- Layers that lose inputs are refitted by least squares on the same second moments.
- Widths may come from curves instead of a trial of every layer at every step.
- All cuts come before the training instead of during it (`gradual_epochs`, see `pruning.methods.di.gradual`).
Statistics always come from training images, never from validation images.

The abstract names two things and leaves them open. What stands for them here is of this project, and off by default:
- Structure distillation, which decides the structure under a budget. No text or code of the authors says how. The
  stand-in is `allocation="accuracy"` with `judge="distillation"`: of all groups, each step narrows the one after whose
  cut the loss of distillation is lowest, that is the loss on labels plus KL(dense || narrow) at temperature 1. That sum
  stands in the authors' code as a loss of training, in a line that does not run; `distill` is this other use of it,
  which decides no widths, with two weights whose sum is 1.
- Mixed precision within a layer: with `bits`, the best-ranked filters of every layer get `high_bits` and the others
  `low_bits`, so that the ranked filters of a layer have `bits` on average. Filters without a rank (the classifier,
  layers whose width cannot vary) have `high_bits`. See `pruning.quantization.precision`.

The ranking ignores classes that are missing from the calibration images; fewer than two classes are an error.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from pruning.allocation import Curve, accuracy_path, allocate, proportional, usage
from pruning.base import Context, Distillation, Goal, Method, PruningError, Snapshot
from pruning.calibration.activation_moments import ActivationMoments, gather
from pruning.calibration.reconstruction import reconstruct
from pruning.criteria.discriminant.criterion import Discriminant
from pruning.criteria.discriminant.elimination import Ranking
from pruning.methods.common_steps import uniform_widths
from pruning.methods.di.gradual import (
    CUTS_PER_EPOCH,
    Cut,
    GradualSchedule,
    goals_between,
    narrow_gradually,
    reached,
    space_after,
)
from pruning.quantization.layers import bits_per_weight, quantize, size_mb
from pruning.quantization.precision import Precision, filter_ranks
from pruning.quantization.rounding import register_rounding
from pruning.rewriting.surgery import slice_channels
from pruning.selection import Selection, select_channels
from pruning.sensitivity import Divergence, sensitivity
from pruning.settings import setting
from spaces.budget import Budget
from spaces.space import SearchSpace
from spaces.widths import Widths


@dataclass(frozen=True)
class DenseRankings:
    """Rankings of a wide net's channels; all trials of a search share the rankings of the dense net.

    Attributes:
        criterion: the settings that the rankings follow from.
        moments: second moments of the net's layer inputs.
        rankings: group name -> ranking.
        curves: value of the setting `compare` -> group name -> curve.
    """

    criterion: Discriminant
    moments: ActivationMoments
    rankings: Mapping[str, Ranking]
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)


@dataclass(frozen=True)
class DiscriminantInformation(Discriminant, Method):
    """Keep the channels without which a ridge regression would lose most, at given widths or at widths it finds."""

    compensate: bool = setting(True, choices=(True, False), searched=False, help="refit the layers that lose inputs")
    allocation: str = setting(
        "closed_form",
        choices=("closed_form", "accuracy", "uniform"),
        searched=False,
        help="widths within budgets: from curves, by trying every group at every step, or uniform",
    )
    compare: str = setting(
        "information",
        choices=("information", "sensitivity"),
        searched=False,
        help="curves of allocation='closed_form': share of the information lost, or measured divergence",
    )
    judge: str = setting(
        "divergence",
        choices=("divergence", "accuracy", "distillation"),
        searched=False,
        help="measure by which attempted cuts are compared: KL from the dense net, accuracy, or KL plus loss on labels",
    )
    step: float = setting(0.05, help="share of the dense FLOPs that a step of allocation='accuracy' saves")
    judged_images: int = setting(256, help="training images on which cuts are judged")
    gradual_epochs: int = setting(
        0, low=0, searched=False, help="epochs in which training and small cuts take turns; the other epochs fine-tune"
    )
    gradual_rate: float = setting(
        0.1,
        low=1e-4,
        high=10.0,
        searched=False,
        help="constant learning rate of gradual_epochs, as a share of the peak",
    )
    distill: float = setting(
        0.0,
        low=0.0,
        high=1.0,
        searched=False,
        help="weight of meeting the dense net's logits in training, which decides no widths; 0 is off",
    )
    bits: float = setting(
        0.0, low=0.0, high=32.0, searched=False, help="mean bits of a weight in every layer; 0 or 32 is float32"
    )
    low_bits: int = setting(4, low=2, high=16, searched=False, help="of the worse filters, where bits is set")
    high_bits: int = setting(8, low=2, high=16, searched=False, help="of the better filters, where bits is set")

    name: ClassVar[str] = "di"
    paper: ClassVar[str] = "Hou & Kung, Discriminant Information, arXiv 2005.13796"
    needs: ClassVar[str] = "labelled training images for statistics; epochs afterwards are fine-tuning"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings, alone and together."""
        super().__post_init__()
        if self.compensate and (self.features != "spatial" or self.where != "input"):
            raise PruningError(
                f"setting compensate=True of di needs features='spatial' and where='input', not {self.features!r} and "
                f"{self.where!r}; take compensate=False"
            )
        if self.step <= 0 or self.judged_images < 2:
            raise PruningError(
                f"settings step={self.step} and judged_images={self.judged_images} of di must be above 0 and at least 2"
            )
        if not 0 <= self.distill <= 1:
            raise PruningError(f"setting distill={self.distill} of di must lie in [0, 1]; 0 is off")
        if self.gradual_epochs < 0 or self.gradual_rate <= 0:
            raise PruningError(
                f"settings gradual_epochs={self.gradual_epochs} and gradual_rate={self.gradual_rate} of di must be at "
                "least 0 and above 0"
            )
        self.precision()  # raises for bits that cannot be reached

    @override
    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> DenseRankings:
        dense = self._dense_rankings(net, space, context)
        if self.allocation != "closed_form" or self.compare in dense.curves:
            return dense
        curves = self._curves(net, space, context, dense)
        return dataclasses.replace(dense, curves={self.compare: curves} if curves else {})

    def wide_epochs(self, epochs: int) -> float:
        """Return an upper bound of the epochs at full width that take as long as the gradual epochs."""
        return min(self.gradual_epochs, epochs) / 2

    def yields_intermediates(self, epochs: int) -> bool:
        """Return whether there is a gradual epoch before the last one, after which the net is yielded."""
        return min(self.gradual_epochs, epochs) > 1

    @property
    def pausable(self) -> bool:
        """Whether the training after the cut is that of the trial alone."""
        return self.precision() is None and not self.distill and not self.gradual_epochs

    @property
    def screenable(self) -> bool:
        """Whether the net is cut before any training."""
        return not self.gradual_epochs

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the cut net before training and after every epoch, quantised if `bits` is set.

        With `gradual_epochs`, first yield an intermediate network after each of them but the last.
        """
        distillation = Distillation(net, self.distill) if self.distill > 0 else None
        cut, spent = yield from self._narrowed(net, space, goal, context, distillation)
        found = "given" if goal.widths is not None else self.allocation
        found += f": {self.compare}" if found == "closed_form" else ""
        note: dict[str, float | str | bool] = {"widths_from": found, "compensate": self.compensate}
        note |= {"label_weight": self.label_weight, "distill": self.distill, "gradual_epochs": spent}
        precision = self.precision()
        if precision is not None:
            filters = filter_ranks(cut.net, cut.space, cut.selection, cut.ranks)
            register_rounding(cut.net, {name: precision.of_filters(ranks) for name, ranks in filters.items()})
        context.reestimate_batchnorm(cut.net)
        for epoch in itertools.chain([0], context.fit(cut.net, context.epochs - spent, distillation=distillation)):
            shown = cut.net if precision is None else quantize(cut.net)
            sizes = {"bits": bits_per_weight(shown), "size_mb": size_mb(shown)}
            selection = None if spent else cut.selection
            yield Snapshot(shown, cut.widths, spent + epoch, {**note, **sizes}, selection=selection)

    def _narrowed(
        self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, distillation: Distillation | None
    ) -> Generator[Snapshot, None, tuple[Cut, int]]:
        """Return the net that meets the goal and the epochs spent on it; yield intermediate networks."""
        epochs = min(self.gradual_epochs, context.epochs)
        if not epochs or reached(space, goal):
            return self._cut_to(net, space, goal, context, self._dense_rankings(net, space, context)), 0

        def narrower(wider: nn.Module, next_goal: Goal, last: Cut | None) -> Cut:
            if last is None:
                own_space, ranked = space, self._dense_rankings(wider, space, context)
            else:
                own_space = space_after(last)
                ranked = self._ranked(wider, own_space, gather(wider, own_space, self.recipe(), context))
            own_settings = self._for_intermediate(own_space, next_goal, space.dense_cost.flops)
            return own_settings._cut_to(wider, own_space, next_goal, context, ranked)

        goals = goals_between(space, goal, CUTS_PER_EPOCH * epochs)
        schedule = GradualSchedule(epochs, self.gradual_rate * context.learning_rate, distillation)
        return (yield from narrow_gradually(net, goals, schedule, context, narrower))

    def _for_intermediate(self, space: SearchSpace, goal: Goal, dense_flops: int) -> "DiscriminantInformation":
        """Return the settings for an intermediate network.

        `step` stays the same share of the dense FLOPs, but is not larger than the whole way to the goal.
        """
        cost = space.dense_cost
        step, used = self.step * dense_flops / cost.flops, usage(cost, goal.budgets)
        return dataclasses.replace(self, step=min(step, 1 - 1 / used) if used > 1 else step)

    def _cut_to(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, ranked: DenseRankings) -> Cut:
        widths = self._widths(net, space, goal, context, ranked)
        narrow = self._cut(net, space, widths, ranked)
        return Cut(narrow, widths, space, _selection(space, widths, ranked), _ranks(ranked))

    def without_labels(self) -> "DiscriminantInformation":
        """Return the method with settings that rank channels by what the next layers make of them, not by labels."""
        judge = "divergence" if self.judge == "distillation" else self.judge
        return dataclasses.replace(self, label_weight=0.0, judge=judge)

    def without_classes(self) -> "DiscriminantInformation":
        """Return the method with settings that know no classes; raises PruningError where it would distil logits."""
        if self.distill > 0:
            raise PruningError(
                f"setting distill={self.distill} of di trains on the dense net's class logits, and the task has no "
                "classes; take 0"
            )
        return self.without_labels()

    def criterion(self) -> Discriminant:
        """Return the settings that rank channels, without the settings that choose widths."""
        return Discriminant(**{declared.name: getattr(self, declared.name) for declared in fields(Discriminant)})

    def precision(self) -> Precision | None:
        """Return how weights are quantised; None if they stay float32."""
        return None if self.bits in (0, 32) else Precision(self.bits, self.low_bits, self.high_bits)

    def _dense_rankings(self, net: nn.Module, space: SearchSpace, context: Context) -> DenseRankings:
        """Return the shared rankings, or new ones from the shared moments, as far as these fit the settings."""
        shared = context.prepared
        if isinstance(shared, DenseRankings) and shared.criterion == self.criterion():
            return shared
        if isinstance(shared, DenseRankings) and shared.moments.recipe == self.recipe():
            return self._ranked(net, space, shared.moments)
        return self._ranked(net, space, self.activation_moments(net, space, context))

    def _ranked(self, net: nn.Module, space: SearchSpace, moments: ActivationMoments) -> DenseRankings:
        return DenseRankings(self.criterion(), moments, self.rankings(net, space, moments))

    def _widths(
        self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, ranked: DenseRankings
    ) -> Widths:
        if goal.widths is not None:
            return space.full | goal.widths
        if self.allocation == "uniform":
            return uniform_widths(space, goal)
        budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
        if self.allocation == "accuracy":
            return self._by_steps(net, space, budgets, context, ranked)
        curves = ranked.curves.get(self.compare) or self._curves(net, space, context, ranked)
        return allocate(space, curves, budgets)

    def _by_steps(
        self, net: nn.Module, space: SearchSpace, budgets: list[Budget], context: Context, ranked: DenseRankings
    ) -> Widths:
        if self.judge != "accuracy":
            divergence = Divergence(net, context, self.judged_images, float(self.judge == "distillation"))

            def merit(widths: Widths) -> float:
                return -divergence(self._cut(net, space, widths, ranked))
        else:

            def merit(widths: Widths) -> float:
                narrow = self._cut(net, space, widths, ranked)
                context.reestimate_batchnorm(narrow)
                return context.probe_accuracy(narrow, self.judged_images)

        space.fit([1.0] * len(space.variable), budgets)  # raises if no widths meet the budgets
        path = accuracy_path(space, merit, lambda widths: usage(space.cost(widths), budgets) <= 1, self.step)
        return proportional(space, path[-1], budgets)

    def _curves(
        self, net: nn.Module, space: SearchSpace, context: Context, ranked: DenseRankings
    ) -> Mapping[str, Curve]:
        if self.compare == "information":
            # Sending a tensor to another process moves its memory, so an array must not share it.
            return {name: ranking.lost.numpy().copy() for name, ranking in ranked.rankings.items()}
        divergence = Divergence(net, context, self.judged_images)
        return sensitivity(space, lambda widths: divergence(self._cut(net, space, widths, ranked)))

    def _cut(self, net: nn.Module, space: SearchSpace, widths: Mapping[str, int], ranked: DenseRankings) -> nn.Module:
        selection = _selection(space, widths, ranked)
        narrow = slice_channels(net, space, selection)
        if self.compensate:
            reconstruct(narrow, net, space, selection, ranked.moments)
        return narrow


def _ranks(ranked: DenseRankings) -> dict[str, Tensor]:
    return {name: ranking.ranks for name, ranking in ranked.rankings.items()}


def _selection(space: SearchSpace, widths: Mapping[str, int], ranked: DenseRankings) -> Selection:
    return select_channels(space, _ranks(ranked), widths)
