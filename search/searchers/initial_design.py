"""InitialDesign: the first candidates: baselines, the methods of the search across the targets, widths by sensitivity.

They are what the search is compared with, a start for every method, and the first observations of the sampler.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runners.evaluation.sensitivities import affordable_images
from search.environment import Environment
from search.problem import BASELINES, OWN, Baseline
from search.searchers.candidate_space import STRUCTURED_SAMPLERS, CandidateSpace, InitialPoint
from search.searchers.parameters import ALLOCATION, BUDGET_FRACTION, METHOD, MIDDLE, WIDTH, width_parameter
from search.searchers.structure import balanced

MAX_FRACTIONS = 6  # of the budget, at which there are baselines where there are no targets
# Without targets, a budget above this share of the dense network's cost has one trial, and the other initial trials
# begin at `WIDEST_SHARE`. A network that keeps nearly everything takes as long as the dense one to train and tells
# nothing of widths: five of the quick start's 12 trials, at 90% of the FLOPs, took 35 to 46 s each of 336 s in all.
LITTLE_CUT, WIDEST_SHARE = 0.8, 0.5
SENSITIVE_FROM = 9  # trials: with fewer, initial points by sensitivity would leave nothing to the sampler
SENSITIVE_POINTS = 2


@dataclass(frozen=True)
class InitialDesign:
    """Plans the first candidates of a search."""

    candidates: CandidateSpace

    def points(self, trials: int) -> list[InitialPoint]:
        """Return the points that need no measurement: the baselines, then the methods across the targets."""
        return [*self.baselines(trials), *self.crossed(trials)]

    def baselines(self, trials: int) -> list[InitialPoint]:
        """Return the baselines at every target, the most valuable first, as far as there are trials for them.

        Without targets they are at most half of the trials, unless that leaves out a kind: the first at the whole
        budget, the others evenly spread in log cost from there, or from half of the dense network where the budget cuts
        little.
        """
        return [self._baseline(*place) for place in self._baseline_places(trials)[:trials]]

    def crossed(self, trials: int) -> list[InitialPoint]:
        """Return every pair of method and allocation that is no baseline, across the fractions of the baselines.

        In the first round the pairs meet one fraction after the other, in every later round the next one: a Latin
        square. Every method comes once, as long as there are trials; then a quarter of the trials, or the whole square.
        """
        pairs, fractions = self._pairs(), self._fractions(trials)
        methods = len({name for name, _ in pairs})
        left = trials - len(self._baseline_places(trials)[:trials])
        points = []
        for index in range(min(left, len(pairs) * len(fractions), max(methods, trials // 4))):
            turn, place = divmod(index, len(pairs))
            name, allocation = pairs[place]
            fraction = fractions[(place + turn) % len(fractions)]
            points.append(InitialPoint(self._uniform(name, fraction, allocation), name, allocation))
        return points

    def sensitive(self, trials: int, sensitivities: Mapping[str, float] | None) -> list[InitialPoint]:
        """Return widths by measured sensitivity, with the methods in turn; none where trials do not suffice.

        Args:
            sensitivities: group -> loss from narrowing it alone to half; None where they were not measured.
        """
        if sensitivities is None or trials < SENSITIVE_FROM:
            return []
        space = self.candidates.problem.space
        able = [name for name in self.candidates.methods if "search" in self.candidates.allocations(name)]
        proportions = zip(space.variable, balanced(space, sensitivities).tolist(), strict=True)
        widths = {WIDTH + group.name: width_parameter(log2) for group, log2 in proportions}
        fractions = self.sensitive_fractions if able else ()
        turns = [(able[index % len(able)], fraction) for index, fraction in enumerate(fractions)]
        return [InitialPoint(self._uniform(name, fraction) | widths, name) for name, fraction in turns]

    @property
    def sensitive_fractions(self) -> tuple[float, ...]:
        """Where widths by sensitivity go: the smallest targets, where widths matter most, or the widest and mid-range.

        On ResNet-20 trained for 16 epochs, width vectors differed by 1.7 points at 3% of the FLOPs, and at 8% by no
        more than seeds do.
        """
        if self.candidates.problem.targets:
            return tuple(self._fractions(0)[::-1][:SENSITIVE_POINTS])
        return self.widest_fraction, self.candidates.lowest_fraction**0.5

    def left_out(self, trials: int, *, resumed: bool = False) -> Iterator[str]:
        """Name the methods and the baselines that so few trials leave no room for.

        Args:
            resumed: the methods have had their trials.
        """
        tried = [point.method for point in self.points(trials)]
        if names := ", ".join(name for name in self.candidates.methods if name not in tried and not resumed):
            yield f"{trials} trials leave none for {names}; give more --trials"
        by_fraction, missing = self.candidates.cost_coverage.by_fraction, dict[str, list[str]]()
        for baseline, fraction in self._baseline_places(trials)[trials:]:
            places = missing.setdefault(f"{baseline.widths} {baseline.method}", [])
            places += [str(by_fraction[fraction])] if fraction in by_fraction else []
        named = [name + (f" at target {', '.join(places)}" if places else "") for name, places in missing.items()]
        if named:
            yield f"{trials} trials leave none for the baselines {' and '.join(named)}; give more --trials"

    def _baseline_places(self, trials: int) -> list[tuple[Baseline, float]]:
        """Return every baseline with its fraction of the budget, the most valuable first.

        The first trial is finished even when the time is over, so it is the one that no network can make fail, at the
        largest target or the whole budget. Then comes the strongest baseline at every target, which few trials should
        not miss.
        """
        space = self.candidates.problem.space
        fixed = space.largest == space.smallest  # a method finds the only widths, which are uniform here
        sure, *strong = [baseline for baseline in BASELINES if baseline.widths != OWN or not fixed]
        largest, *others = fractions = self._fractions(trials)
        places = [(baseline, fraction) for baseline in strong for fraction in fractions]
        first = largest if self.candidates.problem.targets else 1.0
        return [(sure, first), *places, *((sure, fraction) for fraction in others)]

    def _baseline(self, baseline: Baseline, fraction: float) -> InitialPoint:
        allocation = "method" if baseline.widths == OWN else "search"
        parameters = self._uniform(baseline.method, fraction, allocation)
        return InitialPoint(parameters, baseline.method, allocation, baseline.widths)

    def _pairs(self) -> list[tuple[str, str]]:
        """List (method, allocation) but for baselines: the first allocation of every method, then the second."""
        able = {name: self.candidates.allocations(name) for name in self.candidates.methods}
        pairs = [
            (name, allocations[turn])
            for turn in (0, 1)
            for name, allocations in able.items()
            if turn < len(allocations)
        ]
        covered = {(baseline.method, "method" if baseline.widths == OWN else "search") for baseline in BASELINES}
        return [pair for pair in pairs if pair not in covered]

    def _uniform(self, method: str, fraction: float, allocation: str = "search") -> dict[str, Any]:
        candidates = self.candidates
        parameters: dict[str, Any] = {BUDGET_FRACTION: fraction}
        parameters |= {WIDTH + group.name: MIDDLE for group in candidates.problem.space.variable}
        if method in candidates.methods and len(candidates.methods) > 1:
            parameters[METHOD] = method
        if method in candidates.methods and len(candidates.allocations(method)) > 1:
            parameters[ALLOCATION] = allocation
        parameters |= {f"train.{setting.name}": setting.default for setting in candidates.training}
        return parameters | {f"{method}.{setting.name}": setting.default for setting in candidates.searchable(method)}

    def _fractions(self, trials: int) -> list[float]:
        """Return the budget fractions of the initial trials: the targets, or some even in log cost; the largest first.

        Without targets every method comes before a second fraction.
        """
        if self.candidates.problem.targets:
            return list(self.candidates.cost_coverage.by_fraction)
        others = len({name for name, _ in self._pairs()})
        count = max(1, min(MAX_FRACTIONS, trials // 6, (trials - others) // len(BASELINES)))
        lowest, widest = self.candidates.lowest_fraction, self.widest_fraction
        # The product may be rounded to less than the lowest fraction, which a sampler refuses.
        return [max(lowest, widest * (lowest / widest) ** (index / max(1, count - 1))) for index in range(count)]

    @property
    def widest_fraction(self) -> float:
        """Fraction of the budget from which initial trials are spread without targets; see `LITTLE_CUT`."""
        coverage = self.candidates.cost_coverage
        dense: int = getattr(self.candidates.problem.space.dense_cost, coverage.quantity)
        cuts_little = coverage.base > LITTLE_CUT * dense
        return max(coverage.lowest, WIDEST_SHARE * dense / coverage.base) if cuts_little else 1.0


def sensing_images(environment: Environment) -> int:
    """Return on how many training images sensitivities are measured for the initial design; 0 for none."""
    config, space = environment.config, environment.problem.space
    searched = config.sampler in STRUCTURED_SAMPLERS and config.allocation != "method" and len(space.variable) > 1
    return affordable_images(space, len(environment.data.train)) if searched and config.trials >= SENSITIVE_FROM else 0
