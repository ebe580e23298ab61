"""SearchRuns: the MLflow runs of one search in an open store, with their parameters (texts) and metrics (numbers)."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.passwords import masked_settings
from configs.schema import RunConfig
from runners.trial import Trial, TrialResult, TrialState
from search.reporting.latency import latency_metrics
from search.reporting.rows import front_columns
from search.reporting.targets import target_statements
from search.results.comparison import confirmed_figures
from search.results.result import SearchResult, best_at_text
from search.results.serialization import to_plain
from search.tracking.store import CHANGED_PREFIX, FOLDER_TAG, PARENT_TAG, StoredRuns, open_store, stored_runs
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

    def __init__(self, client: "MlflowClient", experiment: str, stored: StoredRuns) -> None:
        self._client, self._experiment, self._stored = client, experiment, stored
        self.parent, self.children = stored.parent, dict(stored.children)

    @classmethod
    def open(cls, uri: str, folder: Path, local: bool, config: RunConfig) -> "SearchRuns":
        """Open the store and begin the parent run, or with `resume` go on in the one of this run folder.

        Args:
            local: whether the store is in the run folder; its artifacts then are there, too.
            config: settings of the run, logged as parameters.
        """
        client = open_store(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        place = (folder / "mlartifacts").as_uri() if local else None
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=place)
        stored = stored_runs(client, experiment, str(folder), local) if config.resume else None
        if stored is None:
            parent = client.create_run(experiment, run_name="search", tags={FOLDER_TAG: str(folder)})
            stored = StoredRuns(parent.info.run_id)
        else:
            client.update_run(stored.parent, status="RUNNING")
        runs = cls(client, experiment, stored)
        runs.log(runs.parent, params=config_params(masked_settings(dataclasses.asdict(config))))
        return runs

    def answers(self) -> bool:
        """Return whether the store answers."""
        try:
            self._client.get_run(self.parent)
        except Exception:  # whatever its library raises
            return False
        return True

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
                if self._stored.params.get(name, value) != value:
                    self._client.set_tag(run, CHANGED_PREFIX + name, value)
            params = {name: value for name, value in params.items() if name not in self._stored.params}
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
        metrics = {"seconds": result.seconds} | ({"epochs": float(step)} if result.rungs else {})
        self.log(run, metrics | network_metrics(result), trial_params(trial, budgets), step)
        self._log_curve(run, result, start)
        for network in result.intermediate_networks:
            self.log(run, network_metrics(network, "intermediate_"), step=network.intermediate_index)
        if result.intermediate_networks:
            widths_by_label = {network.label: dict(network.widths or {}) for network in result.intermediate_networks}
            self._client.log_dict(run, widths_by_label, "intermediate.json")
        if (widths := result.widths or trial.goal.widths) is not None:
            self._client.log_dict(run, dict(widths), "widths.json")
        self.end(run, "FAILED" if result.state is TrialState.FAILED else "FINISHED", end)

    def write_front(self, result: SearchResult) -> None:
        """Write the front as a table, the comparison with the best baseline, and mark the members of the front."""
        self._write_table(front_columns(result))
        for child in self._stored.children.values():
            self._client.set_tag(child, "front", "false")
        self._client.set_tag(self.parent, "mlflow.note.content", result.baseline_comparison.statement)
        if (gap := result.baseline_comparison.difference) is not None:
            self.log(self.parent, {f"over_baseline_{name}": value for name, value in dataclasses.asdict(gap).items()})
        for target, line in zip(result.targets, target_statements(result), strict=True):
            self._client.set_tag(self.parent, f"target.{target}", line)
        for audit in (result.screening_audit, *result.rung_audits):
            if audit is not None and audit.correlation is not None:
                self.log(self.parent, {"rung_rank_correlation": audit.correlation}, step=audit.epochs)
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
        if table and self._stored.params:
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            self._client.log_dict(self.parent, {"columns": list(table), "data": rows}, "front.json")
        elif table:
            self._client.log_table(self.parent, table, "front.json")


def config_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as "group.option" -> text."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= config_params(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return flat


def trial_params(trial: Trial, budgets: Sequence[Budget]) -> dict[str, str]:
    """Return the parameters of a trial's run, with the fraction of the search's budgets that the trial was given."""
    limits = {budget.quantity: budget.limit for budget in budgets}
    fractions = [b.limit / limits[b.quantity] for b in trial.goal.budgets if b.quantity in limits]
    params = {"method": trial.method, "baseline": trial.baseline or "searched", "seed": str(trial.seed)}
    params["allocation"] = "method" if trial.goal.widths is None else "search"
    if fractions:
        params["budget_fraction"] = f"{min(fractions):.6g}"
    params |= {f"train.{name}": str(value) for name, value in trial.training.items()}
    return params | {f"{trial.method}.{name}": str(to_plain(value)) for name, value in trial.settings.items()}


def network_metrics(network: TrialResult, prefix: str = "") -> dict[str, float]:
    """Return the accuracy and cost of a network, as far as they are known."""
    metrics = {} if network.accuracy is None else {"accuracy": network.accuracy}
    metrics |= dataclasses.asdict(network.cost) if network.cost else {}
    return {prefix + name: value for name, value in metrics.items()}


def member_metrics(result: SearchResult, member: TrialResult) -> dict[str, float]:
    """Return the test accuracies and measured latencies of a network of the front."""
    prefix = "intermediate_" if member.intermediate_index else ""
    accuracies = {"test_accuracy": member.test_accuracy, **confirmed_figures(member)}
    metrics = {prefix + name: value for name, value in accuracies.items() if value is not None}
    return metrics | latency_metrics(result, member.label)
