"""A closed-form search over the groups of a real network, whose best front is known: for comparing samplers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from runners.simulated.runner import Outcome
from runners.trial import Trial
from spaces.space import SearchSpace, uniform_ratios


@dataclass(frozen=True)
class GroupedAccuracy:
    """Accuracy in which every group matters as much as it likes, with a best choice of widths that is known.

    With x the share of the dense width that a group keeps, it loses h(x) = -log((1 - exp(-rate x)) / (1 - exp(-rate))),
    and accuracy is `guess + (best - guess) * exp(-strength * sum_i importance_i * h(x_i))`. Every h is convex in log x
    and the cost, a polynomial of positive terms, has a convex logarithm: the best widths at a cost are a convex
    program, with one optimum (`best_at`).

    Attributes:
        importance: group name -> at least 0; they are scaled to add up to 1.
        rate: how soon a group saturates.
        scatter: standard deviation of a measured accuracy; the same trial always gives the same.
    """

    space: SearchSpace
    importance: Mapping[str, float]
    rate: float = 3.0
    strength: float = 0.5
    best: float = 0.93
    guess: float = 0.1
    scatter: float = 0.0

    @classmethod
    def drawn(cls, space: SearchSpace, seed: int, scatter: float = 0.0) -> "GroupedAccuracy":
        """Draw importances: trend over depth x effect of sharing x (share of FLOPs) ** power x log-normal deviations.

        Sign and strength of each differ from seed to seed, so that nothing assumed of them beforehand is always right.
        """
        random = np.random.default_rng(seed)
        groups = space.variable
        dense = space.dense_cost.flops
        spared = [1 - space.cost(space.full | {each.name: each.lowest}).flops / dense for each in groups]
        depth = np.linspace(-1.0, 1.0, len(groups))
        sharing = np.log([len(each.producers) + len(each.consumers) + 1 for each in groups])
        logs = random.normal(0.0, 0.8) * depth + random.normal(0.0, 0.8) * (sharing - sharing.mean())
        logs += random.uniform(0.0, 1.0) * np.log(spared) + random.normal(0.0, 0.6, len(groups))
        return cls(space, dict(zip([g.name for g in groups], np.exp(logs).tolist(), strict=True)), scatter=scatter)

    def __call__(self, trial: Trial) -> Outcome:
        """Return the outcome of a trial; from budgets alone it takes uniform widths."""
        goal = trial.goal
        budgets = [budget.resolve(self.space.dense_cost) for budget in goal.budgets]
        widths = goal.widths if goal.widths is not None else self.space.fit(uniform_ratios(self.space), budgets)
        self.space.check(widths)
        noise = self.scatter * float(np.random.default_rng(trial.seed).standard_normal()) if self.scatter else 0.0
        accuracy = min(1.0, max(0.0, self.accuracy(widths) + noise))
        return Outcome(accuracy, self.space.cost(widths), widths, 1.0)

    def accuracy(self, widths: Mapping[str, int]) -> float:
        """Return the accuracy of widths without scatter, in (guess, best]."""
        kept = np.array([[widths.get(each.name, each.width) / each.width for each in self.space.variable]])
        return float(self._accuracy(np.log(kept))[0])

    def best_at(self, flops: float) -> float:
        """Return the accuracy of the best widths within so many FLOPs, real-valued ones among them.

        No legal widths are better. Solved as a convex program in log widths.

        Raises:
            ValueError: less than the smallest network has.
        """
        space, groups = self.space, self.space.variable
        if flops < space.smallest_cost.flops:
            raise ValueError(f"{flops} flops are less than the smallest network's {space.smallest_cost.flops}")
        full = np.array([each.width for each in groups], dtype=np.float64)
        low, high = (np.log(np.array([getattr(g, name) for g in groups]) / full) for name in ("lowest", "ceiling"))

        def left(log_kept: NDArray[np.float64]) -> float:
            return math.log(flops / space.cost_model.batch(full * np.exp(log_kept)[None])[0][0])

        def left_slope(log_kept: NDArray[np.float64]) -> NDArray[np.float64]:
            widths = full * np.exp(log_kept)[None]
            slopes, spent = space.cost_model.slopes(widths)[0][0], space.cost_model.batch(widths)[0][0]
            return np.asarray(-slopes * widths[0] / spent)

        if left(high) >= 0:
            return float(self._accuracy(high[None])[0])
        found = minimize(
            lambda u: float(self._lost(u[None])[0]),
            np.clip(np.full(len(full), math.log(flops / space.dense_cost.flops) / 2), low, high),
            jac=lambda u: self._lost_slope(u),
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "ineq", "fun": left, "jac": left_slope},
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-8},
        )
        return float(self._accuracy(found.x[None])[0])

    def _weights(self) -> NDArray[np.float64]:
        weights = np.array([self.importance[each.name] for each in self.space.variable])
        return np.asarray(weights / weights.sum())

    def _lost(self, log_kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weighted sum of h for rows of log shares, shape (n,)."""
        each = np.log(math.expm1(-self.rate) / np.expm1(-self.rate * np.exp(log_kept)))
        return np.asarray(each @ self._weights())

    def _lost_slope(self, log_kept: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = self.rate * np.exp(log_kept)
        return np.asarray(-self._weights() * scaled / np.expm1(scaled))

    def _accuracy(self, log_kept: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.guess + (self.best - self.guess) * np.exp(-self.strength * self._lost(log_kept)))
