"""What a candidate is made of: the parameters a sampler chooses, and the network they ask for.

Parameters, by name:
    budget_fraction: share of the scaled budget (flops when there is one, or one on latency, else params), log scale,
        so that fronts spread evenly in log cost.
    method: when there are several; chosen last, by `search.method_choice`.
    METHOD.SETTING: the searchable settings of that method that are not fixed.
    allocation: "search" (the widths below) or "method" (the method finds widths inside the budgets); only for
        methods that can.
    width.GROUP: in [0, 1], the group's share of its dense width relative to the other groups. 0.5 is the middle, and
        all groups at 0.5 are uniform widths; see `SPREAD`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pruning.base import METHODS, Goal
from pruning.settings import Setting, declared_settings
from runners.trial import Trial, TrialResult
from search.method_choice import Tried
from search.method_settings import parse_settings
from search.pareto import FLOPS, counted, measured
from search.result import UNIFORM_ARM
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace, uniform_point

if TYPE_CHECKING:
    from search.latency_guide import Guide

CONTROL_METHOD = "l2"
MAX_ARMS = 6
FLAT_SAMPLERS = ("gp", "nsga2")  # model only parameters that every trial has, so they are asked for all of them always
NEEDED_MARGIN = 1.05  # a budget this much above the smallest network leaves something to choose

# A width parameter x stands for the proportion SPREAD ** (t * |t|), t = 2x - 1: from 1/SPREAD to SPREAD, so no group
# gets under a quarter of the share of another. It is flat around the middle, so that what is drawn at random stays
# near uniform widths, a strong point: over a closed-form search of 20 groups, hypervolume gained on the uniform arms
# grew by a quarter when the spread of random draws fell from 2.5 to 1.5, and TPE's did not fall.
SPREAD = 2.0
MIDDLE = 0.5


class Suggest(Protocol):
    """What chooses the parameters (an Optuna trial)."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number between both bounds, included."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number between both bounds, included."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of the choices."""
        ...


@dataclass(frozen=True)
class Candidate:
    """What is to be tried: the part of a Trial that its parameters determine."""

    method: str
    goal: Goal
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A candidate tried before the sampler's: its parameters, its method and the arm it belongs to."""

    parameters: Mapping[str, Any]
    method: str
    arm: str = ""


@dataclass(frozen=True)
class StudySettings:
    """How candidates are chosen.

    Attributes:
        methods: names the search chooses among.
        fixed: method -> setting -> value (or its text); the other settings are searched.
        trials: how many candidates are tried, control arms included, repeats not counted.
        sampler: a name of `search.study.SAMPLERS`.
        seed: of the run.
        storage: Optuna storage URL; empty keeps the study in memory.
        lowest_fraction: the least share of the budget that is proposed, unless the smallest network needs more.
        allocation: "search" or "method" where a method can leave the widths to either; "any" tries both.
        name: of the study in its storage.
        resumed: the stored search may have had other budgets.
        guide: predicts latency, where it counts; axis: cost of the front, "flops" or "latency".
    """

    methods: tuple[str, ...] = ("di",)
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: int = 20
    sampler: str = "tpe"
    seed: int = 0
    storage: str = ""
    lowest_fraction: float = 0.03
    allocation: str = "any"
    name: str = "slimfront"
    resumed: bool = False
    guide: "Guide | None" = None
    axis: str = FLOPS


class CandidateSpace:
    """Turns parameters into candidates, all of them inside the budgets.

    Args:
        space: of the network.
        budgets: absolute; one on latency is kept by the guide of the settings, if there is one yet.

    Attributes:
        lowest_fraction: the least share of the scaled budget that is proposed.
        fixed: method -> setting -> value of the settings that are not searched.

    Raises:
        BudgetError: no budget, or one under the smallest network.
        SettingError: a fixed setting that does not exist or cannot take its value.
        UnknownNameError: a method that is in no table.
    """

    def __init__(self, settings: StudySettings, space: SearchSpace, budgets: Sequence[Budget]) -> None:
        self.methods = settings.methods
        self._allocation = settings.allocation
        self._classes = {name: METHODS[name] for name in dict.fromkeys((*settings.methods, CONTROL_METHOD))}
        self._settings = {name: declared_settings(each) for name, each in self._classes.items()}
        self.fixed = {name: parse_settings(name, values, self._settings) for name, values in settings.fixed.items()}
        self._space = space
        self._guide = settings.guide
        space.fit(uniform_point(space), budgets)  # raises for a budget that no network meets
        self._scaled = _scaled_quantity(budgets)
        budgets = counted(budgets) if self._guide is None else self._guide.analytic
        self._budgets = tuple(budgets)
        largest, smallest = space.cost(space.largest), space.smallest_cost
        limits = [budget.limit for budget in budgets if budget.quantity == self._scaled]
        self._base = min(*limits, getattr(largest, self._scaled), math.inf)
        needed = NEEDED_MARGIN * getattr(smallest, self._scaled) / self._base
        self.lowest_fraction = min(1.0, max(needed, settings.lowest_fraction))
        self._flat = settings.sampler in FLAT_SAMPLERS

    def control_arms(self, trials: int) -> list[Planned]:
        """Uniform widths with the control method: at least one, at most a third of the trials."""
        return [
            Planned(self._uniform(CONTROL_METHOD, fraction), CONTROL_METHOD, UNIFORM_ARM)
            for fraction in self._fractions(trials)
        ]

    def warm_starts(self, trials: int) -> list[Planned]:
        """Uniform proportions with each of the methods, at the fractions of the control arms.

        So a method and the control differ in the kept channels alone. Every method once, in the order they were
        given, as long as there are trials; then, where there is room, each other way of working (method, allocation);
        about a sixth of the trials and, but for the first round, at most a third.
        """
        ways = self._ways()
        fractions = self._fractions(trials)
        least = len({name for name, _ in ways})
        count = max(min(max(trials // 6, len(ways)), trials // 3), min(least, trials - len(fractions)))
        planned = []
        for index in range(count):
            name, allocation = ways[index % len(ways)]
            parameters = self._uniform(name, fractions[index % len(fractions)])
            if len(self._allocations(name)) > 1:
                parameters["allocation"] = allocation
            planned.append(Planned(parameters, name))
        return planned

    def untried(self, trials: int) -> tuple[str, ...]:
        """Return the methods that so few trials leave no room for."""
        planned = [each.method for each in (*self.control_arms(trials), *self.warm_starts(trials))]
        return tuple(name for name in self.methods if name not in planned)

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
        if allocation == "method" and not self._flat:
            return Candidate(method, found, settings)
        shares = [_proportion(suggest.suggest_float(f"width.{group.name}", 0.0, 1.0)) for group in self._space.variable]
        if allocation == "method":
            return Candidate(method, found, settings)
        fit = self._space.fit if self._guide is None else self._guide.fit
        widths = fit([share / max(shares) for share in shares], budgets)
        return Candidate(method, Goal(widths, budgets), settings)

    def budgets_at(self, fraction: float) -> tuple[Budget, ...]:
        """Return the budgets of a candidate that may take this fraction of the scaled one."""
        return tuple(self._at_fraction(budget, fraction) for budget in self._budgets)

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
        cost = self._space.cost(trial.goal.widths) if trial.goal.widths is not None else None
        cost = result.cost if result is not None and result.cost is not None else cost
        return float(getattr(cost, self._scaled, self._base) / self._base)

    def _ways(self) -> list[tuple[str, str]]:
        """List (method, allocation): the first of every method, then the second of those that have one.

        What the control arm does already is left out, unless it is all that is asked for.
        """
        able = {name: self._allocations(name) for name in self.methods}
        ways = [(name, each[turn]) for turn in (0, 1) for name, each in able.items() if turn < len(each)]
        return [way for way in ways if way != (CONTROL_METHOD, "search")] or ways

    def _allocations(self, method: str) -> tuple[str, ...]:
        """Return who may choose the widths that the method works at."""
        chosen = self._classes[method]
        able = {"search": chosen.takes_widths, "method": chosen.finds_widths}
        found = tuple(name for name, holds in able.items() if holds)
        return (self._allocation,) if self._allocation in found and method in self.methods else found

    def _draw_allocation(self, suggest: Suggest, method: str, foreign: bool) -> str:
        able = any(len(self._allocations(name)) > 1 for name in self.methods)
        asked = able and not foreign if self._flat else len(self._allocations(method)) > 1 and not foreign
        allocation = suggest.suggest_categorical("allocation", ("search", "method")) if asked else "search"
        allowed = self._allocations(method)
        return allocation if allocation in allowed else allowed[0]

    def _draw_settings(self, suggest: Suggest, method: str) -> dict[str, Any]:
        chosen = dict(self.fixed.get(method, {}))
        if method not in self.methods:
            return chosen
        for each in self._settings[method]:
            if each.searchable and each.name not in chosen:
                chosen[each.name] = _suggest_setting(suggest, f"{method}.{each.name}", each)
        return chosen

    def _uniform(self, method: str, fraction: float) -> dict[str, Any]:
        parameters: dict[str, Any] = {"budget_fraction": fraction}
        parameters |= {f"width.{group.name}": MIDDLE for group in self._space.variable}
        if method in self.methods and len(self.methods) > 1:
            parameters["method"] = method
        if method in self.methods and len(self._allocations(method)) > 1:
            parameters["allocation"] = "search"
        if method in self.methods:
            parameters |= {f"{method}.{each.name}": each.default for each in self._settings[method] if each.searchable}
        return parameters

    def _fractions(self, trials: int) -> list[float]:
        """Spread the control arms' budget fractions evenly in log cost, the whole budget first.

        Each method comes before a second arm.
        """
        count = max(1, min(MAX_ARMS, trials // 3, trials - len({name for name, _ in self._ways()})))
        return [self.lowest_fraction ** (index / max(1, count - 1)) for index in range(count)]

    def _at_fraction(self, budget: Budget, fraction: float) -> Budget:
        if budget.quantity != self._scaled:
            return budget
        return dataclasses.replace(budget, limit=math.floor(fraction * self._base))


def _suggest_setting(suggest: Suggest, name: str, each: Setting) -> Any:
    if each.choices:
        return suggest.suggest_categorical(name, each.choices)
    low, high = each.low or 0, each.high or 0
    if isinstance(each.default, int):
        return suggest.suggest_int(name, int(low), int(high), log=each.log)
    return suggest.suggest_float(name, float(low), float(high), log=each.log)


def _proportion(x: float) -> float:
    t = 2 * x - 1
    return float(SPREAD ** (t * abs(t)))


def _scaled_quantity(budgets: Sequence[Budget]) -> str:
    for quantity, scaled in (("flops", "flops"), ("latency", "flops"), ("params", "params")):
        if any(budget.quantity == quantity for budget in budgets):
            return scaled
    named = ", ".join(str(budget) for budget in budgets)
    raise BudgetError(f"budget {named or 'none'} limits nothing; add one such as 0.5gflops or 8ms")
