"""MLflow's record of a search: one parent run, one child run per trial, written by the controller alone.

One background thread imports MLflow, opens the store (a fresh SQLite store takes about ten seconds of migrations)
and does every write, so neither the start nor a slow server holds a trial up. Runs are addressed by their ids, never
by MLflow's global state, so an MLFLOW_RUN_ID in the environment changes nothing.

A resumed search goes on in its own parent run: finished trials that a killed process did not get to write are written
first, and settings that differ now become tags "now.NAME", since MLflow never changes a parameter.
"""

import logging
import math
import os
import queue
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.trial import TrialResult, TrialState
from search.reporting.rows import front_columns
from search.reporting.targets import target_statements
from search.results.result import SearchResult, best_at_text
from search.tracking.fields import ENVIRONMENT, FOLDER, NOW, Earlier, earlier_runs, first_line, flatten, trial_params
from search.tracking.metrics import (
    intermediate_metrics,
    member_metrics,
    rung_correlations,
    trial_metrics,
    uniform_metrics,
)
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import SlimfrontError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"  # before the path of a store in a file
EXPERIMENT = "slimfront"
MAX_FAILURES = 3  # in a row, after which nothing more is sent: each may have waited for a dead server
STOP_SECONDS = 6.0  # that a user who has stopped the search waits for the last records at most
FLUSH_SECONDS = 120.0  # that a finished search waits for them at most
_log = logging.getLogger(__name__)


class TrackingError(SlimfrontError):
    """An MLflow store that cannot be opened."""


class MlflowTracker:
    """Writes a search to MLflow.

    Args:
        folder: run folder; without a server the store is `mlflow.db` in it, the artifacts lie in `mlartifacts`.
        tracking_uri: of an MLflow server; empty takes MLFLOW_TRACKING_URI, and without that the run folder.
        config: the run's configuration (a dataclass or a mapping), logged as parameters.
        resumes: go on in the parent run that the run folder has had, if the store has it.
    """

    def __init__(self, folder: Path, tracking_uri: str, config: Any, *, resumes: bool = False) -> None:
        self._folder, self._resumes = folder.resolve(), resumes
        self._local = not (tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        local = f"{SQLITE}{self._folder / 'mlflow.db'}"
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        self._config = config
        self._budgets: tuple[Budget, ...] = ()
        self._done = self._failures = 0
        self._queue: queue.Queue[Callable[[_Records], None] | None] = queue.Queue()
        self._opened = threading.Event()
        self._error: BaseException | None = None
        self._records: _Records | None = None
        # A daemon, so that a server that hangs cannot keep a stopped search from ending.
        self._writer = threading.Thread(target=self._write, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to open the store; returns at once."""
        self._writer.start()

    def catch_up(self, results: Sequence[TrialResult]) -> None:
        """Take trials that an earlier process has finished; those that the store lacks are written."""
        self._done = sum(max(1, len(result.rungs)) for result in results)

        def write(records: "_Records") -> None:
            for result in results:
                # The last leg of a trial may be missing where its others are there.
                if result.trial.number not in records.children or len(result.rungs) > 1:
                    records.trial(result, self._budgets, time.time())

        if results:
            self._queue.put(write)

    def dense(self, accuracy: float, cost: Cost, budgets: Sequence[Budget]) -> None:
        """Log the dense network and the budgets; waits until the store is open.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self._opened.wait()
        if self._error is not None:
            raise TrackingError(
                f"MLflow cannot record to {self.uri!r} ({first_line(self._error)}); "
                "give a running server with --tracking-uri, or none"
            ) from self._error
        self._budgets = tuple(budgets)
        limits = {f"budget.{budget.quantity}": str(budget.limit) for budget in budgets}
        metrics = {"dense_accuracy": accuracy, "dense_flops": cost.flops, "dense_params": cost.params}
        self._queue.put(lambda records: records.log(records.parent, metrics, limits))

    def trial(self, result: TrialResult, hypervolume: float, best_accuracy: float | None, front_size: int) -> None:
        """Log a finished trial, or another leg of one, and how the search stands after it."""
        self._done += 1
        step = self._done
        standing = {"hypervolume": hypervolume, "front_size": front_size}
        if best_accuracy is not None:
            standing["best_accuracy"] = best_accuracy
        budgets, ended = self._budgets, time.time()

        def write(records: "_Records") -> None:
            records.trial(result, budgets, ended)
            records.log(records.parent, standing, step=step)

        self._queue.put(write)

    def finish(self, result: SearchResult) -> None:
        """Log the front, the files of the report and the chosen network, and end the parent run."""
        self._queue.put(lambda records: records.front(result))
        self._queue.put(lambda records: records.files(result, self._folder))
        self._end("KILLED" if result.interrupted else "FINISHED", STOP_SECONDS if result.interrupted else FLUSH_SECONDS)

    def abort(self) -> None:
        """End the parent run of a search that gave no result."""
        self._end("FAILED", STOP_SECONDS)

    def command(self) -> str:
        """Return the command line that opens MLflow on this search, or on a server the address of the run."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri if self._records is None else self._records.address(self.uri)
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def _end(self, status: str, seconds: float) -> None:
        if not self._writer.is_alive():
            return
        self._queue.put(lambda records: records.end(records.parent, status))
        self._queue.put(None)
        self._writer.join(seconds)
        if self._writer.is_alive():
            _log.warning("MLflow at %s has not taken all records within %.0f s", self.uri, seconds)

    def _write(self) -> None:
        try:
            self._records = _Records.open(self.uri, self._folder, self._local, self._resumes, self._config)
        except BaseException as error:  # whatever it is, the thread that waits must hear of it
            self._error = error
            return
        finally:
            self._opened.set()
        while (write := self._queue.get()) is not None:
            if self._failures >= MAX_FAILURES:
                continue
            try:
                write(self._records)
                self._failures = 0
            except Exception as error:  # a store that fails must not lose the search, whatever its library raises
                self._failures += 1
                if self._failures == 1:
                    _log.warning(
                        "MLflow at %s did not take a record (%s); the search goes on", self.uri, first_line(error)
                    )


def _client(uri: str) -> "MlflowClient":
    """Open a store, which MLflow makes where there is none."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # Its lines about migrations would tear the progress bar.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    store = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and store.parent.is_dir() and not store.exists():
        # Made beside its place: one that a kill leaves in the middle of the migrations can never be opened again.
        for leftover in store.parent.glob(f".{store.name}.*"):
            leftover.unlink()
        made = store.with_name(f".{store.name}.{uuid.uuid4().hex}")
        MlflowClient(tracking_uri=f"{SQLITE}{made}").search_experiments(max_results=1)
        made.replace(store)
    return MlflowClient(tracking_uri=uri)


class _Records:
    """The runs of one search in an open store; used by the writer thread alone."""

    def __init__(self, client: "MlflowClient", experiment: str, folder: str, earlier: Earlier | None) -> None:
        self._client = client
        self._experiment = experiment
        self.children: dict[int, str] = dict(earlier.children) if earlier else {}
        self._known = earlier.params if earlier else {}
        self._before = tuple(self.children.values())
        if earlier is None:
            self.parent = client.create_run(experiment, run_name="search", tags={FOLDER: folder}).info.run_id
        else:
            self.parent = earlier.parent
            client.update_run(self.parent, status="RUNNING")

    @classmethod
    def open(cls, uri: str, folder: Path, local: bool, resumes: bool, config: Any) -> "_Records":
        """Open the store and begin the parent run; `local` says that it lies in the run folder."""
        client = _client(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        place = (folder / "mlartifacts").as_uri() if local else None
        found = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=place)
        earlier = earlier_runs(client, found, str(folder), local) if resumes else None
        records = cls(client, found, str(folder), earlier)
        records.log(records.parent, params=flatten(config))
        return records

    def address(self, uri: str) -> str:
        """Return the parent run's page on a server."""
        return f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.parent}"

    def log(
        self,
        run: str,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Log finite metrics and parameters in one request."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        params = dict(params or {})
        if run == self.parent:
            for name in [each for each, value in params.items() if self._known.get(each, value) != value]:
                self._client.set_tag(run, NOW + name, params[name])
            params = {name: value for name, value in params.items() if name not in self._known}
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in finite.items()],
            params=[Param(name, value) for name, value in params.items()],
        )

    def trial(self, result: TrialResult, budgets: Sequence[Budget], ended: float) -> None:
        """Write a trial as a child run; the networks it passed are steps of the metrics named passed_..."""
        from mlflow.entities import Metric

        trial = result.trial
        tags = {"mlflow.parentRunId": self.parent, "state": str(result.state), "method": trial.method}
        if result.error:
            tags["failure_reason"] = result.error
        start, end = int((ended - result.seconds) * 1000), int(ended * 1000)
        name = f"trial {trial.number:04d}"
        run = self.children.get(trial.number)
        if run is None:  # otherwise another leg, which goes on in the run of those before
            run = self._client.create_run(self._experiment, start_time=start, tags=tags, run_name=name).info.run_id
            self.children[trial.number] = run
        step = result.trained or 0 if result.rungs else 0
        self.log(run, trial_metrics(result), trial_params(trial, budgets), step)
        curve = [
            Metric("val_accuracy", report.accuracy, start + int(report.seconds * 1000), report.epoch)
            for report in result.curve
            if math.isfinite(report.accuracy)
        ]
        if curve:
            self._client.log_batch(run, metrics=curve)
        for each in result.intermediate_networks:
            self.log(run, intermediate_metrics(each), step=each.intermediate_index)
        if result.intermediate_networks:
            self._client.log_dict(
                run, {each.label: dict(each.widths or {}) for each in result.intermediate_networks}, "passed.json"
            )
        if (widths := result.widths or trial.goal.widths) is not None:
            self._client.log_dict(run, dict(widths), "widths.json")
        self.end(run, "FAILED" if result.state is TrialState.FAILED else "FINISHED", end)

    def front(self, result: SearchResult) -> None:
        """Write the front as a table, and mark its members."""
        table = front_columns(result)
        if table and self._known:  # a table of an earlier process is there, to which log_table would append
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            self._client.log_dict(self.parent, {"columns": list(table), "data": rows}, "front.json")
        elif table:
            self._client.log_table(self.parent, table, "front.json")
        for before in self._before:
            self._client.set_tag(before, "front", "false")
        self._client.set_tag(self.parent, "mlflow.note.content", result.uniform_comparison.statement)
        if over := uniform_metrics(result):
            self.log(self.parent, over)
        for target, line in zip(result.targets, target_statements(result), strict=True):
            self._client.set_tag(self.parent, f"target.{target}", line)
        labels = {member.label for member in result.front}
        for epochs, correlation in rung_correlations(result).items():
            self.log(self.parent, {"rung_rank_correlation": correlation}, step=epochs)
        for member in result.reported:
            child = self.children.get(member.trial.number)
            if child is not None:
                if member.label in labels:
                    self._client.set_tag(child, "front", "true")
                if targets := best_at_text(result, member):
                    self._client.set_tag(child, "best_at", targets)
                self.log(child, member_metrics(result, member), step=member.intermediate_index)

    def files(self, result: SearchResult, folder: Path) -> None:
        """Write the report's files and the chosen network's folder as artifacts."""
        for name, path in result.paths.items():
            written = folder / path
            if written.is_file():
                self._client.log_artifact(self.parent, str(written))
            elif written.is_dir() and name == "chosen":  # the other networks of the front stay in the run folder
                self._client.log_artifacts(self.parent, str(written), "chosen")
        if (config := folder / "config.yaml").is_file():
            self._client.log_artifact(self.parent, str(config))

    def end(self, run: str, status: str, milliseconds: int | None = None) -> None:
        """End a run."""
        self._client.set_terminated(run, status, milliseconds)
