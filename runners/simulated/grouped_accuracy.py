"""A closed-form accuracy over the groups of a real network whose best widths are known, for comparing samplers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.simulated.runner import SimulatedOutcome
from runners.trial import Trial
from spaces.space import SearchSpace, uniform_ratios


@dataclass(frozen=True)
class GroupedAccuracy:
    """Accuracy in which every group has an importance of its own, with a known best choice of widths.

    A group of width ratio x loses h(x) = -log((1 - exp(-rate x)) / (1 - exp(-rate))), and the accuracy is
    `guess + (best - guess) * exp(-strength * sum_i importance_i * h(x_i))`. Every h is convex in log x, and the cost, a
    polynomial of positive terms, has a logarithm that is convex in log x. The best widths at a cost are therefore the
    only optimum of a convex program (`best_at`).

    Attributes:
        importance: group name -> at least 0; scaled so that the sum is 1.
        rate: of saturation, the same for all groups.
        guess: accuracy that remains at no width.
        noise_std: standard deviation of a trial's accuracy; it depends on the trial's seed alone.
    """

    space: SearchSpace
    importance: Mapping[str, float]
    rate: float = 3.0
    strength: float = 0.5
    best: float = 0.93
    guess: float = 0.1
    noise_std: float = 0.0

    @classmethod
    def random(cls, space: SearchSpace, seed: int, noise_std: float = 0.0) -> "GroupedAccuracy":
        """Draw importances: a trend over depth x an effect of sharing x (share of FLOPs) ** power x log-normal noise.

        Sign and strength of every factor differ from seed to seed, so that no prior assumption about them always holds.
        """
        generator = np.random.default_rng(seed)
        groups = space.variable
        dense = space.dense_cost.flops
        saved = [1 - space.cost(space.full | {group.name: group.lowest}).flops / dense for group in groups]
        depth = np.linspace(-1.0, 1.0, len(groups))
        sharing = np.log([len(group.producers) + len(group.consumers) + 1 for group in groups])
        logs = generator.normal(0.0, 0.8) * depth + generator.normal(0.0, 0.8) * (sharing - sharing.mean())
        logs += generator.uniform(0.0, 1.0) * np.log(saved) + generator.normal(0.0, 0.6, len(groups))
        importance = dict(zip([group.name for group in groups], np.exp(logs).tolist(), strict=True))
        return cls(space, importance, noise_std=noise_std)

    def __call__(self, trial: Trial) -> SimulatedOutcome:
        """Return the outcome of a trial; a goal without widths gets uniform ones within its budgets."""
        goal = trial.goal
        budgets = [budget.resolve(self.space.dense_cost) for budget in goal.budgets]
        widths = goal.widths if goal.widths is not None else self.space.fit(uniform_ratios(self.space), budgets)
        self.space.check(widths)
        noise = self.noise_std * float(np.random.default_rng(trial.seed).standard_normal()) if self.noise_std else 0.0
        accuracy = min(1.0, max(0.0, self.accuracy(widths) + noise))
        return SimulatedOutcome(accuracy, self.space.cost(widths), widths, 1.0)

    def accuracy(self, widths: Mapping[str, int]) -> float:
        """Return the accuracy of widths without noise, in (guess, best]."""
        ratios = np.array([[widths.get(group.name, group.width) / group.width for group in self.space.variable]])
        return float(self._accuracy(np.log(ratios))[0])

    def best_at(self, flops: float) -> float:
        """Return the accuracy of the best real-valued widths within a number of FLOPs; no legal widths are better.

        It is the solution of a convex program in the logs of the width ratios.

        Raises:
            ValueError: the FLOPs are fewer than those of the smallest network.
        """
        from scipy.optimize import minimize  # here, as the light simulated runner shares the wing

        space, groups = self.space, self.space.variable
        if flops < space.smallest_cost.flops:
            raise ValueError(f"{flops} flops are less than the smallest network's {space.smallest_cost.flops}")
        full = np.array([group.width for group in groups], dtype=np.float64)
        low, high = (
            np.log(np.array([getattr(group, name) for group in groups]) / full) for name in ("lowest", "ceiling")
        )

        def slack(log_ratios: NDArray[np.float64]) -> float:
            return math.log(flops / space.cost_model.batch(full * np.exp(log_ratios)[None])[0][0])

        def slack_gradient(log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
            widths = full * np.exp(log_ratios)[None]
            slopes, cost = space.cost_model.slopes(widths)[0][0], space.cost_model.batch(widths)[0][0]
            return np.asarray(-slopes * widths[0] / cost)

        if slack(high) >= 0:
            return float(self._accuracy(high[None])[0])
        solution = minimize(
            lambda u: float(self._loss(u[None])[0]),
            np.clip(np.full(len(full), math.log(flops / space.dense_cost.flops) / 2), low, high),
            jac=lambda u: self._loss_gradient(u),
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "ineq", "fun": slack, "jac": slack_gradient},
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-8},
        )
        return float(self._accuracy(solution.x[None])[0])

    def _weights(self) -> NDArray[np.float64]:
        weights = np.array([self.importance[group.name] for group in self.space.variable])
        return np.asarray(weights / weights.sum())

    def _loss(self, log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weighted sum of h, shape (n,), for log width ratios of shape (n, groups)."""
        losses = np.log(math.expm1(-self.rate) / np.expm1(-self.rate * np.exp(log_ratios)))
        return np.asarray(losses @ self._weights())

    def _loss_gradient(self, log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = self.rate * np.exp(log_ratios)
        return np.asarray(-self._weights() * scaled / np.expm1(scaled))

    def _accuracy(self, log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.guess + (self.best - self.guess) * np.exp(-self.strength * self._loss(log_ratios)))
