"""From parameters to candidates: budgets by fraction, who chooses widths, which candidates can be screened."""

import math
import random
from typing import Any

import pytest
from chain_space import chain
from made_up_methods import register_all
from made_up_search import problem_of, result_of
from optuna.trial import FixedTrial

from pruning.base import Goal
from runners.trial import Trial
from search.searchers.candidate_space import Candidate, CandidateSpace, InitialPoint
from search.searchers.observation import Observation
from search.searchers.parameters import ALLOCATION, BUDGET_FRACTION, METHOD, MIDDLE, WIDTH
from spaces.budget import Budget
from spaces.space import uniform_ratios

FLOPS, PARAMS = Budget("flops", 20_000), Budget("params", 1_200)
SPACE = chain()


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


class Given(FixedTrial):
    """Chooses the given parameters, and every other one at random; keeps which were asked for."""

    def __init__(self, **given: Any) -> None:
        super().__init__(given)
        self.given, self.asked, self.random = given, list[str](), random.Random(0)

    def _choose(self, name: str, value: Any) -> Any:
        self.asked.append(name)
        return self.given.get(name, value)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._choose(name, self.random.uniform(low, high)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._choose(name, self.random.randint(low, high)))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._choose(name, self.random.choice(choices))


def candidates(*budgets: Budget, methods: tuple[str, ...] = ("plain",), **settings: Any) -> CandidateSpace:
    return CandidateSpace(problem_of(SPACE, budgets or (FLOPS,), methods, **settings))


def test_a_fraction_scales_flops_where_they_are_limited_and_leaves_the_other_budgets() -> None:
    both = candidates(FLOPS, PARAMS)
    assert set(both.budgets_at(0.5)) == {Budget("flops", 10_000), PARAMS}
    assert both.limits_at(0.5) == (10_000, 1_200, math.inf, math.inf)
    assert candidates(PARAMS).limits_at(0.5) == (math.inf, 600, math.inf, math.inf)
    assert both.share({"flops": 5_000, "params": 1_000}) == 0.25


def test_the_lowest_fraction_is_what_is_asked_for_unless_the_smallest_network_needs_more() -> None:
    assert candidates(lowest_fraction=0.3).lowest_fraction == 0.3
    least = SPACE.smallest_cost.flops / FLOPS.limit
    assert candidates(lowest_fraction=1e-6).lowest_fraction == pytest.approx(1.05 * least)


def test_equal_width_parameters_are_uniform_widths_at_the_fraction() -> None:
    given = {WIDTH + group.name: 0.3 for group in SPACE.variable}
    drawn = candidates().draw(Given(**{BUDGET_FRACTION: 0.25, **given}))
    budgets = (Budget("flops", 5_000),)
    assert drawn.goal == Goal(SPACE.fit(uniform_ratios(SPACE), budgets), budgets)


def test_only_the_parameters_that_a_candidate_has_are_asked_for() -> None:
    widths = [WIDTH + group.name for group in SPACE.variable]
    space = candidates(methods=("plain", "tuned"), search_settings="tuned")
    settings = ["tuned.ridge", "tuned.images", "tuned.way"]
    finding, given = Given(**{METHOD: "tuned", ALLOCATION: "method"}), Given(**{METHOD: "plain"})
    assert space.draw(finding).goal.widths is None
    assert finding.asked == [BUDGET_FRACTION, METHOD, *settings, ALLOCATION]
    assert space.draw(given).goal.widths is not None
    assert given.asked == [BUDGET_FRACTION, METHOD, *widths]


def test_a_flat_sampler_is_asked_for_every_parameter_of_every_method() -> None:
    suggest = Given(**{METHOD: "plain"})
    candidates(methods=("plain", "tuned"), sampler="nsga2", search_settings="all").draw(suggest)
    assert {"tuned.ridge", "tuned.images", "tuned.way", ALLOCATION} <= set(suggest.asked)


def test_a_baseline_takes_its_method_without_asking_and_trains_as_is_set() -> None:
    space = candidates(methods=("plain", "tuned"), search_training="lr")
    baseline, proposed = Given(), Given(**{METHOD: "plain"})
    parameters = {BUDGET_FRACTION: 1.0} | {WIDTH + group.name: MIDDLE for group in SPACE.variable}
    drawn = space.draw(baseline, InitialPoint(parameters, "l2", baseline="uniform"))
    assert (drawn.method, drawn.training) == ("l2", {})
    assert METHOD not in baseline.asked
    assert set(space.draw(proposed).training) == {"lr"}


def test_settings_keep_their_defaults_unless_asked_for() -> None:
    suggest = Given(**{METHOD: "tuned"})
    space = candidates(methods=("plain", "tuned"), set=("tuned.images=32",))
    assert space.draw(suggest).settings == {"images": 32}
    assert not [name for name in suggest.asked if name.startswith("tuned.")]
    searched = candidates(methods=("plain", "tuned"), set=("tuned.images=32",), search_settings="tuned")
    assert [setting.name for setting in searched.searchable("tuned")] == ["ridge", "way"]
    assert searched.searchable("plain") == []


def test_a_baseline_may_find_its_widths_though_the_search_gives_them() -> None:
    space = candidates(methods=("di",), allocation="search")
    drawn = space.draw(Given(**{BUDGET_FRACTION: 0.5}), InitialPoint({}, "di", "method", "own"))
    assert drawn.goal == Goal(None, (Budget("flops", 10_000),))


def test_widths_that_a_method_has_found_are_not_proposed_again() -> None:
    """At a target, and with no setting searched, a method finds the same widths again."""
    known = list[Candidate]()
    space, given = candidates(methods=("tuned",)), {BUDGET_FRACTION: 0.5, ALLOCATION: "method"}
    first = space.draw(Given(**given), None, known.__contains__)
    assert first.goal.widths is None
    known.append(first)
    asked = Given(**given)
    assert space.draw(asked, None, known.__contains__).goal.widths is not None
    assert ALLOCATION not in asked.asked  # the sampler learns nothing wrong about it


def test_a_method_without_anything_to_vary_has_one_candidate_at_a_fraction() -> None:
    space = candidates(methods=("plain", "tuned", "finding"))
    assert space.single("finding", 0.5) == Candidate("finding", Goal(None, (Budget("flops", 10_000),)), {})
    assert space.single("plain", 0.5) is space.single("tuned", 0.5) is None
    assert candidates(methods=("finding",), search_settings="finding").single("finding", 0.5) is None


def test_methods_do_what_they_can_where_who_chooses_the_widths_is_fixed() -> None:
    space = candidates(methods=("plain", "tuned", "finding"), allocation="method")
    found = {name: space.allocations(name) for name in space.methods}
    assert found == {"plain": ("search",), "tuned": ("method",), "finding": ("method",)}
    assert candidates(methods=("tuned",)).allocations("tuned") == ("search", "method")


def test_a_trial_counts_where_its_network_costs_and_where_another_budget_narrowed_it_at_its_limit_too() -> None:
    space = candidates()
    budgets = (Budget("flops", 10_000),)
    fitted = Trial(0, "plain", Goal(SPACE.fit(uniform_ratios(SPACE), budgets), budgets))
    narrowed = Trial(1, "plain", Goal(SPACE.smallest, budgets))
    assert space.places(fitted) == (0.5,)
    assert space.fraction(narrowed) == 0.5
    least = SPACE.smallest_cost.flops / FLOPS.limit
    assert space.places(narrowed, result_of(narrowed, SPACE)) == (least, 0.5)


def test_an_observation_has_the_cost_of_the_network_once_there_is_one() -> None:
    space = candidates()
    trial = Trial(0, "plain", Goal(SPACE.smallest, (Budget("flops", 10_000),)))
    assert space.observe(trial) == Observation("plain", 0.5)
    result = result_of(trial, SPACE, train_seconds=1.25)
    least = SPACE.smallest_cost.flops / FLOPS.limit
    assert space.observe(trial, result) == Observation("plain", least, result.accuracy, 1.25)
    failed = result_of(trial, SPACE, accuracy=None)
    assert space.observe(trial, failed).failed
