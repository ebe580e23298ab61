"""MlflowTracker: records a search in MLflow, one parent run with one child run per trial, written by the controller.

One background thread imports MLflow, opens the store (a fresh SQLite store takes about ten seconds of migrations) and
makes every write, so neither the start nor a slow server holds a trial up.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import shlex
import textwrap
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
)
from typing_extensions import override

from configs.passwords import masked, masked_settings
from configs.schema import RunConfig
from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.environment import Plan
from search.problem import Problem
from search.results.result import DenseResult, SearchResult
from search.tracking.description import run_name
from search.tracking.journal import FILE, Heading, Journal, Record
from search.tracking.models import UnexportableError
from search.tracking.recorder import Recorder
from search.tracking.runs import SearchRuns
from search.tracking.store import SQLITE, STORE_FILE, is_unavailable, ui_command
from spaces.errors import SlimfrontError

EXPERIMENT = "slimfront"
RETRY_SECONDS = 5.0  # longest time between tries to reach a server that is away
STOP_SECONDS = 6.0  # longest wait for the last records after the user has stopped the search
FLUSH_SECONDS = 120.0  # longest wait for the last records of a finished search
MODEL_SECONDS = 60.0  # the same for each network that is logged as a model
PICTURE_SECONDS = 30.0  # between two pictures of a running search
RECORDS_AT_ONCE = 20  # after so many the store notes how many it has taken, and whenever none waits
_log = logging.getLogger(__name__)


class TrackingError(SlimfrontError):
    """An MLflow store that cannot be opened."""


class MlflowTracker(SearchCallback):
    """Writes a search to MLflow.

    What is recorded waits in the journal of the run folder until the store takes it. A resumed search first writes what
    the process before did not get to write.

    Args:
        folder: run folder; without a server the store is `mlflow.db` in it, and the artifacts are in `mlartifacts`.
        config: settings of the run. Its `tracking_uri` names an MLflow server; empty takes MLFLOW_TRACKING_URI, and
            without that the run folder.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._folder, self._config = folder.resolve(), config
        self._local = not config.tracking_address
        self._address = config.tracking_address or f"{SQLITE}{self._folder / STORE_FILE}"
        self.uri = masked(self._address)
        self._step = 0  # finished trials and training segments
        self._queue: queue.Queue[tuple[int, Record] | None] = queue.Queue()
        self._putting = threading.Lock()  # the numbers of the records rise in the queue
        self._picture: SearchResult | None = None  # to be drawn after the next record
        self._opened: Future[SearchRuns] = Future()
        self._given_up = threading.Event()  # nothing waits for the writer any more
        self._is_away = False
        # A daemon, so that a server that hangs cannot keep a stopped search from ending.
        self._writer = threading.Thread(target=self._write, name="mlflow", daemon=True)

    @override
    def on_search_start(self, plan: Plan) -> None:
        """Begin to write; a server is tried before anything is trained, a store in the run folder is made meanwhile.

        Raises:
            TrackingError: the server cannot be used.
        """
        self._environment, self._reference_cost = plan.environment, plan.reference_cost
        heading = None
        if not (self._config.resume and (self._folder / FILE).is_file()):
            experiment = self._config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
            heading = Heading(experiment, run_name(self._config), int(time.time() * 1000))
        self._journal = Journal(self._folder, heading)
        name, score_name = self._journal.heading.name, self._environment.task.score_name
        self._recorder = Recorder(self._config, name, score_name, self._journal.read())
        self._writer.start()
        if not self._local:
            self._wait_until_open()

    @override
    def on_dense_evaluated(self, accuracy: float, problem: Problem, finished: Sequence[TrialResult]) -> None:
        """Log the dense network and the budgets, and the trials that are not recorded; waits until the store is open.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self._wait_until_open()
        self._dense = DenseResult(accuracy, None, problem.space.dense_cost, self._environment.dense_curve)
        self._results = {result.trial.number: result for result in finished}
        self._drawn = time.time()
        self._put(self._recorder.dense(accuracy, problem, self._dense.learning_curve))
        self._step = sum(max(1, len(result.rungs)) for result in finished)
        for result in self._recorder.missing(finished):
            self._put(self._recorder.trial(result, problem, time.time()))

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        self._step += 1
        problem, ended, front = self._environment.problem, time.time(), progress.front
        self._results[result.trial.number] = result.with_checkpoints({})
        growth = {"hypervolume": front.hypervolume(self._reference_cost), "front_size": float(len(front))}
        best = front.best(problem.budgets)
        if best is not None and best.accuracy is not None:
            growth["best_accuracy"] = best.accuracy
        if ended - self._drawn >= PICTURE_SECONDS:
            self._drawn, self._picture = ended, self._so_far()
        self._put(self._recorder.trial(result, problem, ended))
        self._put(self._recorder.growth(growth, self._step))
        for mark in self._recorder.marks(front, best):
            self._put(mark)

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        for record in self._recorder.front(result):
            self._put(record)
        self._put(self._recorder.files(result, self._folder))
        models = [] if result.interrupted else self._models(result)
        for member in models:
            self._put(self._recorder.model(result, member))
        seconds = STOP_SECONDS if result.interrupted else FLUSH_SECONDS + MODEL_SECONDS * len(models)
        self._end("KILLED" if result.interrupted else "FINISHED", seconds)

    @override
    def on_search_abort(self) -> None:
        self._end("FAILED", STOP_SECONDS)

    def command(self) -> str:
        """Return the command line that opens MLflow on this search, or on a server the address of the run."""
        if self._opened.done():
            return self._opened.result().command(self.uri)
        return self.uri if self.uri.startswith(("http://", "https://")) else ui_command(self.uri)

    def _so_far(self) -> SearchResult:
        """Return the running search as a result, for its picture."""
        problem = self._environment.problem
        return SearchResult(
            config=masked_settings(dataclasses.asdict(self._config)),
            budgets=problem.budgets,
            dense=self._dense,
            results=tuple(self._results[number] for number in sorted(self._results)),
            targets=problem.targets,
        )

    def _models(self, result: SearchResult) -> list[TrialResult]:
        """Return the networks that are logged as models, the chosen one first."""
        chosen = [] if result.chosen is None else [result.chosen]
        others = [member for member in result.reported if not result.is_chosen(member)]
        kept = {"front": [*chosen, *others], "chosen": chosen, "none": []}[self._config.log_models]
        return [member for member in kept if member.path]

    def _put(self, record: Record) -> None:
        """Write a record to the journal, and have it sent.

        Raises:
            OSError: the run folder has no room.
        """
        with self._putting:
            self._queue.put((self._journal.append(record), record))

    def _wait_until_open(self) -> None:
        if (error := self._opened.exception()) is not None:
            raise TrackingError(
                f"MLflow cannot record to {self.uri!r} ({first_line(error)}); "
                "give a running server with --tracking-uri, or none"
            ) from error

    def _end(self, status: str, seconds: float) -> None:
        """End the parent run, and wait for the writer at most so many seconds."""
        if not self._writer.is_alive():
            return
        with contextlib.suppress(OSError):  # a full run folder has ended the search
            self._put(self._recorder.end(status))
        self._queue.put(None)
        self._writer.join(seconds)
        self._given_up.set()
        if self._writer.is_alive():
            _log.warning(
                "MLflow at %s has not taken all records within %.0f s; they wait in the run folder, "
                "python -m search sync %s sends them",
                self.uri,
                seconds,
                shlex.quote(str(self._folder)),
            )

    def _write(self) -> None:
        """Open the store and send the records of the journal until the queue ends; the target of the writer thread."""
        try:
            with self._putting:  # the earlier records end where those of this process begin
                start = self._journal.append(self._recorder.start(self._environment.data, self._folder))
            runs = SearchRuns.open(self._address, self._folder, self._journal.heading, self._local)
            runs.go_on()
        except BaseException as error:  # of any class: the thread that waits raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(runs)
        taken = min(runs.taken, start)
        earlier = zip(range(taken, start + 1), self._journal.read(taken), strict=False)
        for number, record in itertools.chain(earlier, iter(self._queue.get, None)):
            if not self._deliver(runs, number, record):
                return
            self._draw(runs)

    def _deliver(self, runs: SearchRuns, number: int, record: Record) -> bool:
        """Send a record, again and again while the store is away; return False once nothing waits for it any more.

        A record that the store refuses although it answers is left out.
        """

        def send() -> None:
            runs.send(record)
            if number + 1 == len(self._journal) or number % RECORDS_AT_ONCE == 0:  # the last so far
                runs.confirm(number + 1)

        retrying = Retrying(
            retry=retry_if_exception(partial(self._may_pass, runs)),
            wait=wait_exponential(multiplier=0.2, max=RETRY_SECONDS),
            stop=stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            reraise=True,
        )
        try:
            retrying(send)
        except UnexportableError as error:
            _log.warning("network of %s is no model in MLflow: %s", record.run, error)
        except Exception as error:  # a store that fails must not lose the search, whatever its library raises
            if self._given_up.is_set():
                return False
            _log.warning(
                "MLflow at %s refused a record of %s (%s): it is not sent again, %s keeps it; the search goes on",
                self.uri,
                record.run or "the search",
                first_line(error),
                FILE,
            )
        if self._is_away:
            self._come_back()
        return True

    def _may_pass(self, runs: SearchRuns, error: BaseException) -> bool:
        """Return whether a write that failed may be taken later: the store is away, or was when it failed."""
        if isinstance(error, UnexportableError):
            return False
        if is_unavailable(error) or not runs.answers():
            if not self._is_away:
                self._is_away = True
                message = "MLflow at %s did not take a record (%s); the search goes on"
                _log.warning(message, self.uri, first_line(error))
            return True
        if self._is_away:
            self._come_back()
            return True
        return False

    def _come_back(self) -> None:
        self._is_away = False
        _log.warning("MLflow at %s answers again; the records that waited go out", self.uri)

    def _draw(self, runs: SearchRuns) -> None:
        """Renew the picture of the search; it is no record, and goes missing where the store does not take it."""
        so_far, self._picture = self._picture, None
        if so_far is not None:
            try:
                runs.write_picture(so_far)
            except Exception as error:  # of MLflow, or of a full temporary folder
                _log.debug("no picture in MLflow: %s", error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without passwords, cut to 160 characters."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(masked(line), 160, placeholder="...")
