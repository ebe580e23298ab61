"""MlflowTracker: records a search in MLflow, one parent run with one child run per trial, written by the controller.

One background thread imports MLflow, opens the store (a fresh SQLite store takes about ten seconds of migrations) and
makes every write, so neither the start nor a slow server holds a trial up.
"""

import dataclasses
import logging
import queue
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from typing_extensions import override

from configs.passwords import masked, masked_settings
from configs.schema import RunConfig
from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.environment import Plan
from search.problem import Problem
from search.results.result import DenseResult, SearchResult
from search.tracking.runs import SearchRuns
from search.tracking.store import SQLITE, STORE_FILE, ui_command
from spaces.errors import SlimfrontError

RETRY_SECONDS = 5.0  # between tries to reach a server that is away
STOP_SECONDS = 6.0  # longest wait for the last records after the user has stopped the search
FLUSH_SECONDS = 120.0  # longest wait for the last records of a finished search
MODEL_SECONDS = 60.0  # the same for each network that is logged as a model
PICTURE_SECONDS = 30.0  # between two pictures of a running search
_log = logging.getLogger(__name__)
_Write = Callable[[SearchRuns], None]


class TrackingError(SlimfrontError):
    """An MLflow store that cannot be opened."""


class MlflowTracker(SearchCallback):
    """Writes a search to MLflow.

    A resumed search first writes the finished trials that the killed process did not get to write.

    Args:
        folder: run folder; without a server the store is `mlflow.db` in it, and the artifacts are in `mlartifacts`.
        config: settings of the run. Its `tracking_uri` names an MLflow server; empty takes MLFLOW_TRACKING_URI, and
            without that the run folder. With `resume` the search goes on in the parent run that the store has of it.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._folder, self._config = folder.resolve(), config
        self._local = not config.tracking_address
        self._address = config.tracking_address or f"{SQLITE}{self._folder / STORE_FILE}"
        self.uri = masked(self._address)
        self._step = 0  # finished trials and training segments
        self._queue: queue.Queue[_Write | None] = queue.Queue()
        self._opened: Future[SearchRuns] = Future()
        self._given_up = threading.Event()  # nothing waits for the writer any more
        # A daemon, so that a server that hangs cannot keep a stopped search from ending.
        self._writer = threading.Thread(target=self._write, name="mlflow", daemon=True)

    @override
    def on_search_start(self, plan: Plan) -> None:
        """Begin to write; a server is tried before anything is trained, a store in the run folder is made meanwhile.

        Raises:
            TrackingError: the server cannot be used.
        """
        self._environment, self._reference_cost = plan.environment, plan.reference_cost
        data = self._environment.data
        self._queue.put(lambda runs: runs.describe(data, self._config, self._environment.task.score_name))
        self._writer.start()
        if not self._local:
            self._wait_until_open()

    @override
    def on_dense_evaluated(self, accuracy: float, problem: Problem, finished: Sequence[TrialResult]) -> None:
        """Log the dense network and the budgets, and the trials that the store lacks; waits until the store is open.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self._wait_until_open()
        self._dense = DenseResult(accuracy, None, problem.space.dense_cost, self._environment.dense_curve)
        self._results = {result.trial.number: result for result in finished}
        self._drawn = time.time()
        self._queue.put(lambda runs: runs.write_dense(accuracy, problem, self._dense.learning_curve))
        self._step = sum(max(1, len(result.rungs)) for result in finished)

        def catch_up(runs: SearchRuns) -> None:
            for result in finished:
                # The last training segment of a trial may be missing although its others are there.
                if result.trial.number not in runs.children or len(result.rungs) > 1:
                    runs.write_trial(result, problem, time.time())

        if finished:
            self._queue.put(catch_up)

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        self._step += 1
        step, problem, ended = self._step, self._environment.problem, time.time()
        self._results[result.trial.number] = result.with_checkpoints({})
        front = progress.front
        standing = {"hypervolume": front.hypervolume(self._reference_cost), "front_size": float(len(front))}
        best = front.best(problem.budgets)
        if best is not None and best.accuracy is not None:
            standing["best_accuracy"] = best.accuracy

        def write(runs: SearchRuns) -> None:
            runs.write_trial(result, problem, ended)
            runs.log(runs.parent, standing, step=step)
            runs.mark(front, best)

        self._queue.put(write)
        if ended - self._drawn >= PICTURE_SECONDS:
            self._drawn, so_far = ended, self._so_far()
            self._queue.put(lambda runs: runs.write_picture(so_far))

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        self._queue.put(lambda runs: runs.write_front(result))
        self._queue.put(lambda runs: runs.write_files(result, self._folder))
        models = [] if result.interrupted else self._models(result)
        for member in models:
            self._queue.put(partial(self._write_model, result=result, member=member))
        seconds = STOP_SECONDS if result.interrupted else FLUSH_SECONDS + MODEL_SECONDS * len(models)
        self._end("KILLED" if result.interrupted else "FINISHED", seconds)

    @override
    def on_search_abort(self) -> None:
        self._end("FAILED", STOP_SECONDS)

    def command(self) -> str:
        """Return the command line that opens MLflow on this search, or on a server the address of the run."""
        runs = self._opened.result() if self._opened.done() else None
        if self.uri.startswith(("http://", "https://")):
            return runs.address(self.uri) if runs else self.uri
        return ui_command(self.uri, runs.experiment if runs else "")

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
        return {"front": [*chosen, *others], "chosen": chosen, "none": []}[self._config.log_models]

    def _write_model(self, runs: SearchRuns, *, result: SearchResult, member: TrialResult) -> None:
        model = runs.write_model(result, member, self._folder)
        if model is not None and self._config.register and result.is_chosen(member):
            runs.register(self._config.register, model, member)

    def _wait_until_open(self) -> None:
        if (error := self._opened.exception()) is not None:
            raise TrackingError(
                f"MLflow cannot record to {self.uri!r} ({_first_line(error)}); "
                "give a running server with --tracking-uri, or none"
            ) from error

    def _end(self, status: str, seconds: float) -> None:
        """End the parent run, and wait for the writer at most so many seconds."""
        if not self._writer.is_alive():
            return
        self._queue.put(lambda runs: runs.end(runs.parent, status))
        self._queue.put(None)
        self._writer.join(seconds)
        self._given_up.set()
        if self._writer.is_alive():
            _log.warning("MLflow at %s has not taken all records within %.0f s", self.uri, seconds)

    def _write(self) -> None:
        """Open the store and make the queued writes until the queue ends; the target of the writer thread."""
        try:
            runs = SearchRuns.open(self._address, self._folder, self._local, self._config)
        except BaseException as error:  # of any class: the thread that waits raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(runs)
        while (write := self._queue.get()) is not None:
            self._until_taken(write, runs)

    def _until_taken(self, write: _Write, runs: SearchRuns) -> None:
        """Make a write; while the server is away, try again, so that the records that come meanwhile wait behind it.

        A write that the store refuses although it answers is left out.
        """
        is_away = False
        while True:
            try:
                write(runs)
            except Exception as error:  # a store that fails must not lose the search, whatever its library raises
                if not is_away:
                    _log.warning(
                        "MLflow at %s did not take a record (%s); the search goes on", self.uri, _first_line(error)
                    )
                if runs.answers():
                    if is_away:
                        is_away = False
                        continue
                    return
                is_away = True
                if self._given_up.wait(RETRY_SECONDS):
                    return
                continue
            if is_away:
                _log.warning("MLflow at %s answers again; the records that waited go out", self.uri)
            return


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without passwords, cut to 160 characters."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(masked(line), 160, placeholder="...")
