"""Pruning by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

Where this differs from the authors' code: the ridge rule may predict what the next layers compute instead of, or
besides, the labels; channels are eliminated one by one; the layers that lose inputs are refitted by least squares on
the same second moments; images are training images, never validation ones; and widths may also come from curves
instead of a trial of every layer at every step; all cuts come before the training instead of little by little during
it (`gradual_epochs`, see `pruning.methods.di.gradual`). Each is a setting.

Two things that the abstract names and leaves open are stand-ins of ours, both off by default:
- Structure distillation: `distill` is the weight of KL(dense || narrow) on the logits while the narrow net is trained,
  at temperature 1; a line that the authors' code has but does not run. There it is added to the loss on labels, here
  it takes its share of it.
- Mixed precision within a layer: with `bits`, the filters of every layer whose channels rank best get `high_bits`
  and the others `low_bits`, so that the ranked filters of a layer have `bits` on average. Filters without rank (the
  classifier, layers whose width cannot vary) have `high_bits`. See `pruning.quantization.precision`.

A class that is missing from the calibration images has no share in the ranking, which is then that of a problem
without this class; fewer than two classes are an error.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from torch import Tensor, nn

from pruning.allocation import Curve, accuracy_path, allocate, proportional, usage
from pruning.base import Context, Distillation, Goal, PruningError, Snapshot
from pruning.calibration.activation_moments import ActivationMoments, gather
from pruning.calibration.reconstruction import reconstruct
from pruning.criteria.discriminant.criterion import Discriminant
from pruning.criteria.discriminant.elimination import Ranking
from pruning.methods.di.gradual import CUTS_AN_EPOCH, Cut, Pace, goals_between, narrow_gradually, reached, space_after
from pruning.methods.score_and_slice import uniform_widths
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
class Prepared:
    """What all trials share: statistics of the dense net, and what one choice of settings made of them."""

    criterion: Discriminant
    statistics: ActivationMoments
    rankings: Mapping[str, Ranking]
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)


@dataclass(frozen=True)
class DiscriminantInformation(Discriminant):
    """Keep the channels without which a ridge rule would lose most; at given widths, or at widths it finds."""

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
        "divergence", choices=("divergence", "accuracy"), searched=False, help="what an attempted cut is judged by"
    )
    step: float = setting(0.05, help="share of the dense FLOPs that a step of allocation='accuracy' saves")
    judged_images: int = setting(256, help="training images on which cuts are judged")
    gradual_epochs: int = setting(
        0, low=0, searched=False, help="of the trial's, in which training and small cuts take turns; the rest retrains"
    )
    gradual_rate: float = setting(
        0.1, low=1e-4, high=10.0, searched=False, help="constant rate of gradual_epochs, as a share of the peak"
    )
    distill: float = setting(
        0.0, low=0.0, high=1.0, searched=False, help="weight of meeting the dense net's logits in training; 0 is off"
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
        """Refuse settings that are unknown or do not go together."""
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
        self.precision()  # raises for bits that cannot be met

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Prepared:
        """Gather the dense net's statistics, rank every group, and measure the curves that widths come from."""
        statistics = self.activation_moments(net, space, context)
        bare = self._ranked(net, space, statistics)
        curves = self._curves(net, space, context, bare) if self.allocation == "closed_form" else {}
        return Prepared(bare.criterion, statistics, bare.rankings, {self.compare: curves} if curves else {})

    def wide_epochs(self, epochs: int) -> float:
        """Return how many epochs at full width take as long as those in which the net narrows, at most."""
        return min(self.gradual_epochs, epochs) / 2

    def yields_intermediates(self, epochs: int) -> bool:
        """Return whether there is a net after an epoch before the last of those in which it narrows."""
        return min(self.gradual_epochs, epochs) > 1

    @property
    def pausable(self) -> bool:
        """Whether all that is special to the method comes before the training."""
        return self.precision() is None and not self.distill and not self.gradual_epochs

    @property
    def screenable(self) -> bool:
        """Whether the cut net is there before any training."""
        return not self.gradual_epochs

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the cut net before training and after every epoch, quantised where `bits` says so.

        With `gradual_epochs`, first the nets on the way, one per epoch; then the cut net after the last of them.
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
            register_rounding(cut.net, {name: precision.of_filters(each) for name, each in filters.items()})
        context.reestimate_batchnorm(cut.net)
        for epoch in itertools.chain([0], context.fit(cut.net, context.epochs - spent, distillation=distillation)):
            shown = cut.net if precision is None else quantize(cut.net)
            sizes = {"bits": bits_per_weight(shown), "size_mb": size_mb(shown)}
            yield Snapshot(shown, cut.widths, spent + epoch, {**note, **sizes})

    def _narrowed(
        self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, distillation: Distillation | None
    ) -> Generator[Snapshot, None, tuple[Cut, int]]:
        """Return the net at its goal and the epochs that went into it; yield those on the way."""
        epochs = min(self.gradual_epochs, context.epochs)
        if not epochs or reached(space, goal):
            return self._cut_to(net, space, goal, context, self._prepared(net, space, context)), 0

        def again(wider: nn.Module, towards: Goal, before: Cut | None) -> Cut:
            if before is None:
                seen, prepared = space, self._prepared(wider, space, context)
            else:
                seen = space_after(before)
                prepared = self._ranked(wider, seen, gather(wider, seen, self.recipe(), context))
            stepping = self._stepping(seen, towards, space.dense_cost.flops)
            return stepping._cut_to(wider, seen, towards, context, prepared)

        goals = goals_between(space, goal, CUTS_AN_EPOCH * epochs)
        pace = Pace(epochs, self.gradual_rate * context.learning_rate, distillation)
        return (yield from narrow_gradually(net, goals, pace, context, again))

    def _stepping(self, space: SearchSpace, goal: Goal, dense_flops: int) -> "DiscriminantInformation":
        """Return these settings for a net on the way: `step` stays a share of the dense FLOPs, or gets to the goal."""
        cost = space.dense_cost
        step, used = self.step * dense_flops / cost.flops, usage(cost, goal.budgets)
        return dataclasses.replace(self, step=min(step, 1 - 1 / used) if used > 1 else step)

    def _cut_to(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, prepared: Prepared) -> Cut:
        widths = self._widths(net, space, goal, context, prepared)
        narrow = self._cut(net, space, widths, prepared)
        return Cut(narrow, widths, space, _selection(space, widths, prepared), _ranks(prepared))

    def criterion(self) -> Discriminant:
        """Return the settings that rank channels, without those that choose widths."""
        return Discriminant(**{each.name: getattr(self, each.name) for each in fields(Discriminant)})

    def precision(self) -> Precision | None:
        """Return how weights are quantised; None where they stay float32."""
        return None if self.bits in (0, 32) else Precision(self.bits, self.low_bits, self.high_bits)

    def _prepared(self, net: nn.Module, space: SearchSpace, context: Context) -> Prepared:
        """Return what was prepared for these settings; what differs is made again from the shared statistics."""
        given = context.statistics
        if not isinstance(given, Prepared):
            statistics = self.activation_moments(net, space, context)
        elif given.criterion == self.criterion():
            return given
        elif given.statistics.recipe == self.recipe():
            statistics = given.statistics
        else:
            statistics = self.activation_moments(net, space, context)
        return self._ranked(net, space, statistics)

    def _ranked(self, net: nn.Module, space: SearchSpace, statistics: ActivationMoments) -> Prepared:
        return Prepared(self.criterion(), statistics, self.rankings(net, space, statistics))

    def _widths(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, prepared: Prepared) -> Widths:
        if goal.widths is not None:
            return space.full | goal.widths
        if self.allocation == "uniform":
            return uniform_widths(space, goal)
        budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
        if self.allocation == "accuracy":
            return self._by_steps(net, space, budgets, context, prepared)
        curves = prepared.curves.get(self.compare) or self._curves(net, space, context, prepared)
        return allocate(space, curves, budgets)

    def _by_steps(
        self, net: nn.Module, space: SearchSpace, budgets: list[Budget], context: Context, prepared: Prepared
    ) -> Widths:
        if self.judge == "divergence":
            divergence = Divergence(net, context, self.judged_images)

            def merit(widths: Widths) -> float:
                return -divergence(self._cut(net, space, widths, prepared))
        else:

            def merit(widths: Widths) -> float:
                narrow = self._cut(net, space, widths, prepared)
                context.reestimate_batchnorm(narrow)
                return context.probe_accuracy(narrow, self.judged_images)

        space.fit([1.0] * len(space.variable), budgets)  # raises where no widths could do
        path = accuracy_path(space, merit, lambda widths: usage(space.cost(widths), budgets) <= 1, self.step)
        return proportional(space, path[-1], budgets)

    def _curves(self, net: nn.Module, space: SearchSpace, context: Context, prepared: Prepared) -> Mapping[str, Curve]:
        if self.compare == "information":
            # Copies, since sending the tensors to another process moves their memory away from under an array on it.
            return {name: each.lost.numpy().copy() for name, each in prepared.rankings.items()}
        divergence = Divergence(net, context, self.judged_images)
        return sensitivity(space, lambda widths: divergence(self._cut(net, space, widths, prepared)))

    def _cut(self, net: nn.Module, space: SearchSpace, widths: Mapping[str, int], prepared: Prepared) -> nn.Module:
        selection = _selection(space, widths, prepared)
        narrow = slice_channels(net, space, selection)
        if self.compensate:
            reconstruct(narrow, net, space, selection, prepared.statistics)
        return narrow


def _ranks(prepared: Prepared) -> dict[str, Tensor]:
    return {name: each.ranks for name, each in prepared.rankings.items()}


def _selection(space: SearchSpace, widths: Mapping[str, int], prepared: Prepared) -> Selection:
    return select_channels(space, _ranks(prepared), widths)
