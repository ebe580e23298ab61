"""What becomes of a trial between the question for it and the record of its result."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from chain_space import chain
from made_up_methods import register_all
from made_up_search import Listener, drain, problem_of, result_of, search_of

from runners.trial import EpochReport, TrialResult, TrialState
from search.storage.checkpoints import CheckpointStore
from search.storage.study_storage import StudyError
from spaces.budget import Budget

FLOPS = Budget("flops", 20_000)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all(monkeypatch)


class Store(CheckpointStore):
    """Keeps weights by a given function."""

    def __init__(self, keep: Callable[[TrialResult], TrialResult]) -> None:
        self.keep = keep  # type: ignore[method-assign]


def stored_trials(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="slimfront", storage=url).trials


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": TrialState.FAILED, "accuracy": None, "cost": None, "error": "out of memory"}, "out of memory"),
        ({"accuracy": math.nan}, "accuracy nan is not finite"),
        ({"accuracy": None}, "accuracy None is not finite"),
        ({"cost": None}, "no cost was measured"),
    ],
)
def test_a_result_that_cannot_be_compared_is_failed_with_its_reason(
    url: str, changes: dict[str, Any], reason: str
) -> None:
    search = search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=2), url=url)
    trial = search.ask()
    assert trial is not None
    search.tell(result_of(trial, search.problem.space, **changes))

    (stored,) = stored_trials(url)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert stored.user_attrs["reason"] == reason
    assert search.results[0].state is TrialState.FAILED
    assert search.results[0].error == reason
    assert not search.front
    assert search.ask() is not None  # the search goes on


def test_a_network_over_the_budget_never_reaches_the_front() -> None:
    space = chain()
    search = search_of(problem_of(space, (FLOPS,), ("plain",), trials=2))
    trial = search.ask()
    assert trial is not None
    search.tell(result_of(trial, space, cost=space.dense_cost, widths=space.full))
    assert "over the budget of 20kflops" in search.results[0].error
    assert not search.front


def test_a_search_goes_on_from_its_storage(url: str) -> None:
    problem = problem_of(chain(), (FLOPS,), ("plain", "tuned"), trials=12)
    first = search_of(problem, url=url)
    done = drain(first, most=6)
    lost = first.ask()
    assert lost is not None

    second = search_of(problem, url=url)
    assert second.results == first.results
    assert second.front == first.front
    later = drain(second)

    assert len(second.results) == 12
    assert not {trial.key() for trial in later} & {trial.key() for trial in done}
    assert lost.key() in {trial.key() for trial in later}  # an initial point that was cut off comes again
    assert {result.trial.baseline for result in second.results} == {"uniform", "own", ""}
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in stored_trials(url))


def test_closing_stores_untold_trials_as_interrupted(url: str) -> None:
    search = search_of(problem_of(chain(), (FLOPS,), ("plain",), trials=4), url=url)
    search.ask()
    search.tuner.close()
    (stored,) = stored_trials(url)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert stored.user_attrs["reason"] == "interrupted"


def test_telling_a_trial_that_was_not_asked_for_is_an_error() -> None:
    space = chain()
    search = search_of(problem_of(space, (FLOPS,), ("plain",), trials=4))
    trial = search.ask()
    assert trial is not None
    search.tell(result_of(trial, space))
    with pytest.raises(StudyError, match="trial 0 is not running"):
        search.tell(result_of(trial, space))


def test_callbacks_are_told_the_result_as_it_is_kept_and_the_progress() -> None:
    seen = list[tuple[str, int, int]]()
    listener = Listener(lambda result, progress: seen.append((result.path, progress.finished, progress.total)))
    search = search_of(
        problem_of(chain(), (FLOPS,), ("plain",), trials=3),
        callback=listener,
        checkpoints=Store(lambda result: result.without_checkpoint(f"{result.trial.number}.pt")),
    )
    drain(search)
    assert seen == [("0.pt", 1, 3), ("1.pt", 2, 3), ("2.pt", 3, 3)]


def test_a_trial_whose_accuracy_is_no_number_need_not_go_on() -> None:
    search = search_of(problem_of(chain(), (FLOPS,), ("plain",)))
    assert search.report(EpochReport(0, 1, 0.5, 1.0))
    assert not search.report(EpochReport(0, 1, math.nan, 1.0))


def test_asking_takes_milliseconds() -> None:
    search = search_of(problem_of(chain(groups=20), (Budget("flops", 150_000),), ("plain",), trials=30))
    drain(search, most=20)
    start = time.perf_counter()
    drain(search)
    assert (time.perf_counter() - start) / 10 < 0.1


def test_intermediate_networks_are_recorded_and_only_those_inside_the_budgets_reach_the_front(url: str) -> None:
    space, kept = chain(), list[list[str]]()

    def keep(result: TrialResult) -> TrialResult:
        kept.append(sorted(result.checkpoints))
        return result.map_networks(
            lambda network: network.without_checkpoint(f"{network.stem}.pt" if network.checkpoint else "")
        )

    problem = problem_of(space, (FLOPS,), ("plain",), trials=2)
    search = search_of(problem, url=url, checkpoints=Store(keep))
    trial = search.ask()
    assert trial is not None
    own = result_of(trial, space, accuracy=0.5, checkpoint=b"own")
    assert own.cost is not None
    costs = (dataclasses.replace(own.cost, flops=int(flops)) for flops in (FLOPS.limit + 1, FLOPS.limit))
    above, inside = (
        dataclasses.replace(own, accuracy=0.9, cost=cost, intermediate_index=number, checkpoint=b"intermediate")
        for number, cost in enumerate(costs, start=1)
    )
    cheaper = dataclasses.replace(own, cost=dataclasses.replace(own.cost, flops=10))
    search.tell(dataclasses.replace(cheaper, intermediate_networks=(above, inside)))

    assert kept == [["0", "0.2"]]
    assert [network.path for network in search.results[0].networks] == ["0000.pt", "", "0000-p2.pt"]
    assert [member.label for member in search.front] == ["0", "0.2"]
    assert len(search.results) == 1  # trials are counted, not networks
    (stored,) = stored_trials(url)
    assert stored.values == [0.5, 10.0]
    again = search_of(problem, url=url)
    assert (again.results, again.front) == (search.results, search.front)
