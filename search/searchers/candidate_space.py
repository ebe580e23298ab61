"""CandidateSpace: from parameters that a sampler chooses (`search.searchers.parameters`) to a candidate."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import BaseTrial

from pruning.base import METHODS, Goal
from pruning.settings import Setting
from pruning.traits import screenable
from runners.trial import Trial, TrialResult
from search.latency.predictor import LatencyPredictor
from search.problem import Problem, method_settings
from search.results.pareto import counted, measured, objectives
from search.searchers.cost_coverage import CostCoverage
from search.searchers.observation import Observation
from search.searchers.parameters import ALLOCATION, BUDGET_FRACTION, METHOD, WIDTH, proportion, suggest_setting
from spaces.budget import Budget
from spaces.cost import QUANTITIES
from spaces.errors import BudgetError
from spaces.space import uniform_ratios
from spaces.widths import Widths

STRUCTURED_SAMPLERS = ("structured",)  # use measured sensitivities
FLAT_SAMPLERS = ("gp", "nsga2")  # model only parameters that every trial has, so they are asked for all of them always
NEEDED_MARGIN = 1.05  # a budget this much above the smallest network leaves something to choose
HEADROOM = 1.25  # over the FLOPs of uniform widths that meet a budget on activations
SCALED = {"latency": "flops", "activations": "flops"}  # by which lower costs are found
CAPPED = 0.9  # of the scaled budget; a trial that costs less was narrowed by another budget


@dataclass(frozen=True)
class Candidate:
    """The part of a trial that its parameters determine."""

    method: str
    goal: Goal
    settings: Mapping[str, Any]
    training: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class InitialPoint:
    """A candidate of the initial design.

    Attributes:
        allocation: what chooses its widths, "search" (the parameters) or "method".
        baseline: the widths of the baseline that it is; empty for none.
    """

    parameters: Mapping[str, Any]
    method: str
    allocation: str = "search"
    baseline: str = ""


class CandidateSpace:
    """Turns parameters into candidates, all of them inside the budgets.

    Args:
        predictor: makes candidates that are predicted to be inside the latency budget; None for a search that needs no
            latency.

    Attributes:
        methods: names of the methods that the search chooses among.
        training: fine-tuning settings that are searched.
        lowest_fraction: the least share of the scaled budget that is proposed.
        cost_coverage: where on the scaled budget candidates go.
    """

    def __init__(self, problem: Problem, predictor: LatencyPredictor | None = None) -> None:
        self.problem, self._predictor = problem, predictor
        self.methods, self.training = problem.methods, problem.config.searched_training
        space = problem.space
        self._settings = method_settings(problem.methods)
        scaled = _scaled_quantity(problem.targets or problem.budgets)
        # A latency budget does not limit the FLOPs of targets, which are fractions of the user's budget.
        foreseen = predictor is not None and not (problem.targets and scaled == "flops")
        budgets = predictor.analytic if predictor is not None and foreseen else counted(problem.budgets)
        if not any(budget.quantity == scaled for budget in budgets):  # a budget on activations alone
            uniform = space.cost(space.fit(uniform_ratios(space), budgets)).flops
            budgets = (Budget(scaled, min(math.floor(HEADROOM * uniform), space.cost(space.largest).flops)), *budgets)
        self._budgets = tuple(budgets)
        limits = [budget.limit for budget in budgets if budget.quantity == scaled]
        base: float = min([*limits, getattr(space.cost(space.largest), scaled)])
        needed = NEEDED_MARGIN * getattr(space.smallest_cost, scaled) / base
        fractions = [target.limit / base for target in problem.targets]
        self.lowest_fraction = min(1.0, max(needed, problem.config.lowest_fraction), *fractions)
        self.cost_coverage = CostCoverage(scaled, base, self.lowest_fraction, problem.targets)
        self._flat = problem.config.sampler in FLAT_SAMPLERS

    def objective_cost(self, result: TrialResult) -> float:
        """Return the cost of a network that samplers are told and rungs judge by: FLOPs, or predicted seconds.

        Predicted seconds have all networks on one scale, also those that nobody has measured yet.
        """
        if self._predictor is not None and self.problem.axis == "latency":
            return self._predictor.model.predict(result.widths or Widths({}))
        return objectives(result)[0]

    def aims(self, trial: Trial) -> list[float]:
        """Return the limit on the scaled quantity that a trial was drawn to; empty where it had no such budget."""
        limits = [budget.limit for budget in trial.goal.budgets if budget.quantity == self.cost_coverage.quantity]
        if self._predictor is None or trial.goal.widths is not None:
            return limits
        # A method that finds widths itself was given less than its target, for its latency.
        above = (target.limit for target in self.problem.targets if target.limit >= max(limits, default=0))
        return [min(above, default=limit) for limit in limits]

    def draw(
        self,
        trial: BaseTrial,
        initial: InitialPoint | None = None,
        is_known: Callable[[Candidate], bool] = lambda _candidate: False,
    ) -> Candidate:
        """Have an Optuna trial choose every parameter; return the candidate that they stand for, inside the budgets.

        Args:
            initial: the point whose parameters are enqueued for the trial. A method that is none of `methods` (that
                of a baseline) is taken without asking.
            is_known: whether a candidate was tried. Where it is with the widths that the method finds, other widths are
                proposed: at a target, and with no setting searched, a method finds the same widths again.
        """
        fraction = trial.suggest_float(BUDGET_FRACTION, self.lowest_fraction, 1.0, log=True)
        method = initial.method if initial else self.methods[0]
        foreign = method not in self.methods
        if len(self.methods) > 1 and not foreign:
            method = trial.suggest_categorical(METHOD, self.methods)
        chosen = {name: self._draw_settings(trial, name) for name in (self.methods if self._flat else [method])}
        settings = chosen.get(method) or dict(self.problem.fixed.get(method, {}))
        training = self._draw_training(trial, initial)
        own = Candidate(method, self._own_goal(fraction), settings, training)
        allocation = self._draw_allocation(trial, own, initial, is_known)
        if allocation == "method" and not self._flat:
            return own
        names = [WIDTH + group.name for group in self.problem.space.variable]
        shares = [proportion(trial.suggest_float(name, 0.0, 1.0)) for name in names]
        if allocation == "method":
            return own
        budgets = self.budgets_at(fraction)
        fit = self.problem.space.fit if self._predictor is None else self._predictor.fit
        widths = fit([share / max(shares) for share in shares], budgets)
        return Candidate(method, Goal(widths, budgets), settings, training)

    def single(self, method: str, fraction: float) -> Candidate | None:
        """Return the only candidate of a method at a fraction; None where widths, settings or training vary."""
        if "search" in self.allocations(method) or self.searchable(method) or self.training:
            return None
        return Candidate(method, self._own_goal(fraction), dict(self.problem.fixed.get(method, {})))

    def _own_goal(self, fraction: float) -> Goal:
        """Return the goal of a method that finds its widths itself."""
        return self.goal_within(self.cost_coverage.limit(fraction))

    def budgets_at(self, fraction: float) -> tuple[Budget, ...]:
        """Return the budgets of a candidate that may take this fraction of the scaled one."""
        scaled = self.cost_coverage.limit(fraction)
        return tuple(scaled if budget.quantity == self.cost_coverage.quantity else budget for budget in self._budgets)

    def goal_within(self, limit: Budget) -> Goal:
        """Return the goal of a method that finds widths itself inside the budgets and a limit on the scaled one."""
        budgets = tuple(limit if budget.quantity == limit.quantity else budget for budget in self._budgets)
        return Goal(None, budgets if self._predictor is None else self._predictor.for_methods(budgets))

    def screenable(self, trial: Trial) -> bool:
        """Return whether a trial can be compared before any training, with other widths at its budget fraction."""
        differ = "search" in self.allocations(trial.method)
        return differ and screenable(METHODS[trial.method], trial.settings)

    def limits_at(self, fraction: float) -> tuple[float, ...]:
        """Return the limits on each of QUANTITIES at a fraction of the scaled budget; infinite where none is."""
        budgets = self.budgets_at(fraction)
        return tuple(
            min([math.inf, *[budget.limit for budget in budgets if budget.quantity == quantity]])
            for quantity in QUANTITIES
        )

    def share(self, cost: Mapping[str, int]) -> float:
        """Return the share of the scaled budget that a network of this cost, as plain data, takes."""
        return float(cost[self.cost_coverage.quantity] / self.cost_coverage.base)

    @property
    def latency_use(self) -> Callable[[NDArray[np.float64]], NDArray[np.float64]] | None:
        """Function from widths, shape (n, variable groups), to predicted shares of the latency limit, shape (n,).

        None without such a limit.
        """
        return None if self._predictor is None or math.isinf(self.problem.latency_limit) else self._predictor.use

    def places(self, trial: Trial, result: TrialResult | None = None) -> tuple[float, ...]:
        """Return the fractions of the scaled budget at which a trial counts: the cost of its network, or its limit.

        Widths that another budget has made clearly narrower count at both: no trial with that limit would cost more.
        """
        allowed, share = self.fraction(trial, result), self.observe(trial, result).fraction
        return (share, allowed) if trial.goal.widths is not None and share < CAPPED * allowed else (share,)

    def observe(self, trial: Trial, result: TrialResult | None = None) -> Observation:
        """Return the observation of a trial by which a method is chosen; without a result the trial is pending."""
        if result is None or not measured(result):
            return Observation(trial.method, self.fraction(trial, result), failed=result is not None)
        cost = getattr(result.cost, self.cost_coverage.quantity)
        return Observation(trial.method, cost / self.cost_coverage.base, result.accuracy, result.train_seconds)

    def fraction(self, trial: Trial, result: TrialResult | None = None) -> float:
        """Return the share of the scaled budget that a trial may cost; above 1 where earlier budgets were higher.

        Where an earlier search had no such budget, the cost of its network counts.
        """
        for budget in trial.goal.budgets:
            if budget.quantity == self.cost_coverage.quantity:
                return float(budget.limit / self.cost_coverage.base)
        cost = self.problem.space.cost(trial.goal.widths) if trial.goal.widths is not None else None
        cost = result.cost if result is not None and result.cost is not None else cost
        return float(getattr(cost, self.cost_coverage.quantity, self.cost_coverage.base) / self.cost_coverage.base)

    def searchable(self, method: str) -> list[Setting]:
        """Return the settings of a method that this search varies."""
        if method not in self.problem.config.searched_settings:
            return []
        fixed = self.problem.fixed.get(method, {})
        return [setting for setting in self._settings[method] if setting.searchable and setting.name not in fixed]

    def allocations(self, method: str) -> tuple[str, ...]:
        """Return who may choose the widths of a method: "search", "method" or both."""
        chosen = METHODS[method]
        able = {"search": chosen.takes_widths, "method": chosen.finds_widths}
        found = tuple(name for name, holds in able.items() if holds)
        asked = self.problem.config.allocation
        return (asked,) if asked in found and method in self.methods else found

    def _draw_allocation(
        self, trial: BaseTrial, own: Candidate, initial: InitialPoint | None, is_known: Callable[[Candidate], bool]
    ) -> str:
        """Let the allocation be chosen, where it may vary; `own` is the candidate with the widths that it finds."""
        allowed = self.allocations(own.method)
        if initial is None and "search" in allowed and is_known(own):
            allowed = ("search",)
        able = any(len(self.allocations(name)) > 1 for name in self.methods) if self._flat else len(allowed) > 1
        asked = able and own.method in self.methods
        allocation = trial.suggest_categorical(ALLOCATION, ("search", "method")) if asked else allowed[0]
        if initial is not None:
            return initial.allocation
        return allocation if allocation in allowed else allowed[0]

    def _draw_settings(self, trial: BaseTrial, method: str) -> dict[str, Any]:
        drawn = {s.name: suggest_setting(trial, f"{method}.{s.name}", s) for s in self.searchable(method)}
        return {**self.problem.fixed.get(method, {}), **drawn}

    def _draw_training(self, trial: BaseTrial, initial: InitialPoint | None) -> dict[str, float]:
        """Let the searched fine-tuning settings be chosen; a baseline is trained with the set values."""
        baseline = initial is not None and bool(initial.baseline)
        if baseline and not self._flat:
            return {}
        drawn = {setting.name: suggest_setting(trial, f"train.{setting.name}", setting) for setting in self.training}
        return {} if baseline else drawn


def _scaled_quantity(budgets: Sequence[Budget]) -> str:
    for quantity in ("flops", "latency", "params", "size", "activations"):
        if any(budget.quantity == quantity for budget in budgets):
            return SCALED.get(quantity, quantity)
    named = ", ".join(str(budget) for budget in budgets)
    raise BudgetError(f"budget {named or 'none'} limits nothing; add one such as 0.5gflops or 8ms")
