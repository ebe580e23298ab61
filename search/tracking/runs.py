"""SearchRuns: the MLflow runs of one search in an open store."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.trial import TrialResult, TrialState
from search.reporting.rows import front_columns
from search.reporting.targets import target_statements
from search.results.result import SearchResult, best_at_text
from search.tracking.records import (
    baseline_metrics,
    config_params,
    intermediate_metrics,
    member_metrics,
    rung_correlations,
    trial_metrics,
    trial_params,
)
from search.tracking.store import CHANGED_PREFIX, FOLDER_TAG, PARENT_TAG, EarlierRuns, earlier_runs, open_store
from spaces.budget import Budget

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "slimfront"


class SearchRuns:
    """The runs of one search: a parent run, and one child run per trial. Used by one thread alone.

    Runs are addressed by their ids, never by MLflow's global state, so an MLFLOW_RUN_ID in the environment changes
    nothing. A resumed search goes on in its parent run; its changed settings become tags "now.NAME", because MLflow
    never changes a parameter.

    Attributes:
        parent: id of the parent run.
        children: trial number -> id of the child run.
    """

    def __init__(self, client: "MlflowClient", experiment: str, folder: str, earlier: EarlierRuns | None) -> None:
        self._client = client
        self._experiment = experiment
        self.children: dict[int, str] = dict(earlier.children) if earlier else {}
        self._earlier_params = earlier.params if earlier else {}
        self._earlier_children = tuple(self.children.values())
        if earlier is None:
            self.parent = client.create_run(experiment, run_name="search", tags={FOLDER_TAG: folder}).info.run_id
        else:
            self.parent = earlier.parent
            client.update_run(self.parent, status="RUNNING")

    @classmethod
    def open(cls, uri: str, folder: Path, local: bool, resumes: bool, config: Any) -> "SearchRuns":
        """Open the store and begin the parent run.

        Args:
            local: whether the store is in the run folder; its artifacts then are there, too.
            resumes: whether to go on in the parent run that the store has of this run folder.
            config: settings of the run, logged as parameters.
        """
        client = open_store(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        place = (folder / "mlartifacts").as_uri() if local else None
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=place)
        earlier = earlier_runs(client, experiment, str(folder), local) if resumes else None
        runs = cls(client, experiment, str(folder), earlier)
        runs.log(runs.parent, params=config_params(config))
        return runs

    def address(self, uri: str) -> str:
        """Return the address of the parent run's page on a server."""
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
            for name, value in params.items():
                if self._earlier_params.get(name, value) != value:
                    self._client.set_tag(run, CHANGED_PREFIX + name, value)
            params = {name: value for name, value in params.items() if name not in self._earlier_params}
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in finite.items()],
            params=[Param(name, value) for name, value in params.items()],
        )

    def write_trial(self, result: TrialResult, budgets: Sequence[Budget], ended: float) -> None:
        """Write a trial, or another training segment of one, as a child run.

        Its intermediate networks are the steps of the metrics named intermediate_...
        """
        trial = result.trial
        start, end = int((ended - result.seconds) * 1000), int(ended * 1000)
        run = self.children.get(trial.number)
        if run is None:  # else another training segment, which goes on in the run of the first
            tags = {PARENT_TAG: self.parent, "state": str(result.state), "method": trial.method}
            if result.error:
                tags["failure_reason"] = result.error
            name = f"trial {trial.number:04d}"
            run = self._client.create_run(self._experiment, start_time=start, tags=tags, run_name=name).info.run_id
            self.children[trial.number] = run
        step = result.trained or 0 if result.rungs else 0
        self.log(run, trial_metrics(result), trial_params(trial, budgets), step)
        self._log_curve(run, result, start)
        for network in result.intermediate_networks:
            self.log(run, intermediate_metrics(network), step=network.intermediate_index)
        if result.intermediate_networks:
            widths_by_label = {network.label: dict(network.widths or {}) for network in result.intermediate_networks}
            self._client.log_dict(run, widths_by_label, "intermediate.json")
        if (widths := result.widths or trial.goal.widths) is not None:
            self._client.log_dict(run, dict(widths), "widths.json")
        self.end(run, "FAILED" if result.state is TrialState.FAILED else "FINISHED", end)

    def write_front(self, result: SearchResult) -> None:
        """Write the front as a table, the comparison with the baseline, and mark the members of the front."""
        self._write_table(front_columns(result))
        for child in self._earlier_children:
            self._client.set_tag(child, "front", "false")
        self._client.set_tag(self.parent, "mlflow.note.content", result.baseline_comparison.statement)
        if over := baseline_metrics(result):
            self.log(self.parent, over)
        for target, line in zip(result.targets, target_statements(result), strict=True):
            self._client.set_tag(self.parent, f"target.{target}", line)
        for epochs, correlation in rung_correlations(result).items():
            self.log(self.parent, {"rung_rank_correlation": correlation}, step=epochs)
        labels = {member.label for member in result.front}
        for member in result.reported:
            run = self.children.get(member.trial.number)
            if run is not None:
                if member.label in labels:
                    self._client.set_tag(run, "front", "true")
                if best_at := best_at_text(result, member):
                    self._client.set_tag(run, "best_at", best_at)
                self.log(run, member_metrics(result, member), step=member.intermediate_index)

    def write_files(self, result: SearchResult, folder: Path) -> None:
        """Write the report's files and the folder of the chosen network as artifacts."""
        for name, path in result.paths.items():
            written = folder / path
            if written.is_file():
                self._client.log_artifact(self.parent, str(written))
            elif written.is_dir() and name == "chosen":  # the other networks of the front stay in the run folder
                self._client.log_artifacts(self.parent, str(written), "chosen")
        if (config := folder / "config.yaml").is_file():
            self._client.log_artifact(self.parent, str(config))

    def end(self, run: str, status: str, milliseconds: int | None = None) -> None:
        """End a run, now or at a time in milliseconds since 1970."""
        self._client.set_terminated(run, status, milliseconds)

    def _log_curve(self, run: str, result: TrialResult, start: int) -> None:
        """Log the validation accuracies of a trial by epoch; `start` is in milliseconds since 1970."""
        from mlflow.entities import Metric

        curve = [
            Metric("val_accuracy", report.accuracy, start + int(report.seconds * 1000), report.epoch)
            for report in result.curve
            if math.isfinite(report.accuracy)
        ]
        if curve:
            self._client.log_batch(run, metrics=curve)

    def _write_table(self, table: Mapping[str, list[Any]]) -> None:
        """Write the front as a table, in place of one that an earlier process wrote, to which MLflow would append."""
        if table and self._earlier_params:
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            self._client.log_dict(self.parent, {"columns": list(table), "data": rows}, "front.json")
        elif table:
            self._client.log_table(self.parent, table, "front.json")
