"""What the studies share: rows in a file, so that a study goes on where it was stopped, and tables in Markdown.

A study measures jobs. A job is a frozen dataclass, and its row is the line of a JSON-lines file that holds what was
measured. The key of a row is what determines it: the recipe of the study and the fields of the job. Rows of other
recipes stay in the file and are ignored; rows of older code are not told apart, so `--fresh` deletes the file.
"""

import argparse
import dataclasses
import datetime
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.cache import cache_root


class Rows:
    """The rows of a study, in a file that only grows.

    Args:
        path: the file; its folder is made.
        recipe: settings that all jobs share; they are part of every key.
    """

    def __init__(self, path: Path, **recipe: Any) -> None:
        self.path, self._recipe = path, recipe
        self._rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):  # the last line of a study that was killed while it wrote
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not row["values"].get("error"):
                self._rows[_canonical(row["key"])] = row["values"]

    def of(self, job: Any) -> dict[str, Any] | None:
        """Return what was measured for a job; None where it is missing or failed."""
        return self._rows.get(_canonical(self._key(job)))

    def add(self, job: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append the row of a job, and return its values as they are read back.

        A row whose values have a non-empty `error` is written too, but its job counts as missing.
        """
        row = {"key": self._key(job), "date": datetime.date.today().isoformat(), "values": values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        plain: dict[str, Any] = json.loads(json.dumps(values))
        if not plain.get("error"):
            self._rows[_canonical(row["key"])] = plain
        return plain

    def measured(self, job: Any, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the values of a job, which is measured if it has no row."""
        found = self.of(job)
        return self.add(job, measure()) if found is None else found

    def complete(
        self,
        jobs: Sequence[Any],
        measure: Callable[[Any], Mapping[str, Any]],
        *,
        processes: int,
        start: Callable[..., None] | None = None,
        shared: tuple[Any, ...] = (),
    ) -> None:
        """Measure the jobs that have no row, in processes of their own, and print a line as each one ends.

        Args:
            measure: a function of a module, which a process can import.
            start: called once in each process, with `shared`.
        """
        missing = [job for job in jobs if self.of(job) is None]
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are on file", flush=True)
        if not missing:
            return
        began = time.perf_counter()
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(min(processes, len(missing)), start, shared) as pool:
            measuring = pool.imap_unordered(_Measure(measure), missing)
            for count, (job, values) in enumerate(measuring, start=1):
                self.add(job, values)
                minutes = (time.perf_counter() - began) / 60
                outcome = f": {values['error']}" if values.get("error") else ""
                print(f"{minutes:5.1f} min {count}/{len(missing)} {job}{outcome}", flush=True)

    def _key(self, job: Any) -> dict[str, Any]:
        return {**self._recipe, **dataclasses.asdict(job)}


@dataclasses.dataclass(frozen=True)
class _Measure:
    """A function of a job that also returns the job, for results that come back in any order."""

    measure: Callable[[Any], Mapping[str, Any]]

    def __call__(self, job: Any) -> tuple[Any, Mapping[str, Any]]:
        return job, self.measure(job)


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def study_parser(name: str, description: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """Return a parser with the flags of every study: seeds, and the file of its rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first-seed", type=int, default=0)
    rows = cache_root() / "studies" / f"{name}.jsonl"
    parser.add_argument("--rows", type=Path, default=rows, help="file of finished runs; default: in the cache folder")
    parser.add_argument("--fresh", action="store_true", help="forget the runs on file")
    return parser


def seeds_of(flags: argparse.Namespace) -> range:
    return range(flags.first_seed, flags.first_seed + flags.seeds)


def rows_of(flags: argparse.Namespace, **recipe: Any) -> Rows:
    """Open the rows of a study, after deleting them for `--fresh`."""
    if flags.fresh:
        flags.rows.unlink(missing_ok=True)
    return Rows(flags.rows, **recipe)


def print_table(title: str, head: Iterable[str], lines: Iterable[Iterable[str]], seeds: Sequence[int] = ()) -> None:
    """Print a Markdown table under its title, the seeds and the date."""
    head = list(head)
    named = f"seeds {seeds[0]} to {seeds[-1]}, " if len(seeds) > 1 else f"seed {seeds[0]}, " if seeds else ""
    print(f"\n{title} ({named}{datetime.date.today().isoformat()})\n")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def spread(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """Return `mean ± standard deviation` of the scaled values; the deviation of one value is 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.fmean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def mean_and_error(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """Return `mean ± standard error` of the scaled values; one value has no error."""
    error = f" ± {scale * squared_error(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.fmean(values):.{digits}f}{error}"


def squared_error(values: Sequence[float]) -> float:
    """Return the squared standard error of the mean; 0 for one value."""
    return statistics.variance(values) / len(values) if len(values) > 1 else 0.0


def lead(ours: Sequence[float], theirs: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """Return `mean ± standard error` of the scaled differences of values that are paired by seed; one has no error."""
    differences = [scale * (own - other) for own, other in zip(ours, theirs, strict=True)]
    error = f" ± {squared_error(differences) ** 0.5:.{digits}f}" if len(differences) > 1 else ""
    return f"{statistics.fmean(differences):+.{digits}f}{error}"


def mean_of(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)
