"""What a candidate is made of: the parameters a sampler chooses, and the network they ask for.

Parameters, by name:
    budget_fraction: share of the scaled budget (that of the targets when there are some, else flops when there is one,
        or one on latency, else params), log scale, so that fronts spread evenly in log cost; with targets it is always
        one of theirs.
    method: when there are several; chosen last, by `search.searchers.method_choice`.
    train.SETTING: the fine-tuning settings that are searched; not of control arms.
    METHOD.SETTING: the searchable settings of that method that are not fixed.
    allocation: "search" (the widths below) or "method" (the method finds widths inside the budgets); only for
        methods that can.
    width.GROUP: in [0, 1], the group's share of its dense width relative to the other groups. 0.5 is the middle, and
        all groups at 0.5 are uniform widths; see `search.searchers.width_parameters`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning.base import METHODS, Goal
from pruning.settings import Setting, declared_settings, parse_settings
from pruning.traits import pausable, screenable
from runners.trial import Trial, TrialResult
from search.results.pareto import counted, measured
from search.searchers.cost_coverage import Spread
from search.searchers.method_choice import Tried
from search.searchers.study_settings import StudySettings
from search.searchers.suggesting import Suggest, suggest_setting
from search.searchers.width_parameters import proportion
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace, uniform_ratios
from spaces.targets import absolute_targets

CONTROL_METHOD = "l2"
FLAT_SAMPLERS = ("gp", "nsga2")  # model only parameters that every trial has, so they are asked for all of them always
NEEDED_MARGIN = 1.05  # a budget this much above the smallest network leaves something to choose
CAPPED = 0.9  # of the scaled budget that a trial might cost; what costs less was narrowed by another budget


@dataclass(frozen=True)
class Candidate:
    """What is to be tried: the part of a Trial that its parameters determine."""

    method: str
    goal: Goal
    settings: Mapping[str, Any]
    training: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A candidate tried before the sampler's: its parameters, its method and the arm it belongs to."""

    parameters: Mapping[str, Any]
    method: str
    baseline: str = ""


class CandidateSpace:
    """Turns parameters into candidates, all of them inside the budgets.

    Args:
        space: of the network.
        budgets: absolute; one on latency is kept by the guide of the settings, if there is one yet.

    Attributes:
        lowest_fraction: the least share of the scaled budget that is proposed.
        fixed: method -> setting -> value of the settings that are not searched.
        targets: absolute, the largest first.
        training: fine-tuning settings that are searched.
        spread: of the candidates over the scaled budget.
        space: of the network.
        sensitivities: group -> what narrowing it alone to half costs; None until it is measured.

    Raises:
        BudgetError: no budget, or one under the smallest network; a target out of reach.
        SettingError: a fixed setting that does not exist or cannot take its value.
        UnknownNameError: a method that is in no table.
    """

    def __init__(self, settings: StudySettings, space: SearchSpace, budgets: Sequence[Budget]) -> None:
        self.methods = settings.methods
        self._allocation = settings.allocation
        self.training = settings.training
        self._classes = {name: METHODS[name] for name in dict.fromkeys((*settings.methods, CONTROL_METHOD))}
        self._settings = {name: declared_settings(each) for name, each in self._classes.items()}
        self.fixed = {name: parse_settings(name, values, self._settings) for name, values in settings.fixed.items()}
        self._guide = settings.guide
        self.space = space
        self.sensitivities: Mapping[str, float] | None = None
        space.fit(uniform_ratios(space), budgets)  # raises for a budget that no network meets
        self.targets = absolute_targets(settings.targets, budgets, space)
        self._scaled = _scaled_quantity(self.targets or budgets)
        # What latency allows is no limit on the FLOPs of targets: these are fractions of what the user gave.
        foreseen = self._guide is not None and not (self.targets and self._scaled == "flops")
        budgets = self._guide.analytic if self._guide is not None and foreseen else counted(budgets)
        self._budgets = tuple(budgets)
        largest, smallest = space.cost(space.largest), space.smallest_cost
        limits = [budget.limit for budget in budgets if budget.quantity == self._scaled]
        self._base: float = min(*limits, getattr(largest, self._scaled), math.inf)
        needed = NEEDED_MARGIN * getattr(smallest, self._scaled) / self._base
        fractions = [target.limit / self._base for target in self.targets]
        self.lowest_fraction = min(1.0, max(needed, settings.lowest_fraction), *fractions)
        self.spread = Spread(self._scaled, self._base, self.lowest_fraction, self.targets)
        self._flat = settings.sampler in FLAT_SAMPLERS

    def next_fraction(self, tried: Iterable[Trial], turn: int = 0) -> float | None:
        """Return the target that the next trial goes to, as a share of the scaled budget; None without targets.

        Args:
            tried: every trial given out, running ones too.
            turn: how many proposals in a row have repeated earlier ones.
        """
        return self.spread.next_target((limit for trial in tried for limit in self._aims(trial)), turn)

    def _aims(self, trial: Trial) -> list[float]:
        """Return the limit of the scaled budget that a trial was drawn to, none where it had no such budget."""
        limits = [budget.limit for budget in trial.goal.budgets if budget.quantity == self._scaled]
        if self._guide is None or trial.goal.widths is not None:
            return limits
        # A method that finds widths itself was given less than its target, for its latency.
        above = (target.limit for target in self.targets if target.limit >= max(limits, default=0))
        return [min(above, default=each) for each in limits]

    def draw(self, suggest: Suggest, planned: Planned | None = None) -> Candidate:
        """Let `suggest` choose every parameter, and return the candidate they stand for, inside the budgets.

        Args:
            planned: its method is taken without asking when it is none of `methods` (the control arm).
        """
        fraction = suggest.suggest_float("budget_fraction", self.lowest_fraction, 1.0, log=True)
        method = planned.method if planned else self.methods[0]
        foreign = method not in self.methods
        if len(self.methods) > 1 and not foreign:
            method = suggest.suggest_categorical("method", self.methods)
        chosen = {name: self._draw_settings(suggest, name) for name in (self.methods if self._flat else [method])}
        allocation = self._draw_allocation(suggest, method, foreign)
        budgets = self.budgets_at(fraction)
        settings = chosen.get(method) or dict(self.fixed.get(method, {}))
        found = Goal(None, budgets if self._guide is None else self._guide.for_methods(budgets))
        training = self._draw_training(suggest, planned)
        if allocation == "method" and not self._flat:
            return Candidate(method, found, settings, training)
        shares = [proportion(suggest.suggest_float(f"width.{group.name}", 0.0, 1.0)) for group in self.space.variable]
        if allocation == "method":
            return Candidate(method, found, settings, training)
        fit = self.space.fit if self._guide is None else self._guide.fit
        widths = fit([share / max(shares) for share in shares], budgets)
        return Candidate(method, Goal(widths, budgets), settings, training)

    def budgets_at(self, fraction: float) -> tuple[Budget, ...]:
        """Return the budgets of a candidate that may take this fraction of the scaled one."""
        scaled = self.spread.limit(fraction)
        return tuple(scaled if budget.quantity == self._scaled else budget for budget in self._budgets)

    def pausable(self, trial: Trial) -> bool:
        """Whether a trial can be trained in parts."""
        return pausable(self._classes[trial.method], trial.settings)

    def screenable(self, trial: Trial) -> bool:
        """Whether a trial can be compared before any training, with others at its budget fraction that may differ."""
        differ = "search" in self.allocations(trial.method)
        return differ and screenable(self._classes[trial.method], trial.settings)

    def limits_at(self, fraction: float) -> tuple[float, float]:
        """Return the limits on FLOPs and on parameters at a fraction of the scaled budget; infinite where none is."""
        budgets = self.budgets_at(fraction)
        flops, params = (
            min([math.inf, *[each.limit for each in budgets if each.quantity == quantity]])
            for quantity in ("flops", "params")
        )
        return flops, params

    def share(self, cost: Mapping[str, int]) -> float:
        """Return what share of the scaled budget a network costs, of its flops and params."""
        return float(cost[self._scaled] / self._base)

    @property
    def latency_use(self) -> Callable[[NDArray[np.float64]], NDArray[np.float64]] | None:
        """Widths of the variable groups, shape (n, groups) -> shares of the latency limit, as predicted.

        None without such a limit.
        """
        return None if self._guide is None or math.isinf(self._guide.limit) else self._guide.use

    def places(self, trial: Trial, result: TrialResult | None = None) -> tuple[float, ...]:
        """Return where on the range of the scaled budget a trial counts: at what its network costs, or may cost.

        Widths that another budget has made clearly narrower count at both: nothing tried there would ever cost more.
        """
        allowed, share = self.fraction(trial, result), self.tried(trial, result).share
        return (share, allowed) if trial.goal.widths is not None and share < CAPPED * allowed else (share,)

    def tried(self, trial: Trial, result: TrialResult | None = None) -> Tried:
        """Return what the choice of a method sees of a trial of this search; without a result it runs."""
        if result is None or not measured(result):
            return Tried(trial.method, self.fraction(trial, result), failed=result is not None)
        cost = getattr(result.cost, self._scaled)
        return Tried(trial.method, cost / self._base, result.accuracy, result.train_seconds)

    def fraction(self, trial: Trial, result: TrialResult | None = None) -> float:
        """Return the share of the scaled budget that a trial may cost; above 1 where earlier budgets were higher.

        Where an earlier search had no such budget, what its network costs counts.
        """
        for budget in trial.goal.budgets:
            if budget.quantity == self._scaled:
                return float(budget.limit / self._base)
        cost = self.space.cost(trial.goal.widths) if trial.goal.widths is not None else None
        cost = result.cost if result is not None and result.cost is not None else cost
        return float(getattr(cost, self._scaled, self._base) / self._base)

    def searchable(self, method: str) -> list[Setting]:
        """Return the settings of a method that may be searched, fixed ones too."""
        return [each for each in self._settings[method] if each.searchable]

    def allocations(self, method: str) -> tuple[str, ...]:
        """Return who may choose the widths that the method works at."""
        chosen = self._classes[method]
        able = {"search": chosen.takes_widths, "method": chosen.finds_widths}
        found = tuple(name for name, holds in able.items() if holds)
        return (self._allocation,) if self._allocation in found and method in self.methods else found

    def _draw_allocation(self, suggest: Suggest, method: str, foreign: bool) -> str:
        able = any(len(self.allocations(name)) > 1 for name in self.methods)
        asked = able and not foreign if self._flat else len(self.allocations(method)) > 1 and not foreign
        allocation = suggest.suggest_categorical("allocation", ("search", "method")) if asked else "search"
        allowed = self.allocations(method)
        return allocation if allocation in allowed else allowed[0]

    def _draw_settings(self, suggest: Suggest, method: str) -> dict[str, Any]:
        chosen = dict(self.fixed.get(method, {}))
        if method not in self.methods:
            return chosen
        for each in self.searchable(method):
            if each.name not in chosen:
                chosen[each.name] = suggest_setting(suggest, f"{method}.{each.name}", each)
        return chosen

    def _draw_training(self, suggest: Suggest, planned: Planned | None) -> dict[str, float]:
        """Let the searched fine-tuning settings be chosen; a control arm is trained as the search was told to."""
        baseline = planned is not None and bool(planned.baseline)
        if baseline and not self._flat:
            return {}
        drawn = {each.name: suggest_setting(suggest, f"train.{each.name}", each) for each in self.training}
        return {} if baseline else drawn


def _scaled_quantity(budgets: Sequence[Budget]) -> str:
    for quantity, scaled in (("flops", "flops"), ("latency", "flops"), ("params", "params")):
        if any(budget.quantity == quantity for budget in budgets):
            return scaled
    named = ", ".join(str(budget) for budget in budgets)
    raise BudgetError(f"budget {named or 'none'} limits nothing; add one such as 0.5gflops or 8ms")
