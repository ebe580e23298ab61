"""What a study is told of a search before its first trial."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruning.settings import Setting
from runners.trial import TrialResult
from search.results.pareto import FLOPS, LATENCY, objectives
from spaces.budget import Budget

if TYPE_CHECKING:
    from search.latency.predictor import Guide


@dataclass(frozen=True)
class StudySettings:
    """How candidates are chosen.

    Attributes:
        methods: names the search chooses among.
        fixed: method -> setting -> value (or its text); the other settings are searched.
        trials: how many candidates are tried, control arms included, repeats not counted.
        sampler: a name of `search.searchers.samplers.SAMPLERS`.
        seed: of the run.
        storage: Optuna storage URL; empty keeps the study in memory.
        lowest_fraction: the least share of the budget that is proposed, unless the smallest network needs more.
        allocation: "search" or "method" where a method can leave the widths to either; "any" tries both.
        name: of the study in its storage.
        resumed: the stored search may have had other budgets.
        targets: budgets on one quantity to which all candidates are drawn, shared evenly; none spreads them over the
            whole range.
        training: fine-tuning settings that are searched, fields of `TrainConfig`; control arms keep the set values.
        even: whether samplers that cluster are told where on the range to go, so that the front comes out even in log
            cost; without it they are as their library makes them, for comparing them.
        rungs: epochs after which trials pause, the last of them the whole training; none trains each at once.
        guide: predicts latency, where it counts.
        axis: cost of the front, "flops" or "latency".
    """

    methods: tuple[str, ...] = ("di",)
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: int = 20
    sampler: str = "structured"
    seed: int = 0
    storage: str = ""
    lowest_fraction: float = 0.03
    allocation: str = "any"
    name: str = "slimfront"
    resumed: bool = False
    targets: tuple[Budget, ...] = ()
    training: tuple[Setting, ...] = ()
    even: bool = True
    rungs: tuple[int, ...] = ()
    guide: "Guide | None" = None
    axis: str = FLOPS

    def cost(self, result: TrialResult) -> float:
        """Return the cost of a network that samplers are told and rungs judge by: FLOPs, or predicted seconds.

        Predicted ones have all networks on one scale, also those that nobody has measured yet.
        """
        return self.guide.told(result) if self.guide is not None and self.axis == LATENCY else objectives(result)[0]
