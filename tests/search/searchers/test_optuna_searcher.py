"""What a search proposes after its initial design: every candidate once, inside the budgets, by seed and history."""

import math
from pathlib import Path

import optuna
import pytest
from chain_space import chain
from made_up_methods import register_all
from made_up_search import MadeUpSearch, drain, problem_of, result_of, search_of
from optuna.distributions import FloatDistribution

from configs.schema import SAMPLERS as SAMPLER_NAMES
from runners.trial import Trial, TrialState, derive_seed
from search.searchers.neighbours import neighbour
from search.searchers.optuna_searcher import SAMPLED, rebase
from search.searchers.parameters import BUDGET_FRACTION
from search.searchers.samplers import SAMPLERS
from search.searchers.structured_sampler import DUPLICATE
from search.storage.study_storage import RESULT
from spaces.budget import Budget
from spaces.errors import UnknownNameError
from spaces.widths import Widths

FLOPS = Budget("flops", 20_000)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def stored_trials(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="slimfront", storage=url).trials


def sampled(search: MadeUpSearch) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that the sampler knows."""
    return search.searcher._study.get_trials(deepcopy=False)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_candidate_is_inside_the_budgets_and_new(sampler: str) -> None:
    space = chain()
    budgets = (FLOPS, Budget("params", 2_000))
    search = search_of(problem_of(space, budgets, ("plain", "tuned"), trials=9, sampler=sampler))

    trials = drain(search)

    assert len(trials) == len(search.results) == 9
    assert len({trial.key() for trial in trials}) == 9
    assert [trial.number for trial in trials] == list(range(9))
    for trial in trials:
        if trial.goal.widths is not None:
            assert all(budget.allows(space.cost(trial.goal.widths)) for budget in (*budgets, *trial.goal.budgets))


def test_a_method_that_takes_no_widths_is_given_budgets_alone() -> None:
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("finding",), trials=12)))
    own = [trial for trial in trials if trial.method == "finding"]
    assert len(own) == 6
    assert all(trial.goal.widths is None and trial.goal.budgets for trial in own)


def test_a_method_that_is_used_up_at_a_target_leaves_its_trials_to_the_others() -> None:
    targets = (FLOPS, Budget("flops", 5_000))
    search = search_of(problem_of(chain(), (), ("finding", "plain"), trials=20, targets=targets))
    trials = drain(search)
    assert len(trials) == 20
    assert sum(trial.method == "finding" for trial in trials) == 2  # once at each target
    assert search.searcher.repeats < 20


def test_settings_of_every_kind_are_searched_within_their_bounds() -> None:
    problem = problem_of(chain(), (FLOPS,), ("tuned", "finding"), trials=100, sampler="random", search_settings="all")
    trials = drain(search_of(problem))
    tuned = [trial.settings for trial in trials if trial.method == "tuned"]
    assert len(tuned) > 30
    finding = [trial.settings for trial in trials if trial.method == "finding"]

    ridges, images = [settings["ridge"] for settings in tuned], [settings["images"] for settings in tuned]
    assert all(1e-3 <= ridge <= 10 for ridge in ridges)
    assert sum(ridge < 0.1 for ridge in ridges) > len(ridges) / 4  # a log scale: two of four decades
    assert all(isinstance(number, int) and 16 <= number <= 512 for number in images)
    assert {settings["way"] for settings in tuned} == {"greedy", "closed"}
    assert not any("fast" in settings for settings in tuned)  # it has neither bounds nor choices
    levels = [settings["levels"] for settings in finding]
    assert all(isinstance(level, int) and 1 <= level <= 256 for level in levels)
    assert sum(level <= 16 for level in levels) > len(levels) / 4
    assert {settings["exact"] for settings in finding} == {True, False}


def test_fixed_settings_are_parsed_and_not_searched() -> None:
    fixed = ("tuned.ridge=0.5", "tuned.images=32", "tuned.fast=false")
    trials = drain(search_of(problem_of(chain(), (FLOPS,), ("tuned",), set=fixed, search_settings="tuned", trials=12)))
    tuned = [trial.settings for trial in trials if trial.method == "tuned"]

    assert all(settings["ridge"] == 0.5 and settings["images"] == 32 for settings in tuned)
    assert all(settings["fast"] is False for settings in tuned)
    assert {settings["way"] for settings in tuned} <= {"greedy", "closed"}


def test_a_params_budget_alone_is_scaled() -> None:
    trials = drain(search_of(problem_of(chain(), (Budget("params", 1_500),), ("plain",), trials=9)))

    assert {budget.quantity for trial in trials for budget in trial.goal.budgets} == {"params"}
    assert len({trial.goal.budgets[0].limit for trial in trials}) > 4


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(("allocation", "given"), [("search", {True}), ("method", {False}), ("any", {True, False})])
def test_who_chooses_the_widths_can_be_fixed(sampler: str, allocation: str, given: set[bool]) -> None:
    trials = 6 if sampler == "gp" else 12  # few settings are free, and a GP fits its model for every repeated proposal
    problem = problem_of(chain(), (FLOPS,), ("tuned",), trials=trials, sampler=sampler, allocation=allocation)
    searched = [trial for trial in drain(search_of(problem)) if not trial.baseline]
    assert {trial.goal.widths is not None for trial in searched} == given


def test_an_unknown_sampler_names_the_nearest() -> None:
    assert sorted(SAMPLERS) == sorted(SAMPLER_NAMES)
    with pytest.raises(UnknownNameError, match="unknown sampler 'tpee'; did you mean tpe"):
        search_of(problem_of(chain(), (FLOPS,), ("plain",), sampler="tpee"))


def test_optuna_writes_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=5)))
    assert capfd.readouterr() == ("", "")


def test_seeds_come_from_the_run_and_the_candidate() -> None:
    for trial in drain(search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=8, seed=7))):
        assert trial.seed == derive_seed(7, trial.key())


def test_the_same_seed_gives_the_same_candidates() -> None:
    problem = problem_of(chain(), (FLOPS,), ("plain", "tuned"), trials=15, seed=3)
    first, second = (drain(search_of(problem)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_repeats_are_answered_from_the_history_until_the_space_is_exhausted(url: str, sampler: str) -> None:
    problem = problem_of(
        chain(groups=1, width=5, floor=3), (Budget("flops", 10**6),), ("l2",), trials=50, sampler=sampler
    )
    search = search_of(problem, url=url)

    trials = drain(search)

    found = sorted((trial.method, trial.goal.widths["layer0"]) for trial in trials if trial.goal.widths)
    # The baselines begin at half of the dense network, as this budget cuts nothing; `l2` is searched.
    assert found == [("di", 3), *(("l2", width) for width in (3, 4, 5))]
    assert search.searcher.repeats >= 200  # of which as many random ones
    assert len(stored_trials(url)) == len(trials) < 50


def test_a_repeat_is_told_to_the_sampler_with_the_result_of_the_earlier_trial() -> None:
    problem = problem_of(
        chain(groups=1, width=5, floor=3), (Budget("flops", 10**6),), ("l2",), trials=50, sampler="random"
    )
    search = search_of(problem)
    drain(search)
    repeats = [trial for trial in sampled(search) if DUPLICATE in trial.user_attrs]
    assert len(repeats) == search.searcher.repeats
    for repeat in repeats:
        earlier = search.history.result(repeat.user_attrs[DUPLICATE])
        assert earlier.cost is not None
        assert repeat.values == [earlier.accuracy, earlier.cost.flops]


def test_a_candidate_that_is_still_running_is_not_proposed_again(url: str) -> None:
    space = chain(groups=1, width=5, floor=3)
    problem = problem_of(space, (Budget("flops", 10**6),), ("l2",), trials=50, sampler="random")
    search = search_of(problem, url=url)
    trials = list[Trial]()
    while (trial := search.ask()) is not None:
        trials.append(trial)

    assert len(trials) == len({trial.key() for trial in trials}) < 50
    assert sum(trial.method == "l2" for trial in trials) == 3
    for trial in trials:
        search.tell(result_of(trial, space))
    assert len(search.results) == len(trials)


def test_a_search_of_the_same_budgets_takes_its_stored_trials_as_they_are(url: str) -> None:
    problem = problem_of(chain(), (FLOPS,), ("plain",), trials=12)
    drain(search_of(problem, url=url), most=6)
    again = search_of(problem, url=url)
    assert [(trial.params, trial.values) for trial in sampled(again)] == [
        (trial.params, trial.values) for trial in stored_trials(url)
    ]
    assert (again.tuner.total, again.tuner.remaining) == (12, 6)


def test_stored_trials_of_other_budgets_are_rebased_or_left_out(url: str) -> None:
    """At half the budget a trial has twice the fraction; one that would have more than the whole is left out."""
    space, half = chain(), Budget("flops", FLOPS.limit // 2)
    drain(search_of(problem_of(space, (FLOPS,), ("plain",), trials=12), url=url))
    before = stored_trials(url)
    again = search_of(problem_of(space, (half,), ("plain",), trials=14), url=url)
    after = {trial.user_attrs[RESULT]["trial"]["number"]: trial for trial in sampled(again)}
    kept = [number for number, trial in enumerate(before) if trial.params[BUDGET_FRACTION] <= 0.5]
    assert 0 < len(kept) < 12
    assert sorted(after) == kept
    for number, trial in after.items():
        # The limit of a trial is rounded down to a whole number of FLOPs.
        assert trial.params[BUDGET_FRACTION] == pytest.approx(2 * before[number].params[BUDGET_FRACTION], rel=2e-3)
        assert trial.values == before[number].values
    assert (len(again.results), again.tuner.total, again.tuner.remaining) == (12, 15, 3)  # the three baselines


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp"}))
def test_a_search_whose_settings_were_searched_goes_on_at_the_defaults(url: str, sampler: str) -> None:
    """As one does that was begun when settings of methods were always searched."""
    searched = problem_of(chain(), (FLOPS,), ("tuned",), trials=12, sampler=sampler, search_settings="all")
    before = drain(search_of(searched, url=url))
    again = search_of(problem_of(chain(), (FLOPS,), ("tuned",), trials=20, sampler=sampler), url=url)
    later = drain(again)
    assert len(again.results) == 20
    assert any(trial.settings for trial in before)
    assert not any(trial.settings for trial in later)


def test_rebasing_changes_the_fraction_and_its_range_alone() -> None:
    widths = FloatDistribution(0.0, 1.0)
    trial = optuna.trial.create_trial(
        values=[0.9, 100.0],
        params={BUDGET_FRACTION: 0.2, "relative_width.a": 0.3},
        distributions={BUDGET_FRACTION: FloatDistribution(0.03, 1.0, log=True), "relative_width.a": widths},
        user_attrs={"result": {}},
    )
    rebased = rebase(trial, 0.4, 0.05)
    assert rebased is not None
    assert rebased.params == {BUDGET_FRACTION: 0.4, "relative_width.a": 0.3}
    assert rebased.distributions == {
        BUDGET_FRACTION: FloatDistribution(0.05, 1.0, log=True),
        "relative_width.a": widths,
    }
    assert (rebased.values, rebased.user_attrs, rebased.state) == (trial.values, trial.user_attrs, trial.state)
    assert rebase(trial, 0.04, 0.05) is None
    assert rebase(trial, 1.01, 0.05) is None
    assert rebase(optuna.trial.create_trial(values=[0.9, 100.0]), 0.4, 0.05) is None


def test_a_failed_trial_is_told_to_the_sampler_without_values() -> None:
    search = search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=4))
    trial = search.ask()
    assert trial is not None
    search.tell(result_of(trial, search.problem.space, accuracy=math.nan))
    assert search.results[0].state is TrialState.FAILED
    assert [(known.state, known.values) for known in sampled(search)] == [(optuna.trial.TrialState.FAIL, None)]


def test_similar_candidates_have_the_number_method_and_budgets_of_their_trial() -> None:
    space, budget = chain(width=64), Budget("flops", 80_000)
    problem = problem_of(space, (budget,), ("plain", "tuned"), trials=20, sampler="random", allocation="search")
    search = search_of(problem)
    drain(search, most=15)  # the initial design
    trial = search.ask()
    assert trial is not None
    similar = search.searcher.suggest_similar(trial, 3)
    assert len({candidate.key() for candidate in (trial, *similar)}) == 4
    for candidate in similar:
        assert (candidate.number, candidate.method) == (trial.number, trial.method)
        assert candidate.goal.budgets == trial.goal.budgets
        assert candidate.seed == derive_seed(0, candidate.key())


@pytest.mark.parametrize("sampler", ["structured", "tpe", "random"])
def test_a_large_pool_is_filled_with_neighbours_unless_the_sampler_goes_by_chance(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = chain(groups=6, width=64)
    search = search_of(problem_of(space, (Budget("flops", 120_000),), ("l2",), trials=12, sampler=sampler))
    for _ in range(len(search.searcher._initial)):
        trial = search.ask()
        assert trial is not None
        search.tell(result_of(trial, space))
    trial = search.ask()
    assert trial is not None
    origins: list[dict[str, int]] = []

    def watched(widths: Widths, *arguments: object) -> dict[str, float]:
        origins.append(dict(widths))
        return neighbour(widths, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("search.searchers.optuna_searcher.neighbour", watched)
    others = search.searcher.suggest_similar(trial, 40)
    assert len({other.key() for other in (trial, *others)}) == 41
    assert {(other.number, other.method, other.goal.budgets) for other in others} == {
        (trial.number, trial.method, trial.goal.budgets)
    }
    if sampler == "random":
        assert not origins
    else:
        assert len(origins) >= 40 - (SAMPLED - 1)
        nearest = [dict(widths) for widths in (trial.goal.widths, *(own.widths for own in search.front)) if widths]
        assert all(origin in nearest for origin in origins)
        assert len({tuple(origin.values()) for origin in origins}) == 2
