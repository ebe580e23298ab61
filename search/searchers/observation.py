"""Observation: a trial as the models of a searcher see it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Observation:
    """A trial that ended, or that runs.

    Attributes:
        method: its name.
        fraction: cost of its network, or its limit while there is no network yet, as a fraction of the scaled budget.
        accuracy: on validation, in [0, 1]; None while it runs, or when it has failed.
        seconds: that it took; None while it runs.
        failed: counts like the worst accuracy that any trial has had.
        log2_ratios: log2 of width / dense width per variable group; empty where the widths do not count.
        training: share of the full training that it had.
    """

    method: str
    fraction: float
    accuracy: float | None = None
    seconds: float | None = None
    failed: bool = False
    log2_ratios: tuple[float, ...] = ()
    training: float = 1.0


def arcsine_sqrt(accuracy: float) -> float:
    """Return the arcsine of the root of an accuracy: on this scale counts of correct images have equal variance."""
    return math.asin(math.sqrt(min(1.0, max(0.0, accuracy))))
