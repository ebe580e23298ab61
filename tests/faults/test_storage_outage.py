"""Searches on a real PostgreSQL server that dies and comes back."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from chain_space import chain
from made_up_search import problem_of, result_of, search_of

from search.storage.study_storage import StorageLostError, StudyStorage
from spaces.budget import Budget

pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed: pip install 'slimfront[postgres]'")
from postgres import Postgres, missing  # noqa: E402

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"PostgreSQL is not installed: no {', '.join(missing())}")


@pytest.fixture
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.mark.slow
def test_a_search_goes_on_without_its_storage_and_loses_and_doubles_nothing(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.storage.outbox.PATIENCE", 0.5)
    monkeypatch.setattr("search.storage.outbox.BETWEEN_TRIES", 0.0)
    monkeypatch.setattr("search.storage.study_storage.LAST_PATIENCE", 0.5)
    problem = problem_of(chain(3), (Budget("flops", 20_000),), trials=12)
    storage = StudyStorage(server.url, "one", problem, unsent=tmp_path / "unsent")
    search = search_of(problem)
    search.tuner.storage = storage

    def finish(count: int) -> None:
        for _ in range(count):
            trial = search.ask()
            assert trial is not None
            search.tell(result_of(trial, problem.space))

    finish(3)
    server.kill()
    finish(4)
    with pytest.raises(StorageLostError, match="did not come back: the front is written, and 4 records wait"):
        storage.finish("python -m search --resume RUN")
    server.start()
    finish(2)
    storage.finish("")
    storage.close()
    with closing(StudyStorage(server.url, "one", problem)) as again:
        stored = again.read()
    assert [trial.result.trial.number for trial in stored if trial.result] == list(range(9))


def test_two_searches_that_begin_at_once_share_a_server(server: Postgres) -> None:
    problem = problem_of(chain(3), (Budget("flops", 20_000),), trials=3)
    searches = {name: search_of(problem) for name in ("one", "two")}
    both = threading.Barrier(len(searches))

    def finish(name: str) -> None:
        both.wait()  # the database is empty: both make its tables
        with closing(StudyStorage(server.url, name, problem)) as storage:
            searches[name].tuner.storage = storage
            while (trial := searches[name].ask()) is not None:
                searches[name].tell(result_of(trial, problem.space))

    with ThreadPoolExecutor(len(searches)) as pool:
        list(pool.map(finish, searches))
    for name, search in searches.items():
        with closing(StudyStorage(server.url, name, problem)) as stored:
            results = [trial.result for trial in stored.read()]
        assert results == list(search.results)
        assert len(results) == 3
