"""The parameters (texts) and metrics (numbers) that MLflow is given of the config, of trials and of a whole search."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from runners.trial import Trial, TrialResult
from search.reporting.latency import latency_metrics
from search.results.comparison import confirmed_figures
from search.results.result import SearchResult
from search.results.serialization import to_plain
from spaces.budget import Budget


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
