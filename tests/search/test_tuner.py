import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from chain_space import chain

from pruning import settings as method_settings
from pruning.settings import setting
from runners.trial import EpochReport, Trial, TrialResult, TrialState, derive_seed
from search.searchers import candidate_space as candidates
from search.storage.checkpoints import InMemory
from search.tuner import SAMPLERS, Study, StudyError, StudySettings
from spaces.budget import Budget
from spaces.errors import BudgetError, SlimfrontError, UnknownNameError
from spaces.space import SearchSpace

FLOPS = Budget("flops", 20_000)


@dataclasses.dataclass(frozen=True)
class Plain:
    name: ClassVar[str] = "plain"
    finds_widths: ClassVar[bool] = False
    takes_widths: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Tuned:
    name: ClassVar[str] = "tuned"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True
    ridge: float = setting(0.1, low=1e-3, high=10.0, log=True)
    images: int = setting(64, low=16, high=512)
    way: str = setting("greedy", choices=("greedy", "closed"))
    compute_format: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Compresses in a way of its own: no widths can be asked of it."""

    name: ClassVar[str] = "finding"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = False
    levels: int = setting(4, low=1, high=256, log=True)
    exact: bool = setting(False, choices=(True, False))


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (candidates, method_settings):
        monkeypatch.setattr(module, "METHODS", {"l2": Plain, "plain": Plain, "tuned": Tuned, "finding": Finding})


def result_of(trial: Trial, space: SearchSpace, **changes: Any) -> TrialResult:
    """What a runner would give: accuracy grows with the width of the narrowest layer."""
    widths = trial.goal.widths or space.smallest
    accuracy = 1 - 1 / (1 + min(widths.values()))
    made = TrialResult(trial, TrialState.COMPLETE, accuracy, space.cost(widths), widths, seconds=1.5)
    return dataclasses.replace(made, **changes)


def drain(study: Study, space: SearchSpace, most: int = 10_000) -> list[Trial]:
    trials = []
    while len(trials) < most and (trial := study.ask()) is not None:
        trials.append(trial)
        study.tell(result_of(trial, space))
    return trials


class Shelf(InMemory):
    def __init__(self, keep: Callable[[TrialResult], TrialResult]) -> None:
        self.keep = keep  # type: ignore[method-assign]


def optuna_trials(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="slimfront", storage=url).trials


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_candidate_is_inside_the_budgets_and_new(sampler: str) -> None:
    space = chain()
    budgets = (FLOPS, Budget("params", 2_000))
    study = Study(StudySettings(("plain", "tuned"), trials=9, sampler=sampler), space, budgets)

    trials = drain(study, space)

    assert len(trials) == len(study.results) == 9
    assert len({trial.key() for trial in trials}) == 9
    assert [trial.number for trial in trials] == list(range(9))
    for trial in trials:
        if trial.goal.widths is not None:
            assert all(budget.allows(space.cost(trial.goal.widths)) for budget in (*budgets, *trial.goal.budgets))


def test_control_arms_come_first_spread_evenly_in_log_cost_and_are_at_most_a_third() -> None:
    space = chain(width=64)
    budget = Budget("flops", 80_000)
    trials = drain(Study(StudySettings(("plain",), trials=12), space, (budget,)), space)

    baselines = [trial for trial in trials if trial.baseline == "uniform"]
    assert baselines == trials[:4]
    assert {trial.method for trial in baselines} == {"l2"}
    shares = [trial.goal.budgets[0].limit / budget.limit for trial in baselines]
    assert shares == pytest.approx([1.0, 0.03 ** (1 / 3), 0.03 ** (2 / 3), 0.03], rel=1e-3)
    for baseline in baselines:
        assert baseline.goal.widths == space.fit([1.0] * 3, baseline.goal.budgets)


def test_one_trial_is_the_control_arm_at_the_whole_budget() -> None:
    space = chain()
    (only,) = drain(Study(StudySettings(("plain",), trials=1), space, (FLOPS,)), space)
    assert only.baseline == "uniform"
    assert only.goal.budgets == (FLOPS,)


def test_each_method_starts_at_the_control_arms_widths() -> None:
    space = chain()
    trials = drain(Study(StudySettings(("plain", "tuned"), trials=12), space, (FLOPS,)), space)

    warm = trials[4:7]
    assert [trial.method for trial in warm] == ["plain", "tuned", "tuned"]
    assert warm[0].goal.widths == trials[0].goal.widths
    assert warm[1].goal.widths == trials[1].goal.widths
    assert warm[1].settings == {"ridge": 0.1, "images": 64, "way": "greedy"}
    assert warm[2].goal.widths is None
    assert warm[2].goal.budgets == trials[2].goal.budgets
    assert not any(trial.baseline for trial in trials[4:])


def test_every_method_comes_before_another_way_of_one() -> None:
    space = chain()
    methods = ("tuned", "finding", "plain")
    trials = drain(Study(StudySettings(methods, trials=10), space, (FLOPS,)), space)
    warm = [(trial.method, trial.goal.widths is None) for trial in trials[3:6]]
    assert warm == [("tuned", False), ("finding", True), ("plain", False)]


@pytest.mark.parametrize("trials", [4, 5, 6, 9, 20])
def test_with_as_many_trials_as_methods_and_an_arm_every_method_is_tried(
    trials: int, caplog: pytest.LogCaptureFixture
) -> None:
    space, methods = chain(), ("tuned", "finding", "plain")
    given = drain(Study(StudySettings(methods, trials=trials), space, (FLOPS,)), space)
    assert len(given) == trials
    assert {trial.method for trial in given} == {"l2", *methods}
    assert given[0].baseline == "uniform"
    assert not caplog.records


def test_with_fewer_trials_the_first_methods_are_tried_and_the_rest_named(caplog: pytest.LogCaptureFixture) -> None:
    space = chain()
    given = drain(Study(StudySettings(("finding", "tuned", "plain"), trials=3), space, (FLOPS,)), space)
    assert [trial.method for trial in given] == ["l2", "finding", "tuned"]
    assert caplog.messages == ["3 trials leave none for plain; give more --trials"]


def test_the_control_method_needs_no_start_of_its_own() -> None:
    space = chain()
    given = drain(Study(StudySettings(("l2", "tuned"), trials=6), space, (FLOPS,)), space)
    assert [(trial.method, trial.baseline) for trial in given[:4]] == [
        ("l2", "uniform"),
        ("l2", "uniform"),
        ("tuned", ""),
        ("tuned", ""),
    ]


def test_a_method_that_takes_no_widths_is_given_budgets_alone() -> None:
    space = chain()
    trials = drain(Study(StudySettings(("finding",), trials=12), space, (FLOPS,)), space)
    own = [trial for trial in trials if trial.method == "finding"]
    assert len(own) == 8
    assert all(trial.goal.widths is None and trial.goal.budgets for trial in own)


def test_settings_of_every_kind_are_searched_within_their_bounds() -> None:
    space = chain()
    trials = drain(Study(StudySettings(("tuned", "finding"), trials=60, sampler="random"), space, (FLOPS,)), space)
    tuned = [trial.settings for trial in trials if trial.method == "tuned"]
    finding = [trial.settings for trial in trials if trial.method == "finding"]

    ridges, images = [each["ridge"] for each in tuned], [each["images"] for each in tuned]
    assert all(1e-3 <= each <= 10 for each in ridges)
    assert sum(each < 0.1 for each in ridges) > len(ridges) / 4  # a log scale: two of four decades
    assert all(isinstance(each, int) and 16 <= each <= 512 for each in images)
    assert {each["way"] for each in tuned} == {"greedy", "closed"}
    assert not any("fast" in each for each in tuned)  # nothing to search in it
    levels = [each["levels"] for each in finding]
    assert all(isinstance(each, int) and 1 <= each <= 256 for each in levels)
    assert sum(each <= 16 for each in levels) > len(levels) / 4
    assert {each["exact"] for each in finding} == {True, False}


def test_fixed_settings_hold_for_the_control_arm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "METHODS", {"l2": Tuned, "plain": Plain})
    space = chain()
    trials = drain(Study(StudySettings(("plain",), {"l2": {"ridge": "0.5"}}, trials=6), space, (FLOPS,)), space)
    baselines = [trial for trial in trials if trial.baseline]
    assert baselines
    assert all(trial.settings == {"ridge": 0.5} for trial in baselines)


def test_a_params_budget_alone_is_scaled() -> None:
    space = chain()
    trials = drain(Study(StudySettings(("plain",), trials=9), space, (Budget("params", 1_500),)), space)

    assert {budget.quantity for trial in trials for budget in trial.goal.budgets} == {"params"}
    assert len({trial.goal.budgets[0].limit for trial in trials}) > 4


def test_a_budget_above_the_dense_network_starts_from_the_dense_network() -> None:
    space = chain()
    trials = drain(Study(StudySettings(("plain",), trials=3), space, (Budget("flops", 10**9),)), space)
    assert trials[0].goal.widths == space.full


def test_relative_budgets_are_taken_of_the_dense_network() -> None:
    space = chain()
    study = Study(StudySettings(("plain",), trials=3), space, (Budget.parse("50%"),))
    assert study.budgets == (Budget("flops", space.dense_cost.flops // 2),)


def test_a_budget_under_the_smallest_network_is_refused_at_once() -> None:
    with pytest.raises(BudgetError, match="smallest network"):
        Study(StudySettings(("plain",)), chain(), (Budget("flops", 10),))
    with pytest.raises(BudgetError, match="budget none limits nothing; add one such as 0.5gflops or 8ms"):
        Study(StudySettings(("plain",)), chain(), ())


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(("allocation", "given"), [("search", {True}), ("method", {False}), ("any", {True, False})])
def test_who_chooses_the_widths_can_be_fixed(sampler: str, allocation: str, given: set[bool]) -> None:
    space = chain()
    settings = StudySettings(("tuned",), trials=12, sampler=sampler, allocation=allocation)
    trials = [trial for trial in drain(Study(settings, space, (FLOPS,)), space) if not trial.baseline]
    assert {trial.goal.widths is not None for trial in trials} == given


def test_a_search_at_the_whole_budget_with_everything_fixed_is_the_arm_and_one_trial() -> None:
    space = chain()
    fixed = {"tuned": {"ridge": 0.5, "images": 32, "way": "closed"}}
    settings = StudySettings(("tuned",), fixed, trials=2, allocation="method", lowest_fraction=1.0)
    baseline, recipe = drain(Study(settings, space, (FLOPS,)), space)
    assert (baseline.baseline, baseline.method) == ("uniform", "l2")
    assert (recipe.baseline, recipe.method, recipe.settings) == ("", "tuned", fixed["tuned"])
    assert recipe.goal.budgets == (FLOPS,)


def test_fixed_settings_are_parsed_and_not_searched() -> None:
    space = chain()
    fixed = {"tuned": {"ridge": "0.5", "images": "32", "fast": "false"}}
    study = Study(StudySettings(("tuned",), fixed, trials=12), space, (FLOPS,))
    tuned = [trial.settings for trial in drain(study, space) if trial.method == "tuned"]

    assert all(settings["ridge"] == 0.5 and settings["images"] == 32 for settings in tuned)
    assert all(settings["fast"] is False for settings in tuned)
    assert {settings["way"] for settings in tuned} <= {"greedy", "closed"}


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"tuned": {"ridge": "much"}}, "tuned.ridge=much is no float; give a number from 0.001 to 10.0"),
        ({"tuned": {"ridge": 11}}, "tuned.ridge=11 is out of bounds"),
        ({"tuned": {"images": "2.5"}}, "tuned.images=2.5 is no int"),
        ({"tuned": {"images": math.nan}}, "tuned.images=nan is no int"),
        ({"tuned": {"ridge": math.nan}}, "tuned.ridge=nan is out of bounds"),
        ({"tuned": {"way": "gredy"}}, "tuned.way=gredy is out of bounds; give one of greedy, closed"),
        ({"tuned": {"fast": "maybe"}}, "tuned.fast=maybe is no bool"),
        ({"tuned": {"rigde": 1}}, "unknown setting of tuned 'rigde'; did you mean ridge"),
        ({"plain": {"ridge": 1}}, "settings of 'plain' are given, but the search runs tuned, l2"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_value_and_rule(fixed: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SlimfrontError) as caught:
        Study(StudySettings(("tuned",), fixed), chain(), (FLOPS,))
    assert message in str(caught.value)


def test_an_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown sampler 'tpee'; did you mean tpe"):
        Study(StudySettings(("plain",), sampler="tpee"), chain(), (FLOPS,))


def test_optuna_writes_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    space = chain()
    drain(Study(StudySettings(("plain",), trials=5), space, (FLOPS,)), space)
    assert capfd.readouterr() == ("", "")


def test_no_trials_is_an_error() -> None:
    with pytest.raises(StudyError, match="trials 0"):
        Study(StudySettings(("plain",), trials=0), chain(), (FLOPS,))


def test_seeds_come_from_the_run_and_the_candidate() -> None:
    space = chain()
    for trial in drain(Study(StudySettings(("plain",), trials=8, seed=7), space, (FLOPS,)), space):
        assert trial.seed == derive_seed(7, trial.key())


def test_the_same_seed_gives_the_same_candidates() -> None:
    space, settings = chain(), StudySettings(("plain", "tuned"), trials=15, seed=3)
    first, second = (drain(Study(settings, space, (FLOPS,)), space) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_repeats_are_answered_from_the_record_until_the_space_is_exhausted(url: str, sampler: str) -> None:
    space = chain(groups=1, width=5, floor=3)
    study = Study(StudySettings(("l2",), trials=50, sampler=sampler, storage=url), space, (Budget("flops", 10**6),))

    trials = drain(study, space)

    assert sorted(trial.goal.widths["layer0"] for trial in trials if trial.goal.widths) == [3, 4, 5]
    assert study.repeats >= 200  # of which as many random ones
    assert len(optuna_trials(url)) == 3


def test_a_candidate_that_is_still_running_is_not_proposed_again(url: str) -> None:
    space = chain(groups=1, width=5, floor=3)
    study = Study(StudySettings(("l2",), trials=50, sampler="random", storage=url), space, (Budget("flops", 10**6),))
    trials = []
    while (trial := study.ask()) is not None:
        trials.append(trial)

    assert len(trials) == len({trial.key() for trial in trials}) == 3
    for trial in trials:
        study.tell(result_of(trial, space))
    assert len(study.results) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": TrialState.FAILED, "accuracy": None, "cost": None, "error": "out of memory"}, "out of memory"),
        ({"accuracy": math.nan}, "accuracy nan is not finite"),
        ({"accuracy": None}, "accuracy None is not finite"),
        ({"cost": None}, "no cost was measured"),
    ],
)
def test_what_cannot_be_compared_is_failed_with_its_reason(url: str, changes: dict[str, Any], reason: str) -> None:
    space = chain()
    study = Study(StudySettings(("plain",), trials=2, storage=url), space, (FLOPS,))
    trial = study.ask()
    assert trial is not None
    study.tell(result_of(trial, space, **changes))

    (stored,) = optuna_trials(url)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert stored.user_attrs["reason"] == reason
    assert study.results[0].state is TrialState.FAILED
    assert study.results[0].error == reason
    assert not study.front
    assert study.ask() is not None  # the search goes on


def test_a_network_over_the_budget_never_reaches_the_front() -> None:
    space = chain()
    study = Study(StudySettings(("plain",), trials=2), space, (FLOPS,))
    trial = study.ask()
    assert trial is not None
    study.tell(result_of(trial, space, cost=space.dense_cost, widths=space.full))
    assert "over the budget of 20kflops" in study.results[0].error
    assert not study.front


def test_a_study_goes_on_from_its_storage(url: str) -> None:
    space, settings = chain(), StudySettings(("plain", "tuned"), trials=12, storage=url)
    first = Study(settings, space, (FLOPS,))
    done = drain(first, space, most=6)
    lost = first.ask()
    assert lost is not None

    second = Study(settings, space, (FLOPS,))
    assert second.results == first.results
    assert second.front == first.front
    later = drain(second, space)

    assert len(second.results) == 12
    assert not {trial.key() for trial in later} & {trial.key() for trial in done}
    assert lost.key() in {trial.key() for trial in later}  # a planned candidate that was cut off comes again
    assert {result.trial.baseline for result in second.results} == {"uniform", ""}
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in optuna_trials(url))


def test_a_storage_whose_making_was_killed_goes_on_from_its_one_study(url: str) -> None:
    """Killed between the table of studies and its index, it has nothing that keeps a name from being taken twice."""
    with contextlib.closing(optuna.storages.RDBStorage(url).engine.raw_connection()) as connection:
        connection.execute("DROP INDEX ix_studies_study_name")
    space, settings = chain(), StudySettings(("plain",), trials=4, storage=url)
    first = Study(settings, space, (FLOPS,))
    drain(first, space, most=2)
    for _ in range(2):
        assert Study(settings, space, (FLOPS,)).results == first.results


def test_the_record_holds_the_whole_result_without_weights(url: str) -> None:
    space = chain()
    study = Study(StudySettings(("plain",), trials=1, storage=url), space, (FLOPS,))
    trial = study.ask()
    assert trial is not None
    told = result_of(
        trial, space, curve=(EpochReport(0, 0, 0.1, 0.5), EpochReport(0, 1, 0.3, 1.1)), note={"moves": 3}, path="a.pt"
    )
    study.tell(dataclasses.replace(told, checkpoint=b"weights"))

    reopened = Study(StudySettings(("plain",), trials=1, storage=url), space, (FLOPS,))
    assert reopened.results == (told,)
    assert "weights" not in json.dumps(optuna_trials(url)[0].user_attrs)


def test_a_storage_of_another_search_is_refused(url: str) -> None:
    Study(StudySettings(("plain",), storage=url), chain(), (FLOPS,))
    with pytest.raises(StudyError, match="another network"):
        Study(StudySettings(("plain",), storage=url), chain(groups=4), (FLOPS,))


@pytest.mark.parametrize("storage", ["sqlite:////no/such/folder/study.db", "nonsense", "nonsense://x"])
def test_a_storage_that_cannot_be_used_is_a_one_line_error(storage: str) -> None:
    with pytest.raises(StudyError, match="cannot hold the study") as caught:
        Study(StudySettings(("plain",), storage=storage), chain(), (FLOPS,))
    assert "\n" not in str(caught.value)


def test_closing_marks_untold_trials_as_interrupted(url: str) -> None:
    study = Study(StudySettings(("plain",), trials=4, storage=url), chain(), (FLOPS,))
    study.ask()
    study.close()
    (stored,) = optuna_trials(url)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert stored.user_attrs["reason"] == "interrupted"


def test_telling_what_was_not_asked_is_an_error() -> None:
    space = chain()
    study = Study(StudySettings(("plain",), trials=4), space, (FLOPS,))
    trial = study.ask()
    assert trial is not None
    study.tell(result_of(trial, space))
    with pytest.raises(StudyError, match="trial 0 is not running"):
        study.tell(result_of(trial, space))


def test_listeners_see_the_archived_result_and_the_study() -> None:
    space, seen = chain(), []
    study = Study(
        StudySettings(("plain",), trials=3),
        space,
        (FLOPS,),
        listeners=[lambda result, study: seen.append((result.path, len(study.results)))],
        archive=Shelf(lambda result: result.without_checkpoint(f"{result.trial.number}.pt")),
    )
    drain(study, space)
    assert seen == [("0.pt", 1), ("1.pt", 2), ("2.pt", 3)]


def test_a_trial_whose_accuracy_is_no_number_need_not_go_on() -> None:
    study = Study(StudySettings(("plain",)), chain(), (FLOPS,))
    assert study.report(EpochReport(0, 1, 0.5, 1.0))
    assert not study.report(EpochReport(0, 1, math.nan, 1.0))


def test_asking_takes_milliseconds() -> None:
    space = chain(groups=20)
    study = Study(StudySettings(("plain",), trials=30), space, (Budget("flops", 150_000),))
    drain(study, space, most=20)
    start = time.perf_counter()
    drain(study, space)
    assert (time.perf_counter() - start) / 10 < 0.1


def test_nets_passed_on_the_way_are_recorded_and_only_those_inside_the_budgets_reach_the_front(url: str) -> None:
    space, settings, archived = chain(), StudySettings(("plain",), trials=2, storage=url), []

    def archive(result: TrialResult) -> TrialResult:
        archived.append(sorted(result.checkpoints))
        return result.map_networks(lambda each: each.without_checkpoint(f"{each.stem}.pt" if each.checkpoint else ""))

    study = Study(settings, space, (FLOPS,), archive=Shelf(archive))
    trial = study.ask()
    assert trial is not None
    own = result_of(trial, space, accuracy=0.5, checkpoint=b"own")
    assert own.cost is not None
    costs = (dataclasses.replace(own.cost, flops=flops) for flops in (FLOPS.limit + 1, FLOPS.limit))
    above, inside = (
        dataclasses.replace(own, accuracy=0.9, cost=cost, intermediate_index=number, checkpoint=b"way")
        for number, cost in enumerate(costs, start=1)
    )
    cheaper = dataclasses.replace(own, cost=dataclasses.replace(own.cost, flops=10))
    study.tell(dataclasses.replace(cheaper, intermediate_networks=(above, inside)))

    assert archived == [["0", "0.2"]]
    assert [each.path for each in study.results[0].networks] == ["0000.pt", "", "0000-p2.pt"]
    assert [member.label for member in study.front] == ["0", "0.2"]
    assert len(study.results) == 1  # trials are counted, not networks
    (stored,) = optuna_trials(url)
    assert stored.values == [0.5, 10.0]
    again = Study(settings, space, (FLOPS,))
    assert (again.results, again.front) == (study.results, study.front)


def test_a_stored_study_is_opened_without_a_word(tmp_path: Path) -> None:
    """In a process of its own: the library's lines go to whatever was its stderr when it was imported."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    code = (
        "from chain_space import chain; from search.tuner import Study, StudySettings\n"
        "from spaces.budget import Budget\n"
        f"Study(StudySettings(('l2',), storage={storage!r}), chain(), [Budget('flops', 200_000)])"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
