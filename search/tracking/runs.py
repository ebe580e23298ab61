"""SearchRuns: the MLflow runs of one search in an open store, with their parameters (texts) and metrics (numbers)."""

import dataclasses
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.passwords import masked_settings
from configs.schema import RunConfig
from runners.data.loading import ImageData
from runners.learning_curve import LearningCurve
from runners.trial import Trial, TrialResult, TrialState
from search.problem import Problem
from search.reporting.latency import latency_metrics
from search.reporting.picture import write_png
from search.reporting.rows import front_columns
from search.reporting.targets import target_statements
from search.results.comparison import confirmed_figures
from search.results.loading import load
from search.results.result import SearchResult, best_at_text
from search.results.score_names import ACCURACY, score_key, with_score_names
from search.results.serialization import to_plain
from search.tracking.description import KIND_TAG, MODEL_TRAINING, context_tags, dataset_input, run_name
from search.tracking.models import ALIAS, NetworkModel, UnexportableError, log_model, register
from search.tracking.store import (
    ARTIFACTS,
    CHANGED_PREFIX,
    FOLDER_TAG,
    PARENT_TAG,
    StoredRuns,
    open_store,
    page_address,
    rebase_artifacts,
    stored_runs,
)
from search.tracking.views import front_view, subject_tags
from spaces.budget import Budget
from spaces.cost import Cost

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

EXPERIMENT = "slimfront"
PICTURE = "front.png"  # artifact, renewed while the search runs
MODEL_TAG, MODEL_OF_TAG = "model_id", "model_of"  # tags of a trial's run: its model, and the checkpoint it was made of
_NOT_IN_A_NAME = re.compile(r"[^\w\-./ :]")  # MLflow refuses names of metrics with these


class SearchRuns:
    """The runs of one search: a parent run, and one child run per trial. Used by one thread alone.

    Runs are addressed by their ids, never by MLflow's global state, so an MLFLOW_RUN_ID in the environment changes
    nothing. A resumed search goes on in its parent run; its changed settings become tags "now.NAME", because MLflow
    never changes a parameter.

    Attributes:
        experiment: id of the experiment.
        parent: id of the parent run.
        children: trial number -> id of the child run.
    """

    def __init__(self, client: "MlflowClient", experiment: str, stored: StoredRuns, config: RunConfig) -> None:
        self._client, self.experiment, self._stored, self._config = client, experiment, stored, config
        self.parent, self.children = stored.parent, dict(stored.children)
        # Trial number -> its tags on_front and chosen; None where an earlier process wrote them, with values of then.
        self._standing: dict[int, tuple[bool, bool] | None] = dict.fromkeys(self.children)
        self.score_name = ACCURACY  # of the task, in the names of metrics
        self._logged_epochs: dict[int, int] = {}  # by trial: epochs of its learning curve that are in the store

    @classmethod
    def open(cls, uri: str, folder: Path, local: bool, config: RunConfig) -> "SearchRuns":
        """Open the store and begin the parent run, or with `resume` go on in the one of this run folder.

        Args:
            local: whether the store is in the run folder; its artifacts then are there, too.
            config: settings of the run, logged as parameters.
        """
        if local:
            rebase_artifacts(folder)
        client = open_store(uri)
        name = config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = client.get_experiment_by_name(name)
        place = (folder / ARTIFACTS).as_uri() if local else None
        experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=place)
        if known is None or KIND_TAG not in known.tags:
            client.set_experiment_tag(experiment, KIND_TAG, MODEL_TRAINING)
        stored = stored_runs(client, experiment, str(folder), local) if config.resume else None
        if stored is None:
            parent = client.create_run(experiment, run_name=run_name(config), tags={FOLDER_TAG: str(folder)})
            stored = StoredRuns(parent.info.run_id)
        else:
            client.update_run(stored.parent, status="RUNNING")
        runs = cls(client, experiment, stored, config)
        runs.log(runs.parent, params=config_params(masked_settings(dataclasses.asdict(config))))
        return runs

    def answers(self) -> bool:
        """Return whether the store answers."""
        try:
            self._client.get_run(self.parent)
        except Exception:  # whatever its library raises
            return False
        return True

    def address(self, server: str) -> str:
        """Return the address of the parent run's page on a server."""
        return page_address(server, self.experiment, self.parent)

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
        finite = {
            name: float(value)
            for name, value in with_score_names(metrics or {}, self.score_name).items()
            if math.isfinite(value)
        }
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in finite.items()],
            params=[Param(name, value) for name, value in params.items()],
        )

    def describe(self, data: ImageData, config: RunConfig, score_name: str) -> None:
        """Write what the parent run is about: its dataset, user, source, host, versions and command.

        Args:
            score_name: of the task; metrics have it in their names.
        """
        self.score_name = score_name
        for name, value in context_tags(config).items():
            self._client.set_tag(self.parent, name, value)
        self._client.log_inputs(self.parent, [dataset_input(data, config)])

    def write_dense(self, accuracy: float, problem: Problem, curve: LearningCurve | None) -> None:
        """Write the dense network, with the learning curve of its training, and the budgets."""
        cost = problem.space.dense_cost
        limits = {f"budget.{budget.quantity}": str(budget.limit) for budget in problem.budgets}
        metrics = {"dense_accuracy": accuracy, **cost_metrics(cost, "dense_")}
        self.log(self.parent, metrics, limits)
        for epoch, reached in enumerate(curve.val if curve else (), start=1):
            self.log(self.parent, {"dense_val_accuracy": reached}, step=epoch)
        self._save_view([width_metric(group.name) for group in problem.space.variable])

    def _save_view(self, width_metrics: Sequence[str]) -> None:
        """Save a view of the front in the experiment, unless it has one, which the user may have changed."""
        tag, view = front_view(self._config, width_metrics, self.score_name)
        if tag not in self._client.get_experiment(self.experiment).tags:
            self._client.set_experiment_tag(self.experiment, tag, view)

    def write_trial(self, result: TrialResult, problem: Problem, ended: float) -> None:
        """Write a trial, or another training segment of one, as a child run.

        Its intermediate networks are the steps of the metrics named intermediate_...
        """
        trial = result.trial
        start, end = int((ended - result.seconds) * 1000), int(ended * 1000)
        run, params = self.children.get(trial.number), trial_params(trial, problem.budgets)
        if run is not None:  # another training segment, which goes on in the run of the first
            # MLflow takes a parameter once, and the fraction of the budgets differs where a resumed search has others.
            logged = self._client.get_run(run).data.params
            params = {name: value for name, value in params.items() if name not in logged}
        else:
            tags = {PARENT_TAG: self.parent, "state": str(result.state), "method": trial.method}
            tags |= {"search": run_name(self._config), **subject_tags(self._config)}
            tags |= {"baseline": _truth(bool(trial.baseline)), "on_front": _truth(False), "chosen": _truth(False)}
            if result.error:
                tags["failure_reason"] = result.error
            name = f"trial {trial.number:04d}"
            run = self._client.create_run(self.experiment, start_time=start, tags=tags, run_name=name).info.run_id
            self.children[trial.number] = run
            self._standing[trial.number] = (False, False)
        step = result.trained or 0 if result.rungs else 0
        metrics = {"seconds": result.seconds} | ({"epochs": float(step)} if result.rungs else {})
        metrics |= network_metrics(result) | width_metrics(result, problem.space.full)
        self.log(run, metrics, params, step)
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
        self.mark(result.front, result.chosen)
        if result.chosen is not None:
            chosen = network_metrics(result.chosen) | member_metrics(result, result.chosen)
            self.log(self.parent, {f"chosen_{name}": value for name, value in chosen.items()})
        self._client.set_tag(self.parent, "mlflow.note.content", result.baseline_comparison.statement)
        if (gap := result.baseline_comparison.difference) is not None:
            self.log(self.parent, {f"over_baseline_{name}": value for name, value in dataclasses.asdict(gap).items()})
        for target, line in zip(result.targets, target_statements(result), strict=True):
            self._client.set_tag(self.parent, f"target.{target}", line)
        for audit in (result.screening_audit, *result.rung_audits):
            if audit is not None and audit.correlation is not None:
                self.log(self.parent, {"rung_rank_correlation": audit.correlation}, step=audit.epochs)
        for member in result.reported:
            run = self.children.get(member.trial.number)
            if run is not None:
                if best_at := best_at_text(result, member):
                    self._client.set_tag(run, "best_at", best_at)
                self.log(run, member_metrics(result, member), step=member.intermediate_index)

    def mark(self, front: Iterable[TrialResult], chosen: TrialResult | None) -> None:
        """Set the tags on_front and chosen of the trials whose standing has changed."""
        on_front = {member.trial.number for member in front}
        number_chosen = None if chosen is None else chosen.trial.number
        for number, run in self.children.items():
            now = number in on_front, number == number_chosen
            before = self._standing.get(number) or (None, None)
            for tag, value, old in zip(("on_front", "chosen"), now, before, strict=True):
                if value != old:
                    self._client.set_tag(run, tag, _truth(value))
            self._standing[number] = now

    def write_picture(self, result: SearchResult) -> None:
        """Draw the search so far in place of the picture before."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PICTURE
            write_png(result, file)
            self._client.log_artifact(self.parent, str(file))

    def write_model(self, result: SearchResult, member: TrialResult, folder: Path) -> str | None:
        """Log a network of the front as a model of its trial's run; return its id, None where torch cannot export it.

        A resumed search keeps the model of a network that has not changed.
        """
        run = self.children.get(member.trial.number)
        if run is None or not member.path:
            return None
        tags = self._client.get_run(run).data.tags
        if tags.get(MODEL_OF_TAG) == member.path and MODEL_TAG in tags:
            return str(tags[MODEL_TAG])
        params = {"trial": member.label, "method": member.trial.method, "widths": json.dumps(dict(member.widths or {}))}
        network = NetworkModel(
            name=f"trial-{member.stem}",
            net=load(folder / member.path, trust=True),  # this search wrote it
            input_shape=result.space["input_shape"],
            params=params,
            metrics=with_score_names(network_metrics(member) | member_metrics(result, member), self.score_name),
        )
        try:
            model = log_model(self._client, self.experiment, run, network)
        except UnexportableError as error:
            _log.warning("network %s is no model in MLflow: %s", member.label, error)
            return None
        for name, value in ((MODEL_TAG, model), (MODEL_OF_TAG, member.path)):
            self._client.set_tag(run, name, value)
        return model

    def register(self, name: str, model: str, member: TrialResult) -> None:
        """Make the model of the chosen network the next version of a registered one."""
        version = register(self._client, name, model, self.children[member.trial.number])
        self._client.set_tag(self.parent, "registered", f"{name}@{ALIAS}, version {version.version}")

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

        logged = self._logged_epochs.get(result.trial.number, -1)
        curve = [
            Metric(
                f"val_{score_key(self.score_name)}", report.accuracy, start + int(report.seconds * 1000), report.epoch
            )
            for report in result.curve
            if math.isfinite(report.accuracy) and report.epoch > logged
        ]
        if curve:
            self._client.log_batch(run, metrics=curve)
            self._logged_epochs[result.trial.number] = curve[-1].step

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
    """Return the accuracy, the cost and the latency of a network, as far as they are known."""
    metrics = {} if network.accuracy is None else {"accuracy": network.accuracy}
    metrics |= cost_metrics(network.cost) if network.cost else {}
    metrics |= {"latency_ms": 1000 * float(network.timed["seconds"])} if network.timed is not None else {}
    return {prefix + name: value for name, value in metrics.items()}


def cost_metrics(cost: Cost, prefix: str = "") -> dict[str, float]:
    """Return what is known of a cost."""
    amounts = {"flops": cost.flops, "params": cost.params}
    in_bytes = {"activations_bytes": cost.activations, "size_bytes": cost.size}
    known = amounts | {name: amount for name, amount in in_bytes.items() if amount is not None}
    return {prefix + name: amount for name, amount in known.items()}


def width_metrics(network: TrialResult, full: Mapping[str, int]) -> dict[str, float]:
    """Return the width ratio of every group, in (0, 1]; none where the widths are not known."""
    if network.widths is None:
        return {}
    return {width_metric(group): width / full[group] for group, width in network.widths.items()}


def width_metric(group: str) -> str:
    """Return the name of the metric with the width ratio of a group."""
    return _NOT_IN_A_NAME.sub("_", f"width.{group}")


def member_metrics(result: SearchResult, member: TrialResult) -> dict[str, float]:
    """Return the test accuracies and measured latencies of a network of the front."""
    prefix = "intermediate_" if member.intermediate_index else ""
    accuracies = {"test_accuracy": member.test_accuracy, **confirmed_figures(member)}
    metrics = {prefix + name: value for name, value in accuracies.items() if value is not None}
    return metrics | latency_metrics(result, member.label)


def _truth(value: bool) -> str:
    """Write a tag by which the UI filters."""
    return "true" if value else "false"
