"""A view of the front for MLflow's page of runs: filter, columns and charts, as that page keeps the views it saves.

It is in a tag of the experiment. A page that expects another format shows no such view and is otherwise as before.
"""

import base64
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from configs.schema import RunConfig
from search.results.score_names import score_columns
from search.tracking.description import data_name

VIEW_TAG = "mlflow.sharedViewState."  # before the key of a view, in the names of an experiment's tags
MOST_AXES = 8  # of groups: more parallel coordinates are too narrow to read
_SECTION = "front"
_COSTS, _TAGS = ("flops", "params", "latency_ms"), ("chosen", "method", "search")


def subject_tags(config: RunConfig) -> dict[str, str]:
    """Return the tags of a trial by which the view tells its network and images from others of the experiment."""
    return {"model": config.network.replace("'", ""), "data": data_name(config).replace("'", "")}


def front_view(config: RunConfig, width_metrics: Sequence[str], score_name: str) -> tuple[str, str]:
    """Return name and value of the experiment's tag that keeps the view of the front of this network and these images.

    Args:
        width_metrics: names of the metrics with the width ratios of the groups that vary.
        score_name: of the task, which metrics have in their names.
    """
    subject = subject_tags(config)
    name = "front of {model} on {data}".format(**subject)
    conditions = {"on_front": "true", **subject}
    condition = " and ".join(f"tags.{tag} = '{value}'" for tag, value in conditions.items())
    cost = "latency_ms" if config.axis == "latency" else "flops"
    scores = score_columns(("accuracy", "test_accuracy"), score_name)
    state = _state(condition, cost, scores, _spread(width_metrics, MOST_AXES))
    now = int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return VIEW_TAG + re.sub(r"\W+", "-", name), json.dumps(view)


def _state(condition: str, cost: str, scores: Sequence[str], groups: Sequence[str]) -> Mapping[str, Any]:
    """Return a view as MLflow's page describes it.

    Args:
        cost, scores, groups: names of metrics; the first of the scores is drawn.
    """
    shared = {"metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    axes = {"xaxis": {"key": cost, "type": "METRIC"}, "yaxis": {"key": scores[0], "type": "METRIC"}}
    scatter = {"uuid": "cost", "type": "SCATTER", "runsCountToCompare": 100, **axes, **shared}
    widths = {"selectedParams": [], "selectedMetrics": [*groups, scores[0]], "showAllRuns": False}
    parallel = {"uuid": "widths", "type": "PARALLEL", "runsCountToCompare": 100, **widths, **shared}
    place = {"display": True, "deleted": False, "isGenerated": False, "isReordered": True}
    section = {"uuid": _SECTION, "name": _SECTION, "columns": 1, "cardHeight": 320, **place}
    return {
        "searchFilter": condition,
        # Sorted by a metric, the page lists trials without the parent runs under which they would be folded away.
        "orderByKey": f"metrics.`{cost}`",
        "orderByAsc": True,
        "selectedColumns": [f"metrics.`{metric}`" for metric in (*scores, *_COSTS)]
        + [f"tags.`{tag}`" for tag in _TAGS],
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [scatter, parallel],
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }


def _spread(names: Sequence[str], most: int) -> Sequence[str]:
    """Return at most so many of the names, evenly apart, with the first and the last."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
