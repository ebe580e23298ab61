"""InitialDesign: the first candidates: uniform baselines, uniform widths with every method, widths by sensitivity.

They are a baseline to compare with, a start for every method, and the first observations of the sampler.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runners.evaluation.sensitivities import affordable_images
from search.environment import Environment
from search.problem import BASELINE_METHOD
from search.results.comparison import UNIFORM
from search.searchers.candidate_space import STRUCTURED_SAMPLERS, CandidateSpace, InitialPoint
from search.searchers.parameters import ALLOCATION, BUDGET_FRACTION, METHOD, MIDDLE, WIDTH, width_parameter
from search.searchers.structure import balanced

MAX_BASELINES = 6
SENSITIVE_FROM = 9  # trials: with fewer, two more initial points would leave nothing to the sampler


@dataclass(frozen=True)
class InitialDesign:
    """Plans the first candidates of a search."""

    candidates: CandidateSpace

    def baselines(self, trials: int) -> list[InitialPoint]:
        """Return uniform widths with the baseline method: at each target, else at most a third of the trials."""
        return [
            InitialPoint(self._uniform(BASELINE_METHOD, fraction), BASELINE_METHOD, UNIFORM)
            for fraction in self._fractions(trials)
        ]

    def uniform(self, trials: int) -> list[InitialPoint]:
        """Return uniform widths with the methods of the search, at the fractions of the baselines.

        So a method and the baseline differ in the kept channels alone. Every method comes once, in the given order, as
        long as there are trials; then, where there is room, every other pair of method and allocation: about a sixth of
        the trials and, but for the first round, at most a third.
        """
        pairs, fractions = self._pairs(), self._fractions(trials)
        methods = len({name for name, _ in pairs})
        left = trials - len(fractions)
        count = min(left, max(min(max(trials // 6, len(pairs)), trials // 3), min(methods, left)))
        points = []
        for index in range(count):
            name, allocation = pairs[index % len(pairs)]
            parameters = self._uniform(name, fractions[index % len(fractions)])
            if len(self.candidates.allocations(name)) > 1:
                parameters[ALLOCATION] = allocation
            points.append(InitialPoint(parameters, name))
        return points

    def sensitive(self, trials: int, sensitivities: Mapping[str, float] | None) -> list[InitialPoint]:
        """Return widths by measured sensitivity at the whole budget and mid-range; none where trials do not suffice.

        The methods take turns.

        Args:
            sensitivities: group -> loss from narrowing it alone to half; None where they were not measured.
        """
        if sensitivities is None or trials < SENSITIVE_FROM:
            return []
        space = self.candidates.problem.space
        able = [name for name in self.candidates.methods if "search" in self.candidates.allocations(name)]
        proportions = zip(space.variable, balanced(space, sensitivities).tolist(), strict=True)
        widths = {WIDTH + group.name: width_parameter(log2) for group, log2 in proportions}
        fractions = (1.0, self.candidates.lowest_fraction**0.5) if able else ()
        turns = [(able[index % len(able)], fraction) for index, fraction in enumerate(fractions)]
        return [InitialPoint(self._uniform(name, fraction) | widths, name) for name, fraction in turns]

    def left_out(self, trials: int, *, resumed: bool = False) -> Iterator[str]:
        """Name the methods that so few trials leave no room for, and the targets without uniform widths there.

        Args:
            resumed: the methods have had their trials.
        """
        tried = [point.method for point in (*self.baselines(trials), *self.uniform(trials))]
        if names := ", ".join(name for name in self.candidates.methods if name not in tried and not resumed):
            yield f"{trials} trials leave none for {names}; give more --trials"
        targets = self.candidates.problem.targets[len(self._fractions(trials)) :]
        if targets:
            named = ", ".join(str(target) for target in targets)
            yield f"{trials} trials leave no uniform widths at target {named}; give more --trials"

    def _pairs(self) -> list[tuple[str, str]]:
        """List (method, allocation): the first allocation of every method, then the second where there are two.

        The pair of the baseline is left out, unless it is all that is asked for.
        """
        able = {name: self.candidates.allocations(name) for name in self.candidates.methods}
        pairs = [
            (name, allocations[turn])
            for turn in (0, 1)
            for name, allocations in able.items()
            if turn < len(allocations)
        ]
        return [pair for pair in pairs if pair != (BASELINE_METHOD, "search")] or pairs

    def _uniform(self, method: str, fraction: float) -> dict[str, Any]:
        candidates = self.candidates
        parameters: dict[str, Any] = {BUDGET_FRACTION: fraction}
        parameters |= {WIDTH + group.name: MIDDLE for group in candidates.problem.space.variable}
        if method in candidates.methods and len(candidates.methods) > 1:
            parameters[METHOD] = method
        if method in candidates.methods and len(candidates.allocations(method)) > 1:
            parameters[ALLOCATION] = "search"
        parameters |= {f"train.{setting.name}": setting.default for setting in candidates.training}
        if method in candidates.methods:
            parameters |= {f"{method}.{setting.name}": setting.default for setting in candidates.searchable(method)}
        return parameters

    def _fractions(self, trials: int) -> list[float]:
        """Return the budget fractions of the baselines: the targets, or some even in log cost; the largest first.

        Without targets every method comes before a second baseline.
        """
        if self.candidates.problem.targets:
            return list(self.candidates.cost_coverage.by_fraction)[:trials]
        count = max(1, min(MAX_BASELINES, trials // 3, trials - len({name for name, _ in self._pairs()})))
        return [self.candidates.lowest_fraction ** (index / max(1, count - 1)) for index in range(count)]


def sensing_images(environment: Environment) -> int:
    """Return on how many training images sensitivities are measured for the initial design; 0 for none."""
    config, space = environment.config, environment.problem.space
    searched = config.sampler in STRUCTURED_SAMPLERS and config.allocation != "method" and len(space.variable) > 1
    return affordable_images(space, len(environment.data.train)) if searched and config.trials >= SENSITIVE_FROM else 0
