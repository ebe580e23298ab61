"""Which runs the benchmark of the methods consists of, and the file of those that are finished."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table: a method at these settings; `finds` leaves the widths to it."""

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    finds: bool = False


ROWS = (
    Row("l2", "l2"),
    Row("l1", "l1"),
    Row("geometric median", "geometric_median"),
    Row("BatchNorm scale", "bn_scale"),
    Row("taylor", "taylor"),
    Row("feature rank", "feature_rank"),
    Row("random", "random"),
    Row("scratch", "scratch"),
    Row("l2, compensated", "l2", {"compensate": True}),
    Row("l2, global widths", "l2", {"allocation": "global"}, finds=True),
    Row("di, uniform widths", "di"),
    Row("di, found widths", "di", finds=True),
    Row("csgd", "csgd"),
    Row("abfp", "abfp"),
    Row("aofp, uniform widths", "aofp"),
    Row("aofp, found widths", "aofp", finds=True),
    Row("kse, found structure", "kse", finds=True),
)


@dataclass(frozen=True)
class Job:
    """One run of one row."""

    row: Row
    share: float
    seed: int

    def key(self, recipe: str) -> str:
        return json.dumps([recipe, self.row.method, dict(self.row.settings), self.row.finds, self.share, self.seed])


class Finished:
    """The lines of finished runs, in a file that only grows."""

    def __init__(self, path: Path, recipe: str) -> None:
        self._path, self._recipe = path, recipe
        self.runs: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                each = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
                continue
            if not each["error"]:
                self.runs[each["key"]] = each

    def of(self, job: Job) -> dict[str, Any] | None:
        return self.runs.get(job.key(self._recipe))

    def add(self, job: Job, outcome: Mapping[str, Any]) -> None:
        key = job.key(self._recipe)
        line = {"key": key, "row": job.row.label, "share": job.share, "seed": job.seed, **outcome}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if not outcome["error"]:
            self.runs[key] = line
