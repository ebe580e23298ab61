"""Recorder: turns what happens in a search into records of its runs in MLflow."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.passwords import masked_settings
from configs.schema import RunConfig
from runners.data.loading import ImageData
from runners.learning_curve import LearningCurve
from runners.trial import Trial, TrialResult, TrialState
from search.problem import Problem
from search.reporting.latency import latency_metrics
from search.reporting.rows import front_columns
from search.reporting.targets import target_statements
from search.results.comparison import confirmed_figures
from search.results.result import SearchResult, best_at_text
from search.results.score_names import score_key, with_score_names
from search.results.serialization import to_plain
from search.tracking.description import context_tags, dataset
from search.tracking.journal import Figures, ModelRecord, Record
from search.tracking.views import front_view, subject_tags
from spaces.budget import Budget
from spaces.cost import Cost

TABLE = "front.json"  # artifact of the parent run
TABLES_TAG = "mlflow.loggedArtifacts"  # by which MLflow's page shows an artifact as a table
_SECONDS = "seconds"  # metric that every trial has after each of its training segments
_NOT_IN_A_NAME = re.compile(r"[^\w\-./ :]")  # MLflow refuses names of metrics with these


class Recorder:
    """Makes the records of one search, none of them twice.

    Args:
        name: of the parent run.
        score_name: of the task; metrics have it in their names.
        earlier: records that another process made of the search.
    """

    def __init__(self, config: RunConfig, name: str, score_name: str, earlier: Iterable[Record] = ()) -> None:
        self._config, self._name, self._score_name = config, name, score_name
        self._curve = f"val_{score_key(score_name)}"
        self._standing: dict[str, dict[str, str]] = {}  # run of a trial -> its tags on_front and chosen
        self._segments: set[tuple[str, int]] = set()  # run of a trial and epochs after which it is recorded
        self._epochs: dict[str, int] = {}  # run of a trial -> epochs of its learning curve that are recorded
        self._has_dense = False
        for record in earlier:
            self._note(record)

    def start(self, data: ImageData, folder: Path) -> Record:
        """Return what the parent run is about: settings, dataset, user, source, host, versions and command."""
        return Record(
            tags={**context_tags(self._config), "slimfront.run_folder": str(folder)},
            params=config_params(masked_settings(dataclasses.asdict(self._config))),
            dataset=dataset(data, self._config),
        )

    def dense(self, accuracy: float, problem: Problem, curve: LearningCurve | None) -> Record:
        """Return the dense network, with the learning curve of its training, and the budgets."""
        cost, now, figures = problem.space.dense_cost, _now(), list[Figures]()
        if not self._has_dense:
            figures.append(self._figures({"dense_accuracy": accuracy, **cost_metrics(cost, "dense_")}, now))
            for epoch, reached in enumerate(curve.val if curve else (), start=1):
                figures.append(self._figures({"dense_val_accuracy": reached}, now, epoch))
        limits = {f"budget.{budget.quantity}": str(budget.limit) for budget in problem.budgets}
        groups = [width_metric(group.name) for group in problem.space.variable]
        return Record(params=limits, figures=figures, view=front_view(self._config, groups, self._score_name))

    def missing(self, results: Iterable[TrialResult]) -> list[TrialResult]:
        """Return the results that are not recorded."""
        return [result for result in results if (_run(result.trial.number), _step(result)) not in self._segments]

    def trial(self, result: TrialResult, problem: Problem, ended: float) -> Record:
        """Return a trial, or another training segment of one, which ended at this time in seconds since 1970.

        Its intermediate networks are the steps of the metrics named intermediate_...
        """
        trial, run, step = result.trial, _run(result.trial.number), _step(result)
        start, end = int((ended - result.seconds) * 1000), int(ended * 1000)
        tags = {"state": str(result.state), "method": trial.method, "baseline": _truth(bool(trial.baseline))}
        tags |= {"search": self._name, **subject_tags(self._config)}
        if run not in self._standing:
            tags |= {"on_front": _truth(False), "chosen": _truth(False)}
        if result.error:
            tags["failure_reason"] = result.error
        metrics = {_SECONDS: result.seconds} | ({"epochs": float(step)} if result.rungs else {})
        metrics |= network_metrics(result) | width_metrics(result, problem.space.full)
        figures = [self._figures(metrics, end, step), *self._learning_curve(run, result, start)]
        for network in result.intermediate_networks:
            figures.append(self._figures(network_metrics(network, "intermediate_"), end, network.intermediate_index))
        documents: dict[str, Any] = {}
        if result.intermediate_networks:
            documents["intermediate.json"] = {
                network.label: dict(network.widths or {}) for network in result.intermediate_networks
            }
        if (widths := result.widths or trial.goal.widths) is not None:
            documents["widths.json"] = dict(widths)
        status = "FAILED" if result.state is TrialState.FAILED else "FINISHED"
        params = trial_params(trial, problem.budgets)
        return self._noted(Record(run, start, tags, params, figures, documents, status=status, end=end))

    def growth(self, metrics: Mapping[str, float], step: int) -> Record:
        """Return what the parent run shows of the search after so many trials and training segments."""
        return Record(figures=[self._figures(metrics, _now(), step)])

    def marks(self, front: Iterable[TrialResult], chosen: TrialResult | None) -> Iterator[Record]:
        """Yield the tags on_front and chosen of the trials whose standing has changed."""
        on_front = {_run(member.trial.number) for member in front}
        run_chosen = None if chosen is None else _run(chosen.trial.number)
        for run, before in list(self._standing.items()):
            now = {"on_front": _truth(run in on_front), "chosen": _truth(run == run_chosen)}
            if changed := {tag: value for tag, value in now.items() if value != before.get(tag)}:
                yield self._noted(Record(run, tags=changed))

    def front(self, result: SearchResult) -> Iterator[Record]:
        """Yield the front as a table, the comparison with the best baseline, and the marks of the front's members."""
        now, comparison, tags, documents = _now(), result.baseline_comparison, dict[str, str](), dict[str, Any]()
        if table := front_columns(result):
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            documents[TABLE] = {"columns": list(table), "data": rows}
            tags[TABLES_TAG] = json.dumps([{"path": TABLE, "type": "table"}])
        yield from self.marks(result.front, result.chosen)
        metrics: dict[str, float] = {}
        if result.chosen is not None:
            chosen = network_metrics(result.chosen) | member_metrics(result, result.chosen)
            metrics |= {f"chosen_{name}": value for name, value in chosen.items()}
        tags["mlflow.note.content"] = comparison.statement
        if (gap := comparison.difference) is not None:
            metrics |= {f"over_baseline_{name}": value for name, value in dataclasses.asdict(gap).items()}
        for target, line in zip(result.targets, target_statements(result), strict=True):
            tags[f"target.{target}"] = line
        figures = [self._figures(metrics, now)]
        for audit in (result.screening_audit, *result.rung_audits):
            if audit is not None and audit.correlation is not None:
                figures.append(self._figures({"rung_rank_correlation": audit.correlation}, now, audit.epochs))
        yield Record(tags=tags, figures=figures, documents=documents)
        for member in result.reported:
            best_at = best_at_text(result, member)
            yield Record(
                _run(member.trial.number),
                tags={"best_at": best_at} if best_at else {},
                figures=[self._figures(member_metrics(result, member), now, member.intermediate_index)],
            )

    def files(self, result: SearchResult, folder: Path) -> Record:
        """Return the report's files and the folder of the chosen network; other networks stay in the run folder."""
        found = [(path, "") for path in (*result.paths.values(), "config.yaml") if (folder / path).is_file()]
        chosen = result.paths.get("chosen", "")
        if chosen and (folder / chosen).is_dir():
            found.append((chosen, "chosen"))
        return Record(files=found)

    def model(self, result: SearchResult, member: TrialResult) -> Record:
        """Return a network of the front as a model of its trial's run."""
        figures = self._figures(network_metrics(member) | member_metrics(result, member), _now())
        params = {"trial": member.label, "method": member.trial.method, "widths": json.dumps(dict(member.widths or {}))}
        register = self._config.register if result.is_chosen(member) else ""
        shape = result.space["input_shape"]
        model = ModelRecord(f"trial-{member.stem}", member.path, shape, params, figures, register)
        return Record(_run(member.trial.number), model=model)

    def end(self, status: str) -> Record:
        """Return the end of the parent run."""
        return Record(status=status, end=_now())

    def _figures(self, metrics: Mapping[str, float], at: int, step: int = 0) -> Figures:
        """Return the finite metrics, with the name of the score in theirs."""
        named = with_score_names(metrics, self._score_name)
        return Figures(at, step, {name: float(value) for name, value in named.items() if math.isfinite(value)})

    def _learning_curve(self, run: str, result: TrialResult, start: int) -> Iterator[Figures]:
        """Yield the validation accuracies of a trial by epoch, those that are not recorded."""
        recorded = self._epochs.get(run, -1)
        for report in result.curve:
            if math.isfinite(report.accuracy) and report.epoch > recorded:
                yield Figures(start + int(report.seconds * 1000), report.epoch, {self._curve: report.accuracy})

    def _noted(self, record: Record) -> Record:
        self._note(record)
        return record

    def _note(self, record: Record) -> None:
        """Remember what a record has."""
        if not record.run:
            self._has_dense = self._has_dense or any("dense_flops" in figures.values for figures in record.figures)
            return
        standing = {tag: record.tags[tag] for tag in ("on_front", "chosen") if tag in record.tags}
        self._standing.setdefault(record.run, {}).update(standing)
        for figures in record.figures:
            if _SECONDS in figures.values:
                self._segments.add((record.run, figures.step))
            if self._curve in figures.values:
                self._epochs[record.run] = max(figures.step, self._epochs.get(record.run, -1))


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
    top5 = {"val_top5": member.val_top5, "test_top5": member.test_top5}
    accuracies = {"test_accuracy": member.test_accuracy, **top5, **confirmed_figures(member)}
    metrics = {prefix + name: value for name, value in accuracies.items() if value is not None}
    return metrics | latency_metrics(result, member.label)


def _run(number: int) -> str:
    return f"trial {number:04d}"


def _step(result: TrialResult) -> int:
    """Return the epochs that a trial has been trained, by which the records of its training segments differ."""
    return result.trained or 0 if result.rungs else 0


def _truth(value: bool) -> str:
    """Write a tag by which the UI filters."""
    return "true" if value else "false"


def _now() -> int:
    return int(time.time() * 1000)
