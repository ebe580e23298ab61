"""Which candidates come before those of the sampler, and in which order."""

import pytest
from chain_space import chain
from made_up_methods import Plain, Tuned, register, register_all
from made_up_search import drain, problem_of, search_of

from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign
from spaces.budget import Budget

FLOPS = Budget("flops", 20_000)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


def test_baselines_come_first_spread_evenly_in_log_cost_and_are_at_most_a_third() -> None:
    space = chain(width=64)
    budget = Budget("flops", 80_000)
    trials = drain(search_of(problem_of(space, (budget,), ("plain",), trials=12)))

    baselines = [trial for trial in trials if trial.baseline == "uniform"]
    assert baselines == trials[:4]
    assert {trial.method for trial in baselines} == {"l2"}
    shares = [trial.goal.budgets[0].limit / budget.limit for trial in baselines]
    assert shares == pytest.approx([1.0, 0.03 ** (1 / 3), 0.03 ** (2 / 3), 0.03], rel=1e-3)
    for baseline in baselines:
        assert baseline.goal.widths == space.fit([1.0] * 3, baseline.goal.budgets)


def test_one_trial_is_the_baseline_at_the_whole_budget() -> None:
    (only,) = drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=1)))
    assert only.baseline == "uniform"
    assert only.goal.budgets == (FLOPS,)


def test_every_method_starts_at_the_widths_of_the_baselines() -> None:
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("plain", "tuned"), trials=12)))

    uniform = trials[4:7]
    assert [trial.method for trial in uniform] == ["plain", "tuned", "tuned"]
    assert uniform[0].goal.widths == trials[0].goal.widths
    assert uniform[1].goal.widths == trials[1].goal.widths
    assert uniform[1].settings == {"ridge": 0.1, "images": 64, "way": "greedy"}
    assert uniform[2].goal.widths is None
    assert uniform[2].goal.budgets == trials[2].goal.budgets
    assert not any(trial.baseline for trial in trials[4:])


def test_every_method_comes_before_the_second_allocation_of_one() -> None:
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("tuned", "finding", "plain"), trials=10)))
    uniform = [(trial.method, trial.goal.widths is None) for trial in trials[3:6]]
    assert uniform == [("tuned", False), ("finding", True), ("plain", False)]


@pytest.mark.parametrize("trials", [4, 5, 6, 9, 20])
def test_with_as_many_trials_as_methods_and_a_baseline_every_method_is_tried(
    trials: int, caplog: pytest.LogCaptureFixture
) -> None:
    methods = ("tuned", "finding", "plain")
    given = drain(search_of(problem_of(chain(), (FLOPS,), methods, trials=trials)))
    assert len(given) == trials
    assert {trial.method for trial in given} == {"l2", *methods}
    assert given[0].baseline == "uniform"
    assert not caplog.records


def test_with_fewer_trials_the_first_methods_are_tried_and_the_rest_named(caplog: pytest.LogCaptureFixture) -> None:
    given = drain(search_of(problem_of(chain(), (FLOPS,), ("finding", "tuned", "plain"), trials=3)))
    assert [trial.method for trial in given] == ["l2", "finding", "tuned"]
    assert caplog.messages == ["3 trials leave none for plain; give more --trials"]


def test_the_baseline_method_needs_no_initial_point_of_its_own() -> None:
    given = drain(search_of(problem_of(chain(), (FLOPS,), ("l2", "tuned"), trials=6)))
    assert [(trial.method, trial.baseline) for trial in given[:4]] == [
        ("l2", "uniform"),
        ("l2", "uniform"),
        ("tuned", ""),
        ("tuned", ""),
    ]


def test_fixed_settings_hold_for_the_baseline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, l2=Tuned, plain=Plain)
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), set=("l2.ridge=0.5",), trials=6)))
    baselines = [trial for trial in trials if trial.baseline]
    assert baselines
    assert all(trial.settings == {"ridge": 0.5} for trial in baselines)


def test_a_budget_above_the_dense_network_starts_from_the_dense_network() -> None:
    space = chain()
    trials = drain(search_of(problem_of(space, (Budget("flops", 10**9),), ("plain",), trials=3)))
    assert trials[0].goal.widths == space.full


def test_a_search_at_the_whole_budget_with_everything_fixed_is_the_baseline_and_one_trial() -> None:
    fixed = {"ridge": 0.5, "images": 32, "way": "closed"}
    texts = tuple(f"tuned.{name}={value}" for name, value in fixed.items())
    problem = problem_of(chain(), (FLOPS,), ("tuned",), set=texts, trials=2, allocation="method", lowest_fraction=1.0)
    baseline, recipe = drain(search_of(problem))
    assert (baseline.baseline, baseline.method) == ("uniform", "l2")
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
        first, second, third = (point.parameters[f"width.layer{i}"] for i in range(3))
        assert third > max(first, second)
