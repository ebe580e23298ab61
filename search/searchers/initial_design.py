"""What a search tries before its sampler proposes: uniform widths with the control and every method, sensitive ones.

They are a control arm to compare with, a start for every method, and the first that the sampler learns from.
"""

from collections.abc import Iterator
from typing import Any

from search.results.result import UNIFORM
from search.searchers.candidate_space import CONTROL_METHOD, CandidateSpace, Planned
from search.searchers.structure import balanced
from search.searchers.width_parameters import MIDDLE, width_parameter

MAX_BASELINES = 6
SENSITIVE_FROM = 9  # trials: with fewer, two more starts would leave nothing to the sampler


class Starts:
    """Plans the first candidates of a search.

    Args:
        candidates: of the search.
    """

    def __init__(self, candidates: CandidateSpace) -> None:
        self._candidates = candidates

    def baselines(self, trials: int) -> list[Planned]:
        """Uniform widths with the control method: at each target, else at most a third of the trials."""
        return [
            Planned(self._uniform(CONTROL_METHOD, fraction), CONTROL_METHOD, UNIFORM)
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
        left = trials - len(fractions)
        count = min(left, max(min(max(trials // 6, len(ways)), trials // 3), min(least, left)))
        planned = []
        for index in range(count):
            name, allocation = ways[index % len(ways)]
            parameters = self._uniform(name, fractions[index % len(fractions)])
            if len(self._candidates.allocations(name)) > 1:
                parameters["allocation"] = allocation
            planned.append(Planned(parameters, name))
        return planned

    def sensitive_starts(self, trials: int) -> list[Planned]:
        """Widths by measured sensitivity, at the whole budget and in the middle of the range, where trials suffice.

        The methods take turns.
        """
        if self._candidates.sensitivities is None or trials < SENSITIVE_FROM:
            return []
        octaves = balanced(self._candidates.space, self._candidates.sensitivities).tolist()
        able = [name for name in self._candidates.methods if "search" in self._candidates.allocations(name)]
        named = zip(self._candidates.space.variable, octaves, strict=True)
        widths = {f"width.{group.name}": width_parameter(octave) for group, octave in named}
        fractions = (1.0, self._candidates.lowest_fraction**0.5) if able else ()
        turns = [(able[index % len(able)], fraction) for index, fraction in enumerate(fractions)]
        return [Planned(self._uniform(name, fraction) | widths, name) for name, fraction in turns]

    def left_out(self, trials: int, *, resumed: bool = False) -> Iterator[str]:
        """Name the methods that so few trials leave no room for, and the targets without uniform widths there.

        Args:
            resumed: the methods have had their trials.
        """
        planned = [each.method for each in (*self.baselines(trials), *self.warm_starts(trials))]
        if names := ", ".join(name for name in self._candidates.methods if name not in planned and not resumed):
            yield f"{trials} trials leave none for {names}; give more --trials"
        if targets := ", ".join(str(each) for each in self._candidates.targets[len(self._fractions(trials)) :]):
            yield f"{trials} trials leave no uniform widths at target {targets}; give more --trials"

    def _ways(self) -> list[tuple[str, str]]:
        """List (method, allocation): the first of every method, then the second of those that have one.

        What the control arm does already is left out, unless it is all that is asked for.
        """
        able = {name: self._candidates.allocations(name) for name in self._candidates.methods}
        ways = [(name, each[turn]) for turn in (0, 1) for name, each in able.items() if turn < len(each)]
        return [way for way in ways if way != (CONTROL_METHOD, "search")] or ways

    def _uniform(self, method: str, fraction: float) -> dict[str, Any]:
        parameters: dict[str, Any] = {"budget_fraction": fraction}
        parameters |= {f"width.{group.name}": MIDDLE for group in self._candidates.space.variable}
        if method in self._candidates.methods and len(self._candidates.methods) > 1:
            parameters["method"] = method
        if method in self._candidates.methods and len(self._candidates.allocations(method)) > 1:
            parameters["allocation"] = "search"
        parameters |= {f"train.{each.name}": each.default for each in self._candidates.training}
        if method in self._candidates.methods:
            parameters |= {f"{method}.{each.name}": each.default for each in self._candidates.searchable(method)}
        return parameters

    def _fractions(self, trials: int) -> list[float]:
        """Return the control arms' budget fractions: the targets, or some even in log cost; the largest first.

        Without targets each method comes before a second arm.
        """
        if self._candidates.targets:
            return list(self._candidates.spread.by_fraction)[:trials]
        count = max(1, min(MAX_BASELINES, trials // 3, trials - len({name for name, _ in self._ways()})))
        return [self._candidates.lowest_fraction ** (index / max(1, count - 1)) for index in range(count)]
