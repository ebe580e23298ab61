"""Trials and their results as plain data that survives a round trip through JSON. No weights in it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pruning.base import Goal
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.results import comparison
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.widths import Widths


def plain(value: Any) -> Any:
    """Turn a value into what JSON gives back: dicts, lists, strings, finite numbers, None for the others."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)


def trial_to_dict(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain data."""
    return {
        "number": trial.number,
        "method": trial.method,
        "settings": plain(trial.settings),
        "widths": None if trial.goal.widths is None else dict(trial.goal.widths),
        "budgets": [dataclasses.asdict(budget) for budget in trial.goal.budgets],
        "seed": trial.seed,
        "arm": trial.baseline,
        "training": plain(trial.training),
    }


def trial_from_dict(data: Mapping[str, Any]) -> Trial:
    """Read back what `trial_to_dict` wrote."""
    widths = None if data["widths"] is None else Widths(data["widths"])
    goal = Goal(widths, tuple(Budget(**budget) for budget in data["budgets"]))
    return Trial(
        data["number"], data["method"], goal, data["settings"], data["seed"], data["arm"], data.get("training", {})
    )


def trial_result_to_dict(result: TrialResult) -> dict[str, Any]:
    """Return a trial's result as plain data without weights; an accuracy that is not finite becomes None."""
    return {
        "trial": trial_to_dict(result.trial),
        **_network_to_dict(result),
        "passed": [_network_to_dict(network) for network in result.intermediate_networks],
    }


def trial_result_from_dict(data: Mapping[str, Any]) -> TrialResult:
    """Read back what `trial_result_to_dict` wrote."""
    trial = trial_from_dict(data["trial"])
    intermediate_networks = tuple(
        dataclasses.replace(_network_from_dict(trial, network), intermediate_index=number)
        for number, network in enumerate(data["passed"], start=1)
    )
    return dataclasses.replace(_network_from_dict(trial, data), intermediate_networks=intermediate_networks)


def _network_to_dict(result: TrialResult) -> dict[str, Any]:
    return {
        "state": str(result.state),
        "accuracy": plain(result.accuracy),
        "cost": None if result.cost is None else dataclasses.asdict(result.cost),
        "widths": None if result.widths is None else dict(result.widths),
        "rungs": [[epochs, plain(accuracy)] for epochs, accuracy in result.rungs],
        "curve": [[report.epoch, plain(report.accuracy), report.seconds] for report in result.curve],
        "seconds": result.seconds,
        "train_seconds": result.train_seconds,
        "error": result.error,
        "note": plain(result.note),
        "test_accuracy": result.test_accuracy,
        "latency": plain(result.latency),
        "confirmation": comparison.confirmation_to_dict(result.confirmation),
        "path": result.path,
    }


def _network_from_dict(trial: Trial, data: Mapping[str, Any]) -> TrialResult:
    curve = tuple(
        EpochReport(trial.number, epoch, math.nan if accuracy is None else accuracy, seconds)
        for epoch, accuracy, seconds in data["curve"]
    )
    same = ("accuracy", "seconds", "train_seconds", "error", "note", "test_accuracy", "path")
    return TrialResult(
        trial=trial,
        state=TrialState(data["state"]),
        cost=None if data["cost"] is None else Cost(**data["cost"]),
        widths=None if data["widths"] is None else Widths(data["widths"]),
        curve=curve,
        latency=tuple(data.get("latency", ())),  # which none had once
        rungs=tuple((int(epochs), float(accuracy)) for epochs, accuracy in data.get("rungs", ())),  # older files: none
        confirmation=comparison.confirmation_from_dict(data.get("confirmation")),
        **{name: data[name] for name in same},
    )
