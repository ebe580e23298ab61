"""A search outlives its process in an Optuna storage."""

import contextlib
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from chain_space import chain
from made_up_search import drain, problem_of, result_of, search_of

from runners.trial import EpochReport, TrialResult, TrialState
from search.storage.study_storage import StudyError, StudyStorage
from spaces.budget import Budget

FLOPS = Budget("flops", 20_000)
FVCORE = "ignore:`torch.jit.script` is deprecated:FutureWarning"  # it scripts a loss when it is imported


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def storage_of(url: str, *, groups: int = 3, budget: Budget = FLOPS, resumed: bool = False) -> StudyStorage:
    return StudyStorage(url, "slimfront", problem_of(chain(groups), (budget,)), resumed=resumed)


def test_a_storage_whose_making_was_killed_goes_on_from_its_one_study(url: str) -> None:
    """Killed between the table of studies and its index, it has nothing that keeps a name from being taken twice."""
    with contextlib.closing(optuna.storages.RDBStorage(url).engine.raw_connection()) as connection:
        connection.execute("DROP INDEX ix_studies_study_name")
    problem = problem_of(chain(), (FLOPS,), trials=4)
    first = search_of(problem, url=url)
    drain(first, most=2)
    for _ in range(2):
        assert search_of(problem, url=url).results == first.results


def test_a_trial_that_lost_its_workers_is_tried_again_by_a_resumed_search(url: str) -> None:
    problem = problem_of(chain(), (FLOPS,), trials=1)
    search = search_of(problem, url=url)
    trial = search.ask()
    assert trial is not None
    search.tell(TrialResult(trial, TrialState.FAILED, error="ActorDiedError", lost=True))
    resumed = search_of(problem, url=url)
    assert resumed.results == ()
    again = resumed.ask()
    assert again is not None
    assert again.key() == trial.key()
    resumed.tell(result_of(again, problem.space))
    assert [result.state for result in search_of(problem, url=url).results] == ["complete"]


def test_the_storage_holds_the_whole_result_without_weights(url: str) -> None:
    problem = problem_of(chain(), (FLOPS,), trials=1)
    search = search_of(problem, url=url)
    trial = search.ask()
    assert trial is not None
    curve = (EpochReport(0, 0, 0.1, 0.5), EpochReport(0, 1, 0.3, 1.1))
    told = result_of(trial, problem.space, curve=curve, note={"moves": 3}, path="a.pt")
    search.tell(dataclasses.replace(told, checkpoint=b"weights"))

    assert search_of(problem, url=url).results == (told,)
    study = optuna.load_study(study_name="slimfront", storage=url)
    stored = study.trials
    assert study.metric_names == ["accuracy", "flops"]
    assert stored[0].values == [told.accuracy, told.cost.flops if told.cost else None]
    assert "weights" not in json.dumps(stored[0].user_attrs)
    # What a user of Optuna reads, without this project.
    plain = {
        name: stored[0].user_attrs[name] for name in ("network", "method", "baseline", "flops", "params", "widths")
    }
    assert told.cost is not None
    assert plain == {
        "network": "0",
        "method": "l2",
        "baseline": "uniform",
        "flops": told.cost.flops,
        "params": told.cost.params,
        "widths": dict(told.widths or {}),
    }
    assert set(stored[0].params) == {
        "allocation",
        "budget_fraction",
        *(f"relative_width.{name}" for name in plain["widths"]),
    }


def test_a_storage_of_another_search_is_refused(url: str) -> None:
    storage_of(url)
    with pytest.raises(StudyError, match="another network"):
        storage_of(url, groups=4, resumed=True)
    with pytest.raises(StudyError, match=r"other budgets \(\{'flops': 20000\} there, \{'flops': 10000\} here\)"):
        storage_of(url, budget=Budget("flops", 10_000))


@pytest.mark.parametrize("changed", [{"method": "evil:Method"}, {"settings": {"criterion": "evil:Criterion"}}])
def test_a_stored_trial_that_names_code_which_the_search_does_not_is_refused(
    url: str, changed: dict[str, object]
) -> None:
    drain(search_of(problem_of(chain(), (FLOPS,), trials=1), url=url))
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as tables, tables:
        where = "FROM trial_user_attributes WHERE key = 'result'"
        ((text,),) = tables.execute(f"SELECT value_json {where}").fetchall()
        result = json.loads(text)
        result["trial"] |= changed
        tables.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'result'", (json.dumps(result),))
    with pytest.raises(StudyError, match="holds trial 0 with evil:.*, which this search does not have"):
        storage_of(url).read()


def test_a_resumed_search_may_have_other_budgets_and_its_trials_are_then_earlier_ones(url: str) -> None:
    problem = problem_of(chain(), (FLOPS,), trials=2)
    drain(search_of(problem, url=url))
    assert [trial.earlier for trial in storage_of(url).read()] == [False, False]
    narrower = Budget("flops", 10_000)
    assert [trial.earlier for trial in storage_of(url, budget=narrower, resumed=True).read()] == [True, True]
    storage_of(url, budget=narrower)  # these budgets hold from now on


@pytest.mark.parametrize("storage", ["sqlite:////no/such/folder/study.db", "nonsense", "nonsense://x"])
def test_a_storage_that_cannot_be_used_is_a_one_line_error(storage: str) -> None:
    with pytest.raises(StudyError, match="cannot hold the study") as caught:
        storage_of(storage)
    assert "\n" not in str(caught.value)


def test_latencies_that_were_measured_later_are_read_with_their_networks(url: str) -> None:
    drain(search_of(problem_of(chain(), (FLOPS,), trials=2), url=url))
    storage = storage_of(url)
    storage.add_latency("1", [{"seconds": 1.0}])
    storage.add_latency("1", [{"seconds": 2.0}])  # the last readings hold
    first, second = (trial.result for trial in storage_of(url).read())
    assert first is not None
    assert second is not None
    assert (first.latency, second.latency) == ((), ({"seconds": 2.0},))


def test_a_fingerprint_may_change_until_a_result_rests_on_it(url: str) -> None:
    storage = storage_of(url)
    assert storage.fingerprint("dense weights") is None
    storage.check_fingerprint("dense weights", "a" * 20)
    storage.check_fingerprint("dense weights", "b" * 20)
    drain(search_of(problem_of(chain(), (FLOPS,), trials=1), url=url))
    storage = storage_of(url)
    assert storage.fingerprint("dense weights") == "b" * 20
    storage.check_fingerprint("dense weights", "b" * 20)
    with pytest.raises(StudyError, match="other dense weights .digest bbbbbbbbbbbb there, aaaaaaaaaaaa here"):
        storage.check_fingerprint("dense weights", "a" * 20)


def test_a_stored_study_is_opened_without_a_word(tmp_path: Path) -> None:
    """In a process of its own: the library's lines go to whatever was its stderr when it was imported."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    code = (
        "from chain_space import chain; from made_up_search import problem_of, search_of\n"
        f"search_of(problem_of(chain(), ['200kflops']), url={storage!r})"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": FVCORE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_an_error_of_a_storage_does_not_show_its_password() -> None:
    with pytest.raises(StudyError) as caught:
        storage_of("nonsense://me:s3cr@host/db")
    assert "nonsense://me:***@host/db" in str(caught.value)
    assert "s3cr" not in str(caught.value)
