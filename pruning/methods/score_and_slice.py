"""Cut the channels of the lowest scores, then fine-tune: the simplest method, and the baselines of the others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from pruning.allocation import allocate, score_curve
from pruning.base import CRITERIA, Context, Criterion, Goal, Method, PruningError, Snapshot
from pruning.calibration.activation_moments import ActivationMoments, gather
from pruning.calibration.reconstruction import RECIPE, reconstruct
from pruning.criteria.feature_rank import FeatureRank
from pruning.criteria.taylor import Taylor
from pruning.methods.common_steps import finetune, wanted_widths
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from spaces.space import SearchSpace
from spaces.widths import Widths

ALLOCATIONS = ("uniform", "global", "global_per_cost")
Scores = Mapping[str, Tensor]


@dataclass(frozen=True)
class DenseScores:
    """The scores of the dense net's channels, as all trials of a search share them.

    Attributes:
        criterion: computed the scores.
        scores: None where they depend on the trial's seed.
        moments: second moments of the dense net's layer inputs, if cuts are compensated.
    """

    criterion: Criterion
    scores: Scores | None = None
    moments: ActivationMoments | None = None


@dataclass(frozen=True)
class ScoreAndSlice(Method):
    """Keep the channels of the highest scores of a criterion, and fine-tune the narrow net.

    The method works at given widths. From budgets alone it takes uniform widths, or ranks the channels of all groups
    together: scores are divided by the mean of their group (and, per cost, by the share of the tightest budget that
    a channel uses), and the channels of the lowest scores are cut first, until every budget holds. Floors and divisors
    hold throughout.

    With `compensate`, layers that lose inputs are refitted by least squares on the channels they keep, from second
    moments of the dense net, as in He et al., arXiv 1707.06168. Weights change, no layer is added. This setting is not
    searched over, because every search would then have to gather the moments.

    Scores and moments are those of the dense net, computed once per search.
    """

    criterion: str = setting("l2", help="name in pruning.base.CRITERIA")
    allocation: str = setting(
        "uniform",
        choices=ALLOCATIONS,
        searched=False,
        help="widths within budgets: uniform, or all groups' scores ranked together, as they are or per cost",
    )
    compensate: bool = setting(False, choices=(True, False), searched=False, help="refit the layers that lose inputs")

    name: ClassVar[str] = "score_and_slice"
    paper: ClassVar[str] = ""
    needs: ClassVar[str] = "the weights alone; epochs afterwards are fine-tuning"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True
    screenable: ClassVar[bool] = True  # the cut comes before any training

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.allocation not in ALLOCATIONS:
            known = ", ".join(ALLOCATIONS)
            raise PruningError(f"setting allocation={self.allocation!r} of {self.name} is not known; choose {known}")

    @override
    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> DenseScores:
        chosen, shared = self.chosen(), context.prepared
        if isinstance(shared, DenseScores) and shared.criterion == chosen and (shared.moments or not self.compensate):
            return shared
        scores = None if chosen.seeded else chosen.scores(net, space, context)
        return DenseScores(chosen, scores, gather(net, space, RECIPE, context) if self.compensate else None)

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the cut net, before training and after every epoch.

        Raises:
            BudgetError: the smallest network of the space does not meet a budget.
            PruningError: scores are not finite, or there are no calibration images where they are needed.
        """
        chosen, shared = self.chosen(), context.prepared
        if not isinstance(shared, DenseScores) or shared.criterion != chosen:
            shared = DenseScores(chosen)
        scores = shared.scores or chosen.scores(net, space, context)
        widths = self._widths(space, goal, scores)
        selection = select_channels(space, scores, widths)
        narrow = slice_channels(net, space, selection)
        if self.compensate:
            reconstruct(narrow, net, space, selection, shared.moments or gather(net, space, RECIPE, context))
        note: dict[str, str | bool] = {"criterion": self.criterion, "compensate": self.compensate}
        note["widths_from"] = "given" if goal.widths is not None else self.allocation
        yield from finetune(narrow, widths, context, note, selection=selection)

    def chosen(self) -> Criterion:
        """Return the criterion; a subclass that has settings of the criterion passes them on."""
        criterion: Criterion = CRITERIA[self.criterion]()
        return criterion

    def _widths(self, space: SearchSpace, goal: Goal, scores: Scores) -> Widths:
        if goal.widths is not None or self.allocation == "uniform":
            return wanted_widths(space, goal)
        curves = {group.name: score_curve(group, scores[group.name].double().numpy()) for group in space.variable}
        budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
        return allocate(space, curves, budgets, per_cost=self.allocation == "global_per_cost")


@dataclass(frozen=True)
class UniformL1(ScoreAndSlice):
    """Filters of the largest L1 norm."""

    criterion: str = "l1"

    name: ClassVar[str] = "l1"
    paper: ClassVar[str] = "Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710"


@dataclass(frozen=True)
class UniformL2(ScoreAndSlice):
    """Filters of the largest L2 norm, cut once (the paper zeroes filters softly, after every epoch)."""

    criterion: str = "l2"

    name: ClassVar[str] = "l2"
    paper: ClassVar[str] = "norm of He et al., Soft Filter Pruning, arXiv 1808.06866"


@dataclass(frozen=True)
class RandomChannels(ScoreAndSlice):
    """Channels at random, a new draw for every trial: a lower baseline."""

    criterion: str = "random"

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "Mittal et al., Recovering from Random Pruning, arXiv 1801.10447"


@dataclass(frozen=True)
class MedianFilters(ScoreAndSlice):
    """FPGM: filters far from the geometric median of their layer."""

    criterion: str = "geometric_median"

    name: ClassVar[str] = "geometric_median"
    paper: ClassVar[str] = "FPGM: He et al., Filter Pruning via Geometric Median, arXiv 1811.00250"


@dataclass(frozen=True)
class SlimmingScales(ScoreAndSlice):
    """Network slimming: channels of the largest BatchNorm scales, here without the paper's sparse training."""

    criterion: str = "bn_scale"

    name: ClassVar[str] = "bn_scale"
    paper: ClassVar[str] = "Liu et al., Network Slimming, arXiv 1708.06519"
    needs: ClassVar[str] = "the weights of a net with BatchNorm; epochs afterwards are fine-tuning"


@dataclass(frozen=True)
class TaylorGates(ScoreAndSlice):
    """Channels whose removal changes the loss most, to first order."""

    criterion: str = "taylor"
    images: int = setting(512, low=1, searched=False, help="calibration images")

    name: ClassVar[str] = "taylor"
    paper: ClassVar[str] = "Molchanov et al., Importance Estimation for Neural Network Pruning, arXiv 1906.10771"
    needs: ClassVar[str] = "labelled training images for scores; epochs afterwards are fine-tuning"

    def without_labels(self) -> "TaylorGates":
        """Refuse: the loss needs labels."""
        raise PruningError("taylor scores channels by the loss, which needs labels; give them, or another method")

    @override
    def chosen(self) -> Taylor:
        return Taylor(self.images)


@dataclass(frozen=True)
class RankedMaps(ScoreAndSlice):
    """HRank: channels whose feature maps have the highest rank; the paper takes 500 images."""

    criterion: str = "feature_rank"
    images: int = setting(64, low=1, searched=False, help="calibration images")

    name: ClassVar[str] = "feature_rank"
    paper: ClassVar[str] = "HRank: Lin et al., Filter Pruning using High-Rank Feature Map, arXiv 2002.10565"
    needs: ClassVar[str] = "training images for ranks; epochs afterwards are fine-tuning"

    @override
    def chosen(self) -> FeatureRank:
        return FeatureRank(self.images)
