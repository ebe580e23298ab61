"""The parameters (texts) and metrics (numbers) that MLflow is given of the config, of trials and of a whole search."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from runners.trial import Trial, TrialResult
from search.reporting.latency import latency_metrics
from search.results.comparison import confirmed_figures
from search.results.result import SearchResult
from search.results.serialization import plain
from spaces.budget import Budget


def config_params(config: Any, prefix: str = "") -> dict[str, str]:
    """Return a nested configuration, a dataclass or a mapping, as "group.option" -> text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= config_params(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat[prefix + name] = ", ".join(str(item) for item in value)
        else:
            flat[prefix + name] = str(value)
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
    return params | {f"{trial.method}.{name}": str(plain(value)) for name, value in trial.settings.items()}


def trial_metrics(result: TrialResult) -> dict[str, float]:
    """Return the duration of a trial, and the accuracy and cost of its network."""
    metrics = {"seconds": result.seconds} | ({"epochs": float(result.trained or 0)} if result.rungs else {})
    if result.accuracy is not None:
        metrics["accuracy"] = result.accuracy
    return metrics | (dataclasses.asdict(result.cost) if result.cost else {})


def intermediate_metrics(network: TrialResult) -> dict[str, float]:
    """Return the accuracy and cost of an intermediate network of a trial."""
    metrics = {"accuracy": network.accuracy or 0.0} | (dataclasses.asdict(network.cost) if network.cost else {})
    return {f"intermediate_{name}": value for name, value in metrics.items()}


def member_metrics(result: SearchResult, member: TrialResult) -> dict[str, float]:
    """Return the test accuracies and measured latencies of a network of the front."""
    prefix = "intermediate_" if member.intermediate_index else ""
    accuracies = {"test_accuracy": member.test_accuracy, **confirmed_figures(member)}
    metrics = {prefix + name: value for name, value in accuracies.items() if value is not None}
    return metrics | latency_metrics(result, member.label)


def baseline_metrics(result: SearchResult) -> dict[str, float]:
    """Return the difference of the chosen network to uniform widths at its FLOPs; empty where that is not known."""
    gap = result.baseline_comparison.difference
    return {f"over_uniform_{name}": value for name, value in dataclasses.asdict(gap).items()} if gap else {}


def rung_correlations(result: SearchResult) -> dict[int, float]:
    """Return epochs, 0 before any training -> rank correlation of the accuracies then with those at the end."""
    screening = [] if result.screening_audit is None else [result.screening_audit]
    audits = (*screening, *result.rung_audits)
    return {audit.epochs: audit.correlation for audit in audits if audit.correlation is not None}
