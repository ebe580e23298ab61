"""The numbers that MLflow is given of trials, of the front and of the whole search, by name."""

import dataclasses

from runners.trial import TrialResult
from search.reporting.latency import latency_metrics
from search.results.comparison import confirmed_figures
from search.results.result import SearchResult


def trial_metrics(result: TrialResult) -> dict[str, float]:
    """Return what a trial took and what its network does and costs."""
    metrics = {"seconds": result.seconds} | ({"epochs": float(result.trained or 0)} if result.rungs else {})
    if result.accuracy is not None:
        metrics["accuracy"] = result.accuracy
    return metrics | (dataclasses.asdict(result.cost) if result.cost else {})


def intermediate_metrics(network: TrialResult) -> dict[str, float]:
    """Return what a network that a trial has passed does and costs."""
    figures = {"accuracy": network.accuracy or 0.0} | (dataclasses.asdict(network.cost) if network.cost else {})
    return {f"passed_{name}": value for name, value in figures.items()}


def member_metrics(result: SearchResult, member: TrialResult) -> dict[str, float]:
    """Return how a network of the front does on test, and its measured latencies."""
    prefix = "passed_" if member.intermediate_index else ""
    known = {"test_accuracy": member.test_accuracy, **confirmed_figures(member)}
    metrics = {prefix + name: value for name, value in known.items() if value is not None}
    return metrics | latency_metrics(result, member.label)


def uniform_metrics(result: SearchResult) -> dict[str, float]:
    """Return how the chosen network differs from uniform widths at its FLOPs; nothing where that is not known."""
    gap = result.uniform_comparison.difference
    return {f"over_uniform_{name}": value for name, value in dataclasses.asdict(gap).items()} if gap else {}


def rung_correlations(result: SearchResult) -> dict[int, float]:
    """Return epochs of training, 0 before any -> rank correlation of what was known then with the end."""
    screening = [] if result.screening_audit is None else [result.screening_audit]
    audits = (*screening, *result.proxy_audit)
    return {each.epochs: each.correlation for each in audits if each.correlation is not None}
