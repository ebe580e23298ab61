"""Which widths to try next: those that the surrogate expects to add most to the front.

The cost of a candidate is known before it is tried, so only its accuracy is uncertain, and the expected growth of the
front is a closed form: over the costs from the candidate's own up, by how much it is expected to lie above the front.
Costs count on a log scale, so that a front grows evenly over it. Candidates start from uniform widths, from networks
of the front with a few groups or a structural direction changed, and from chance; each then climbs curves that the
surrogate holds possible (Thompson sampling), along its budget.
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
from search.searchers.structure import Floats, Relaxation, Structure
from search.searchers.surrogate import Networks, Surrogate

COSTS = 12  # budget fractions looked at, one in each equal part of the log range
PER_COST = 6  # candidates at each
STEP_SIZES = (0.5, 0.5, 0.25, 0.25, 0.125, 0.125)  # octaves by which the steepest group moves at each step
SKIPPED = 4  # candidates passed over for each proposal that was a repeat: small spaces have few to offer
MOST = 250  # networks that the model is fitted to: the latest, and the most accurate of those before


@dataclass(frozen=True)
class Proposal:
    """What to try: a fraction of the scaled budget, and proportions in octaves within +-`Acquisition.max_log2`."""

    fraction: float
    proportions: Floats


@dataclass(frozen=True)
class Acquisition:
    """Proposes candidates of one search.

    Attributes:
        limits: fraction of the scaled budget -> limits on FLOPs and parameters.
        lowest: the least fraction.
        methods: of the search; networks of other methods count as one more.
        reach: octaves by which a proportion may differ from uniform.
    """

    structure: Structure
    relaxation: Relaxation
    limits: Callable[[float], tuple[float, float]]
    lowest: float
    methods: Sequence[str] = ("",)
    max_log2: float = 1.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def propose(self, observed: Sequence[Observation], fraction: float | None = None, repeats: int = 0) -> Proposal:
        """Return what to try next.

        Args:
            seen: networks tried so far, at least one with an accuracy, and running ones.
            fraction: to propose widths at; None chooses it too.
            repeats: proposals in a row, just before, that rounding made networks tried before.
        """
        if repeats * SKIPPED >= COSTS * PER_COST // 2:
            return self._by_chance(fraction)
        measured = self._kept_for_model([each for each in observed if each.accuracy is not None])
        pending = [each for each in observed if each.accuracy is None]
        levels = np.array([arcsine_sqrt(each.accuracy or 0.0) for each in measured])
        running = self._networks(pending)
        model = Surrogate(self.structure, len(self.methods) + 1, self._networks(measured), levels, running)
        # Running networks count as if they gave what is expected of them, so that parallel proposals spread.
        expected = model.predict(running)[0].tolist() if pending else []
        finished = [pair for pair in zip(measured, levels.tolist(), strict=True) if pair[0].training >= 1]
        known = [*(finished or zip(measured, levels.tolist(), strict=True)), *zip(pending, expected, strict=True)]
        members = [(self._cost(each.fraction), height, each.log2_ratios) for each, height in known]
        front = non_dominated(members, lambda member: member[:2])
        fractions = self._fractions(fraction)
        limits = np.array([self.limits(each) for each in fractions])
        proportions, networks = self._optimize(model, self._starts(fractions, front), fractions, limits)
        gains = expected_hypervolume_improvement(front, networks.cost, *model.predict(networks))
        best = int(np.argsort(-gains, kind="stable")[repeats * SKIPPED])
        return Proposal(float(fractions[best]), proportions[best])

    def _by_chance(self, fraction: float | None) -> Proposal:
        places = self.random.random(1 + len(self.structure.directions))
        return Proposal(
            float(self.lowest ** places[0]) if fraction is None else fraction, self.max_log2 * (2 * places[1:] - 1)
        )

    def _optimize(
        self, model: Surrogate, proportions: Floats, fractions: Floats, limits: Floats
    ) -> tuple[Floats, Networks]:
        """Move every candidate along its budget towards what weights drawn for it hold best, or the mean ones."""
        costs, none = np.array([self._cost(each) for each in fractions]), np.zeros(len(fractions))
        networks = Networks(self.relaxation.fit(proportions, limits), costs, none.astype(np.int64), none)
        method = model.best_method(networks, len(self.methods)) if len(self.methods) > 1 else 0
        networks = dataclasses.replace(networks, method=np.full(len(costs), method))
        weights = model.posterior_samples(len(costs), self.random)
        weights[::PER_COST] = model.mean
        for step in STEP_SIZES:
            rise = model.gradient(weights, networks)
            price = self.relaxation.slopes(networks.log2_ratios, limits)
            along = rise - price * ((rise * price).sum(1) / np.maximum((price**2).sum(1), 1e-12))[:, None]
            stuck = ((proportions >= self.max_log2) & (along > 0)) | ((proportions <= -self.max_log2) & (along < 0))
            along = np.where(stuck, 0.0, along)
            largest = np.maximum(np.abs(along).max(axis=1, keepdims=True), 1e-12)
            proportions = np.clip(proportions + step * along / largest, -self.max_log2, self.max_log2)
            networks = dataclasses.replace(networks, log2_ratios=self.relaxation.fit(proportions, limits))
        return proportions, networks

    def _starts(self, fractions: Floats, front: Sequence[tuple[float, float, tuple[float, ...]]]) -> Floats:
        """Return proportions to start from, shape (n, groups), `PER_COST` of them for each cost."""
        groups, coordinates = self.structure.directions.shape
        proportions = np.zeros((len(fractions), groups))
        for index, fraction in enumerate(fractions):
            turn = index % PER_COST
            if turn in (1, 2, 3) and front:
                nearest = min(front, key=lambda member: abs(member[0] - self._cost(fraction)))
                own = np.array(nearest[2])
                proportions[index] = own - np.median(own)
            if turn in (2, 4) and coordinates:
                proportions[index] += 0.3 * self.structure.directions @ self.random.standard_normal(coordinates)
            if turn in (3, 5):
                few = self.random.random(groups) < (max(0.1, 2 / groups) if turn == 3 else 1.0)
                proportions[index] += np.where(few, self.random.normal(0.0, 0.4, groups), 0.0)
        return np.clip(proportions, -self.max_log2, self.max_log2)

    def _fractions(self, fraction: float | None) -> Floats:
        if fraction is not None:
            return np.full(COSTS * PER_COST, fraction)
        places = (np.arange(COSTS) + self.random.random(COSTS)) / COSTS
        places[-1] = 1.0  # the budget itself is what a user asks for
        return np.repeat(self.lowest ** (1 - places), PER_COST)

    def _cost(self, fraction: float) -> float:
        """Return log cost, scaled to [-1, 1] over the fractions that are proposed."""
        if self.lowest >= 1:
            return 1.0
        return 1.0 - 2.0 * math.log(min(1.0, max(fraction, 1e-6))) / math.log(self.lowest)

    def _networks(self, observed: Sequence[Observation]) -> Networks:
        groups = len(self.structure.directions)
        return Networks(
            np.array([each.log2_ratios for each in observed], dtype=np.float64).reshape(-1, groups),
            np.array([self._cost(each.fraction) for each in observed]),
            np.array([self._index(each.method) for each in observed], dtype=np.int64),
            np.log2([max(each.training, 1e-3) for each in observed]),
        )

    def _index(self, method: str) -> int:
        """Return the index of a method; other methods of the search's own come after them."""
        if not method and len(self.methods) == 1:
            return 0
        return self.methods.index(method) if method in self.methods else len(self.methods)

    def _kept_for_model(self, measured: Sequence[Observation]) -> list[Observation]:
        if len(measured) <= MOST:
            return list(measured)
        best = sorted(measured[:-MOST], key=lambda each: each.accuracy or 0.0)[-MOST // 5 :]
        return [*best, *measured[len(best) - MOST :]]


def expected_hypervolume_improvement(
    front: Sequence[tuple[float, float, tuple[float, ...]]], costs: Floats, means: Floats, deviations: Floats
) -> Floats:
    """Return the expected growth of the area under the front, shape (n,): exact for normal levels at known costs.

    Below the cheapest member of the front its lowest level holds.
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
