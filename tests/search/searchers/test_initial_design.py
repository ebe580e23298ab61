"""Which candidates come before those of the sampler, and in which order."""

from collections.abc import Sequence

import pytest
from chain_space import chain
from made_up_methods import Plain, Tuned, register, register_all
from made_up_search import drain, problem_of, search_of

from runners.trial import Trial
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign
from spaces.budget import Budget

FLOPS = Budget("flops", 20_000)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


TARGETS = tuple(Budget("flops", limit) for limit in (20_000, 9_000, 4_000))


def kinds(trials: Sequence[Trial]) -> list[tuple[str, str, float]]:
    return [(trial.baseline, trial.method, trial.goal.budgets[0].limit) for trial in trials]


def test_three_baselines_come_first_at_every_target_the_strongest_before_the_others() -> None:
    space = chain()
    trials = drain(search_of(problem_of(space, (), ("plain",), trials=16, targets=TARGETS)))
    large, middle, small = (target.limit for target in TARGETS)
    assert kinds(trials[:9]) == [
        ("uniform", "l2", large),
        *[("own", "di", limit) for limit in (large, middle, small)],
        *[("uniform", "di", limit) for limit in (large, middle, small)],
        ("uniform", "l2", middle),
        ("uniform", "l2", small),
    ]
    assert not any(trial.baseline for trial in trials[9:])
    for trial in trials[:9]:
        widths = None if trial.baseline == "own" else space.fit([1.0] * 3, trial.goal.budgets)
        assert (trial.goal.widths, trial.settings) == (widths, {})


def test_without_targets_baselines_are_even_in_log_cost_and_at_most_half_of_the_trials() -> None:
    budget = Budget("flops", 100_000)
    trials = drain(search_of(problem_of(chain(width=64), (budget,), ("plain",), trials=18)))
    assert [bool(trial.baseline) for trial in trials] == [True] * 9 + [False] * 9
    shares = [limit / budget.limit for _, _, limit in kinds(trials[:9])]
    even = pytest.approx([1.0, 0.03**0.5, 0.03], rel=1e-3)
    assert (shares[1:4], shares[4:7]) == (even, even)
    assert [shares[0], *shares[7:]] == even


def test_a_budget_that_cuts_little_has_one_baseline_and_the_others_begin_at_half_of_the_dense_network() -> None:
    space = chain(width=64)
    dense = 16 * (3 * 64 + 2 * 64 * 64 + 64 * 10)
    assert space.dense_cost.flops == dense
    budget = Budget("flops", 9 * dense // 10)
    problem = problem_of(space, (budget,), ("plain",), trials=18)
    trials = drain(search_of(problem))
    shares = [limit / dense for _, _, limit in kinds(trials[:9])]
    lowest = 0.03 * 0.9
    places = pytest.approx([0.5, (0.5 * lowest) ** 0.5, lowest], rel=1e-3)
    assert shares[0] == pytest.approx(0.9, rel=1e-3)
    assert (shares[1:4], shares[4:7]) == (places, places)
    assert InitialDesign(CandidateSpace(problem)).sensitive_fractions[0] == pytest.approx(0.5 / 0.9, rel=1e-3)


def test_no_rounding_puts_an_initial_trial_below_the_lowest_fraction() -> None:
    space = chain(width=64)
    for percent in range(51, 101):
        budget = Budget("flops", percent * space.dense_cost.flops // 100)
        candidates = CandidateSpace(problem_of(space, (budget,), ("plain",), trials=18))
        shares = [point.parameters["budget_fraction"] for point in InitialDesign(candidates).points(18)]
        assert candidates.lowest_fraction <= min(shares) == pytest.approx(candidates.lowest_fraction)
        assert max(shares) == 1


def test_one_trial_is_the_baseline_at_the_whole_budget_that_always_works() -> None:
    (only,) = drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=1)))
    assert kinds([only]) == [("uniform", "l2", FLOPS.limit)]


def test_baselines_with_widths_of_their_own_are_inside_every_budget() -> None:
    params = Budget("params", 1_000)
    trials = drain(search_of(problem_of(chain(), (FLOPS, params), ("plain",), trials=6)))
    assert [set(trial.goal.budgets) for trial in trials if trial.baseline == "own"] == [{FLOPS, params}]


@pytest.mark.parametrize("allocation", ["any", "search", "method"])
def test_the_baselines_are_the_same_whatever_the_methods_may_do(allocation: str) -> None:
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("di",), trials=6, allocation=allocation)))
    found = [(trial.baseline, trial.method, trial.goal.widths is None) for trial in trials[:3]]
    assert found == [("uniform", "l2", False), ("own", "di", True), ("uniform", "di", False)]
    assert not any(trial.baseline for trial in trials[3:])


def test_methods_meet_every_target_crossed() -> None:
    """A Latin square of three pairs and three targets; 9 of 36 trials are a quarter."""
    trials = drain(search_of(problem_of(chain(), (), ("tuned", "plain"), trials=36, targets=TARGETS)))
    square = trials[9:18]
    assert [trial.method for trial in square] == ["tuned", "plain", "tuned"] * 3
    assert [trial.goal.widths is None for trial in square] == [False, False, True] * 3
    large, middle, small = (target.limit for target in TARGETS)
    limits = [trial.goal.budgets[0].limit for trial in square]
    assert limits == [large, middle, small, middle, small, large, small, large, middle]
    assert square[0].goal.widths == trials[4].goal.widths  # a method and a baseline differ in the kept channels alone


def test_the_square_is_cut_at_a_quarter_of_the_trials() -> None:
    design = InitialDesign(CandidateSpace(problem_of(chain(), (), ("tuned", "plain"), targets=TARGETS)))
    assert [len(design.crossed(trials)) for trials in (9, 10, 11, 24, 60)] == [0, 1, 2, 6, 9]


def test_every_method_comes_before_the_second_allocation_of_one() -> None:
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("tuned", "finding", "plain"), trials=10)))
    assert [bool(trial.baseline) for trial in trials[:4]] == [True] * 3 + [False]
    started = [(trial.method, trial.goal.widths is None) for trial in trials[3:6]]
    assert started == [("tuned", False), ("finding", True), ("plain", False)]


@pytest.mark.parametrize("trials", [6, 7, 9, 20])
def test_with_as_many_trials_as_methods_and_baselines_every_method_is_tried(
    trials: int, caplog: pytest.LogCaptureFixture
) -> None:
    methods = ("tuned", "finding", "plain")
    given = drain(search_of(problem_of(chain(), (FLOPS,), methods, trials=trials)))
    assert len(given) == trials
    assert {trial.method for trial in given} == {"l2", "di", *methods}
    assert not caplog.records


def test_with_fewer_trials_the_first_methods_are_tried_and_the_rest_named(caplog: pytest.LogCaptureFixture) -> None:
    given = drain(search_of(problem_of(chain(), (FLOPS,), ("finding", "tuned", "plain"), trials=5)))
    assert [trial.method for trial in given] == ["l2", "di", "di", "finding", "tuned"]
    assert caplog.messages == ["5 trials leave none for plain; give more --trials"]


def test_baselines_without_trials_are_named_with_their_targets(caplog: pytest.LogCaptureFixture) -> None:
    drain(search_of(problem_of(chain(), (), ("di",), trials=6, targets=TARGETS)))
    assert caplog.messages == [
        "6 trials leave none for the baselines uniform di at target 4kflops and uniform l2 at target 9kflops, 4kflops; "
        "give more --trials"
    ]
    caplog.clear()
    drain(search_of(problem_of(chain(), (FLOPS,), ("di",), trials=2)))
    assert caplog.messages == ["2 trials leave none for the baselines uniform di; give more --trials"]


def test_what_the_baselines_cover_needs_no_initial_point_of_its_own() -> None:
    design = InitialDesign(CandidateSpace(problem_of(chain(), (FLOPS,), ("l2", "di", "tuned"), trials=12)))
    assert {(point.method, point.allocation) for point in design.crossed(12)} == {
        ("tuned", "search"),
        ("tuned", "method"),
    }


def test_fixed_settings_hold_for_the_baselines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, l2=Tuned, plain=Plain)
    settings = ("l2.ridge=0.5", "di.ridge=0.25")
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), set=settings, trials=6)))
    found = [(trial.method, trial.settings) for trial in trials if trial.baseline]
    assert found == [("l2", {"ridge": 0.5}), ("di", {"ridge": 0.25}), ("di", {"ridge": 0.25})]


def test_a_budget_above_the_dense_network_starts_from_the_dense_network() -> None:
    space = chain()
    trials = drain(search_of(problem_of(space, (Budget("flops", 10**9),), ("plain",), trials=3)))
    assert trials[0].goal.widths == space.full


def test_a_search_at_the_whole_budget_with_widths_of_the_method_is_the_baselines_and_one_trial() -> None:
    fixed = {"ridge": 0.5, "images": 32, "way": "closed"}
    texts = tuple(f"tuned.{name}={value}" for name, value in fixed.items())
    problem = problem_of(chain(), (FLOPS,), ("tuned",), set=texts, trials=4, allocation="method", lowest_fraction=1.0)
    *baselines, recipe = drain(search_of(problem))
    assert [trial.method for trial in baselines] == ["l2", "di", "di"]
    assert (recipe.baseline, recipe.method, recipe.settings) == ("", "tuned", fixed)
    assert recipe.goal.budgets == (FLOPS,)


def test_measured_sensitivities_add_two_points_where_trials_suffice() -> None:
    """The group that suffers most is kept widest, at the whole budget and in the middle of the range in log cost."""
    candidates = CandidateSpace(problem_of(chain(), (FLOPS,), ("plain", "finding")))
    design, sensitivities = InitialDesign(candidates), {"layer0": 0.01, "layer1": 0.01, "layer2": 0.5}
    assert design.sensitive(9, None) == design.sensitive(8, sensitivities) == []
    whole, middle = design.sensitive(9, sensitivities)
    for point, fraction in ((whole, 1.0), (middle, 0.03**0.5)):
        assert (point.method, point.baseline) == ("plain", "")  # no widths can be given to the other method
        assert point.parameters["budget_fraction"] == pytest.approx(fraction)
        first, second, third = (point.parameters[f"relative_width.layer{i}"] for i in range(3))
        assert third > max(first, second)


def test_widths_by_sensitivity_lie_on_the_smallest_targets() -> None:
    problem = problem_of(chain(), (), ("plain",), trials=14, targets=TARGETS)
    trials = drain(search_of(problem, sensitivities={"layer0": 0.01, "layer1": 0.01, "layer2": 0.5}))
    widths = [trial.goal.widths for trial in trials[12:14]]  # after nine baselines and three of one method
    assert [trial.goal.budgets[0] for trial in trials[12:14]] == [TARGETS[2], TARGETS[1]]
    assert all(found is not None and found["layer2"] > found["layer0"] for found in widths)
