"""Searched fine-tuning settings, in reports and forecasts."""

import math
from collections.abc import Sequence

from pruning.settings import Setting
from runners.trial import Trial
from search.results.result import SearchResult


def mean_epochs(searched: Sequence[Setting], epochs: int) -> float:
    """Return how many epochs a proposed trial trains on average: those set, unless they are searched.

    Whole numbers from a to b on a log scale are drawn from [a - 1/2, b + 1/2].
    """
    for each in searched:
        if each.name == "epochs" and each.low and each.high:
            return (each.high - each.low + 1) / math.log((each.high + 0.5) / (each.low - 0.5))
    return float(epochs)


def training_text(trial: Trial) -> str:
    """Write what a trial's training has of its own, such as "lr 0.0123, epochs 2"; empty for nothing."""
    return ", ".join(f"{name} {value:.3g}" for name, value in sorted(trial.training.items()))


def training_lines(result: SearchResult) -> list[str]:
    """Say how the networks of the report were fine-tuned, where that was searched, a line each."""
    if not any(member.trial.training for member in result.reported):
        return []
    lines = [f"  network {each.label}: {training_text(each.trial) or 'as set'}" for each in reversed(result.reported)]
    return ["Fine-tuning of the networks above:", *lines]
