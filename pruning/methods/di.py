"""Pruning by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

Where this differs from the authors' code: the ridge rule may predict what the next layers compute instead of, or
besides, the labels; channels are eliminated one by one; the layers that lose inputs are refitted by least squares on
the same second moments; images are training images, never validation ones; and widths may also come from curves
instead of a trial of every layer at every step. Each is a setting.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from torch import nn

from pruning.allocation import Curve, accuracy_path, allocate, proportional, usage
from pruning.base import Context, Goal, PruningError, Snapshot, setting
from pruning.criteria.discriminant import Discriminant, Ranking
from pruning.methods.score_and_slice import finetune, uniform_widths
from pruning.reconstruction import reconstruct
from pruning.selection import select_channels
from pruning.sensitivity import Divergence, sensitivity
from pruning.statistics import Statistics
from pruning.surgery import slice_channels
from spaces.budget import Budget
from spaces.space import SearchSpace
from spaces.widths import Widths


@dataclass(frozen=True)
class Prepared:
    """What all trials share: statistics of the dense net, and what one choice of settings made of them."""

    criterion: Discriminant
    statistics: Statistics
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

    name: ClassVar[str] = "di"
    paper: ClassVar[str] = "arXiv 2005.13796"
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

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Prepared:
        """Gather the dense net's statistics, rank every group, and measure the curves that widths come from."""
        statistics = self.statistics(net, space, context)
        bare = Prepared(self.criterion(), statistics, self.rankings(net, space, statistics))
        curves = self._curves(net, space, context, bare) if self.allocation == "closed_form" else {}
        return Prepared(bare.criterion, statistics, bare.rankings, {self.compare: curves} if curves else {})

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the cut net before training and after every epoch."""
        prepared = self._prepared(net, space, context)
        widths, found = self._widths(net, space, goal, context, prepared)
        narrow = self._cut(net, space, widths, prepared)
        note: dict[str, float | str | bool] = {"widths_from": found, "compensate": self.compensate}
        note["label_weight"] = self.label_weight
        yield from finetune(narrow, widths, context, note)

    def criterion(self) -> Discriminant:
        """Return the settings that rank channels, without those that choose widths."""
        return Discriminant(**{each.name: getattr(self, each.name) for each in fields(Discriminant)})

    def _prepared(self, net: nn.Module, space: SearchSpace, context: Context) -> Prepared:
        """Return what was prepared for these settings; what differs is made again from the shared statistics."""
        given = context.statistics
        if not isinstance(given, Prepared):
            statistics = self.statistics(net, space, context)
        elif given.criterion == self.criterion():
            return given
        elif given.statistics.recipe == self.recipe():
            statistics = given.statistics
        else:
            statistics = self.statistics(net, space, context)
        return Prepared(self.criterion(), statistics, self.rankings(net, space, statistics))

    def _widths(
        self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context, prepared: Prepared
    ) -> tuple[Widths, str]:
        if goal.widths is not None:
            return space.full | goal.widths, "given"
        if self.allocation == "uniform":
            return uniform_widths(space, goal), self.allocation
        budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
        if self.allocation == "accuracy":
            return self._by_steps(net, space, budgets, context, prepared), self.allocation
        curves = prepared.curves.get(self.compare) or self._curves(net, space, context, prepared)
        return allocate(space, curves, budgets), f"{self.allocation}: {self.compare}"

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
                return context.heldout_accuracy(narrow, self.judged_images)

        space.fit([1.0] * len(space.variable), budgets)  # raises where no widths could do
        path = accuracy_path(space, merit, lambda widths: usage(space.cost(widths), budgets) <= 1, self.step)
        return proportional(space, path[-1], budgets)

    def _curves(self, net: nn.Module, space: SearchSpace, context: Context, prepared: Prepared) -> Mapping[str, Curve]:
        if self.compare == "information":
            return {name: each.lost.numpy() for name, each in prepared.rankings.items()}
        divergence = Divergence(net, context, self.judged_images)
        return sensitivity(space, lambda widths: divergence(self._cut(net, space, widths, prepared)))

    def _cut(self, net: nn.Module, space: SearchSpace, widths: Mapping[str, int], prepared: Prepared) -> nn.Module:
        ranks = {name: each.ranks for name, each in prepared.rankings.items()}
        selection = select_channels(space, ranks, widths)
        narrow = slice_channels(net, space, selection)
        if self.compensate:
            reconstruct(narrow, net, space, selection, prepared.statistics)
        return narrow
