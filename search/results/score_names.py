"""The name of a task's score in the names of metrics and columns, where classification has its accuracy."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

ACCURACY = "accuracy"
Value = TypeVar("Value")


def score_key(score_name: str) -> str:
    """Return the name of a score as part of a key: "mean IoU" gives "mean_iou"."""
    return re.sub(r"[^a-z0-9]+", "_", score_name.lower()).strip("_") or "score"


def with_score_names(values: Mapping[str, Value], score_name: str) -> dict[str, Value]:
    """Return values with the key of the score in place of "accuracy" in their names."""
    return dict(zip(score_columns(values, score_name), values.values(), strict=True))


def score_columns(names: Iterable[str], score_name: str) -> list[str]:
    """Return names with the key of the score in place of "accuracy"."""
    return [name.replace(ACCURACY, score_key(score_name)) for name in names]
