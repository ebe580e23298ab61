"""Which widths to try next: the candidate with the largest expected hypervolume improvement of the front.

The cost of a candidate is known before it is tried, so only its accuracy is uncertain, and the expected improvement has
a closed form: the integral, over the costs from the candidate's own up to the budget, of the expected height above the
front. Costs are logarithmic, so that the front grows evenly over log cost. Candidates start from uniform widths, from
networks of the front with a few groups or a structural direction changed, and from random widths. Each candidate is
then moved along its budget by the gradient of the accuracy under one posterior sample of the surrogate (Thompson
sampling), or under the posterior mean.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.results.pareto import non_dominated
from search.searchers.observation import Observation, arcsine_sqrt
from search.searchers.structure import Structure
from search.searchers.surrogate import Deviations, Networks, Surrogate
from spaces.projection import Floats, Relaxation

COSTS = 12  # budget fractions at which candidates are compared, one in each equal part of the log range
PER_COST = 6  # candidates at each of them
STEP_SIZES = (0.5, 0.5, 0.25, 0.25, 0.125, 0.125)  # of each gradient step: change of the largest log2 proportion
# Candidates that are passed over, best first, for every proposal in a row that was a repeat: small spaces have few.
SKIPPED = 4
MOST = 250  # number of observations to which the surrogate is fitted: the latest, and the most accurate before them
REFITTED = 10  # proposals after which the deviations of a surrogate of so many observations are chosen anew
Member = tuple[float, float, tuple[float, ...]]  # of a front: scaled log cost, arcsine_sqrt of accuracy, log2 ratios


@dataclass(frozen=True)
class Proposal:
    """A candidate to try.

    Attributes:
        fraction: of the scaled budget.
        proportions: log2 proportions of the groups, shape (groups,), within +-`Acquisition.max_log2`.
    """

    fraction: float
    proportions: Floats


@dataclass(eq=False)
class Acquisition:
    """Proposes candidates of one search.

    Attributes:
        limits: fraction of the scaled budget -> limits on each of QUANTITIES.
        lowest_fraction: the least fraction that is proposed.
        methods: of the search; the networks of all other methods count as those of one further method.
        max_log2: most by which a log2 proportion may differ from that of uniform widths, 0.
    """

    structure: Structure
    relaxation: Relaxation
    limits: Callable[[float], tuple[float, ...]]
    lowest_fraction: float
    methods: Sequence[str] = ("",)
    max_log2: float = 1.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        """Start without a model."""
        self._deviations: Deviations | None = None
        self._proposals = 0  # since these were chosen

    def propose(self, observed: Sequence[Observation], fraction: float | None = None, repeats: int = 0) -> Proposal:
        """Return the candidate to try next.

        Args:
            observed: finished trials, at least one of them with an accuracy, and pending ones.
            fraction: to propose widths at; None has the fraction chosen too.
            repeats: number of proposals in a row, just before this one, that rounding made repeats of earlier trials.
        """
        if repeats * SKIPPED >= COSTS * PER_COST // 2:
            return self._random_proposal(fraction)
        measured = _most_informative([observation for observation in observed if observation.accuracy is not None])
        pending = [observation for observation in observed if observation.accuracy is None]
        values = np.array([arcsine_sqrt(observation.accuracy or 0.0) for observation in measured])
        pending_networks = self._networks(pending)
        model = self._model(measured, values, pending_networks)
        # Pending networks count as if they had their expected accuracy, so that parallel proposals spread.
        expected = model.predict(pending_networks)[0].tolist() if pending else []
        finished = [pair for pair in zip(measured, values.tolist(), strict=True) if pair[0].training >= 1]
        known = [*(finished or zip(measured, values.tolist(), strict=True)), *zip(pending, expected, strict=True)]
        members = [(self._cost(observation.fraction), value, observation.log2_ratios) for observation, value in known]
        front = non_dominated(members, lambda member: member[:2])
        fractions = self._fractions(fraction)
        limits = np.array([self.limits(fraction) for fraction in fractions])
        proportions, networks = self._optimize(model, self._starting_points(fractions, front), fractions, limits)
        improvements = expected_hypervolume_improvement(front, networks.cost, *model.predict(networks))
        best = int(np.argsort(-improvements, kind="stable")[repeats * SKIPPED])
        return Proposal(float(fractions[best]), proportions[best])

    def _model(self, measured: Sequence[Observation], values: Floats, pending: Networks) -> Surrogate:
        """Return the surrogate of these observations.

        From `MOST` of them on the most likely deviations hardly change any more (not once in 450 proposals for
        ResNet-50), and finding them took a third of the time.
        """
        self._proposals += 1
        if len(measured) < MOST or self._proposals >= REFITTED:
            self._deviations, self._proposals = None, 0
        networks, methods = self._networks(measured), len(self.methods) + 1
        model = Surrogate(self.structure, methods, networks, values, pending, self._deviations)
        self._deviations = model.deviations
        return model

    def _random_proposal(self, fraction: float | None) -> Proposal:
        places = self.random.random(1 + len(self.structure.directions))
        return Proposal(
            float(self.lowest_fraction ** places[0]) if fraction is None else fraction,
            self.max_log2 * (2 * places[1:] - 1),
        )

    def _optimize(
        self, model: Surrogate, proportions: Floats, fractions: Floats, limits: Floats
    ) -> tuple[Floats, Networks]:
        """Move every candidate along its budget by the gradient of its own posterior sample.

        The first candidate at each cost uses the posterior mean instead.

        Returns:
            The log2 proportions, shape (n, groups), and the networks that they give.
        """
        costs, zeros = np.array([self._cost(fraction) for fraction in fractions]), np.zeros(len(fractions))
        networks = Networks(self.relaxation.fit(proportions, limits), costs, zeros.astype(np.int64), zeros)
        method = model.best_method(networks, len(self.methods)) if len(self.methods) > 1 else 0
        networks = dataclasses.replace(networks, method=np.full(len(costs), method))
        weights = model.posterior_samples(len(costs), self.random)
        weights[::PER_COST] = model.mean
        for step in STEP_SIZES:
            gradient = model.gradient(weights, networks)
            normal = self.relaxation.slopes(networks.log2_ratios, limits)  # of the surface of equal cost
            projection = (gradient * normal).sum(1) / np.maximum((normal**2).sum(1), 1e-12)
            along = gradient - normal * projection[:, None]
            stuck = ((proportions >= self.max_log2) & (along > 0)) | ((proportions <= -self.max_log2) & (along < 0))
            along = np.where(stuck, 0.0, along)
            largest = np.maximum(np.abs(along).max(axis=1, keepdims=True), 1e-12)
            proportions = np.clip(proportions + step * along / largest, -self.max_log2, self.max_log2)
            networks = dataclasses.replace(networks, log2_ratios=self.relaxation.fit(proportions, limits))
        return proportions, networks

    def _starting_points(self, fractions: Floats, front: Sequence[Member]) -> Floats:
        """Return log2 proportions from which candidates are optimised, shape (n, groups), `PER_COST` at each cost.

        At each cost they are: uniform widths; the nearest network of the front unchanged, with a structural direction
        changed, and with a few groups changed; a random combination of structural directions; random widths.
        """
        groups, coordinates = self.structure.directions.shape
        proportions = np.zeros((len(fractions), groups))
        for index, fraction in enumerate(fractions):
            kind = index % PER_COST
            if kind in (1, 2, 3) and front:
                cost = self._cost(fraction)
                nearest = min(front, key=lambda member, cost=cost: abs(member[0] - cost))  # type: ignore[misc]
                log2_ratios = np.array(nearest[2])
                proportions[index] = log2_ratios - np.median(log2_ratios)
            if kind in (2, 4) and coordinates:
                proportions[index] += 0.3 * self.structure.directions @ self.random.standard_normal(coordinates)
            if kind in (3, 5):
                changed = self.random.random(groups) < (max(0.1, 2 / groups) if kind == 3 else 1.0)
                proportions[index] += np.where(changed, self.random.normal(0.0, 0.4, groups), 0.0)
        return np.clip(proportions, -self.max_log2, self.max_log2)

    def _fractions(self, fraction: float | None) -> Floats:
        """Return the budget fraction of every candidate, shape (COSTS * PER_COST,)."""
        if fraction is not None:
            return np.full(COSTS * PER_COST, fraction)
        places = (np.arange(COSTS) + self.random.random(COSTS)) / COSTS
        places[-1] = 1.0  # the budget itself is what a user asks for
        return np.repeat(self.lowest_fraction ** (1 - places), PER_COST)

    def _cost(self, fraction: float) -> float:
        """Return log cost, scaled to [-1, 1] over the fractions that are proposed."""
        if self.lowest_fraction >= 1:
            return 1.0
        return 1.0 - 2.0 * math.log(min(1.0, max(fraction, 1e-6))) / math.log(self.lowest_fraction)

    def _networks(self, observed: Sequence[Observation]) -> Networks:
        groups = len(self.structure.directions)
        return Networks(
            np.array([observation.log2_ratios for observation in observed], dtype=np.float64).reshape(-1, groups),
            np.array([self._cost(observation.fraction) for observation in observed]),
            np.array([self._index(observation.method) for observation in observed], dtype=np.int64),
            np.log2([max(observation.training, 1e-3) for observation in observed]),
        )

    def _index(self, method: str) -> int:
        """Return the index of a method; every method that is not of this search has the one after the last."""
        if not method and len(self.methods) == 1:
            return 0
        return self.methods.index(method) if method in self.methods else len(self.methods)


def _most_informative(measured: Sequence[Observation]) -> list[Observation]:
    """Return at most `MOST` observations: the latest, and a fifth for the most accurate of the earlier ones."""
    if len(measured) <= MOST:
        return list(measured)
    best = sorted(measured[:-MOST], key=lambda observation: observation.accuracy or 0.0)[-MOST // 5 :]
    return [*best, *measured[len(best) - MOST :]]


def expected_hypervolume_improvement(
    front: Sequence[Member], costs: Floats, means: Floats, deviations: Floats
) -> Floats:
    """Return the expected growth of the area under the front, shape (n,).

    It is exact for normally distributed values at known costs. Below the cost of the cheapest member of the front, the
    value of that member counts as the height of the front.

    Args:
        front: non-dominated, cheapest first, at least one member.
        costs: scaled log costs of the candidates, shape (n,).
        means: of their arcsine_sqrt accuracies, shape (n,).
        deviations: standard deviations of the same, shape (n,).
    """
    starts = np.array([member[0] for member in front])
    heights = np.array([member[1] for member in front])
    edges = np.concatenate([[-1.0], np.maximum(starts, -1.0), [1.0 + 1e-3]])  # a sliver at the whole budget counts too
    steps = np.concatenate([heights[:1], heights])
    lengths = np.maximum(edges[1:] - np.maximum(edges[:-1], costs[:, None]), 0.0)
    deviations = np.maximum(deviations, 1e-9)[:, None]
    above = (means[:, None] - steps) / deviations
    density = np.exp(-(above**2) / 2) / math.sqrt(2 * math.pi)
    gained: NDArray[np.float64] = deviations * (density + above * ndtr(above))
    return np.asarray((lengths * gained).sum(axis=1))
