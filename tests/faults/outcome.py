"""What is left of a search that was killed, read without the code that wrote it: files, tables and JSON."""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINES = [("di", "own"), ("di", "uniform"), ("l2", "uniform")]
NO_MORE = "no candidate left that was not tried: {found} trials instead of"  # said where a latency budget leaves few
SHOWN = re.compile(r"\d+/\d+ trial (\d+) [^:]+: ([\d.]+)%")  # the line of a finished trial


@dataclass(frozen=True)
class Record:
    """A finished trial, or a training segment of one, as it was recorded at some moment."""

    number: int
    candidate: str
    accuracy: float | None
    epochs: int
    lost: bool

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Record":
        """Read the plain data of a trial's result."""
        trial, curve, rungs = data["trial"], data["curve"], data["rungs"]
        candidate = {name: trial[name] for name in ("method", "goal", "settings", "training", "parent", "final")}
        candidate["goal"] = {"budgets": trial["goal"]["budgets"], "widths": trial["goal"]["widths"]}
        epochs = rungs[-1][0] if rungs else curve[-1]["epoch"] if curve else 0
        return cls(trial["number"], json.dumps(candidate, sort_keys=True), data["accuracy"], epochs, data["lost"])


def study_records(url: str, name: str) -> list[Record]:
    """Return what an Optuna study holds, from its tables; in the order of recording."""
    question = (
        "SELECT a.value_json FROM trial_user_attributes a JOIN trials t ON t.trial_id = a.trial_id "
        f"JOIN studies s ON s.study_id = t.study_id WHERE a.key = 'result' AND s.study_name = '{name}' "
        "ORDER BY t.trial_id"
    )
    return [Record.of(json.loads(text)) for (text,) in _rows(url, question)]


def _rows(url: str, question: str) -> list[Any]:
    if url.startswith("postgresql:"):
        import psycopg

        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.execute(question).fetchall()
    with closing(sqlite3.connect(f"file:{url}?mode=ro", uri=True, timeout=20)) as connection:
        return connection.execute(question).fetchall()


def check(
    folder: Path,
    trials: int,
    study: tuple[str, str],
    store: Path,
    seen: Iterable[Record],
    shown: str,
    formats: list[str],
) -> list[str]:
    """Return what is wrong with a search that has ended; empty where nothing is.

    Args:
        trials: how many were asked for.
        study: address of its storage, and its name there.
        store: SQLite file of MLflow.
        seen: what the study held when something was killed.
        shown: all that the search has printed.
        formats: files that every network of the front must have.
    """
    data = json.loads((folder / "result.json").read_text())
    ended = {result["trial"]["number"]: Record.of(result) for result in data["results"]}
    wrong = [*_trials(data, trials, shown), *_kept(ended, seen, shown), *_study(ended, study_records(*study))]
    wrong += [*_mlflow(data, folder, store), *_baselines(data, shown), *_front(data, folder, formats)]
    return wrong


def _trials(data: Mapping[str, Any], asked: int, shown: str) -> Iterable[str]:
    results = data["results"]
    searched = [result for result in results if not result["trial"]["final"]]
    if data["interrupted"] or data["lost"]:
        yield f"the result says interrupted={data['interrupted']}, lost={data['lost']!r}"
    exhausted = len(searched) < asked and f"{NO_MORE.format(found=len(searched))} {asked}\n" in shown
    if len(searched) != asked and not exhausted:
        yield f"{len(searched)} trials instead of {asked}"
    for what, values in (
        ("number", [result["trial"]["number"] for result in results]),
        ("candidate", [Record.of(result).candidate for result in results]),
    ):
        if doubled := [value for value, count in Counter(values).items() if count > 1]:
            yield f"{what} {doubled[0]} stands there twice"
    for result in results:
        if result["state"] == "failed":
            yield f"trial {result['trial']['number']} failed: {result['error']}"


def _kept(ended: Mapping[int, Record], seen: Iterable[Record], shown: str) -> Iterable[str]:
    for record in seen:
        now = ended.get(record.number)
        if record.lost:
            continue  # it lost its workers, and may be tried again
        if now is None or now.candidate != record.candidate:
            yield f"finished trial {record.number} is lost"
        elif now.epochs < record.epochs or (now.epochs == record.epochs and now.accuracy != record.accuracy):
            yield f"trial {record.number} had {record.accuracy} at {record.epochs} epochs, now {now}"
    best: dict[int, float] = {}
    for number, percent in SHOWN.findall(shown):
        best[int(number)] = max(best.get(int(number), 0.0), float(percent))
    for number, percent in best.items():
        if number not in ended:
            yield f"trial {number} was shown as finished and is lost"
        elif round(100 * (ended[number].accuracy or 0.0), 2) < percent:
            yield f"trial {number} was shown with {percent}%, now {ended[number].accuracy}"


def _study(ended: Mapping[int, Record], stored: list[Record]) -> Iterable[str]:
    kept = [record for record in stored if not record.lost]
    if missing := set(ended) - {record.number for record in stored}:
        yield f"the study lacks trials {sorted(missing)}"
    if unknown := {record.number for record in kept} - set(ended):
        yield f"the study has trials {sorted(unknown)} that the result lacks"
    segments = Counter((record.number, record.epochs) for record in kept)
    if doubled := [segment for segment, count in segments.items() if count > 1]:
        yield f"the study has (trial, epochs) {doubled} twice"
    latest = {record.number: record for record in kept}
    for number, record in latest.items():
        if number in ended and (record.accuracy, record.epochs) != (ended[number].accuracy, ended[number].epochs):
            yield f"the study has {record}, the result {ended[number]}"


def _mlflow(data: Mapping[str, Any], folder: Path, store: Path) -> Iterable[str]:
    tag = f"SELECT run_uuid FROM tags WHERE key = 'slimfront.run_folder' AND value = '{folder.resolve()}'"
    # A search that ended before any trial has left its parent run, and no run folder.
    parents = _rows(str(store), f"SELECT run_uuid, status FROM runs WHERE run_uuid IN ({tag}) ORDER BY start_time")
    if [status for _, status in parents][-1:] != ["FINISHED"]:
        yield f"MLflow has the parent runs {parents}"
    children = _rows(
        str(store),
        "SELECT r.name, r.status, m.value FROM runs r LEFT JOIN latest_metrics m ON m.run_uuid = r.run_uuid "
        "AND m.key = 'accuracy' WHERE r.lifecycle_stage = 'active' AND r.run_uuid IN (SELECT run_uuid FROM tags "
        f"WHERE key = 'mlflow.parentRunId' AND value IN ({tag}))",
    )
    expected = {f"trial {result['trial']['number']:04d}": result["accuracy"] for result in data["results"]}
    if sorted(name for name, *_ in children) != sorted(expected):
        yield f"MLflow has the runs {sorted(name for name, *_ in children)}"
    for name, status, accuracy in children:
        if status == "RUNNING" or accuracy != expected.get(name):
            yield f"MLflow has {name} {status} with {accuracy}, the result {expected.get(name)}"


def _baselines(data: Mapping[str, Any], shown: str) -> Iterable[str]:
    limits = [(target["quantity"], target["limit"]) for target in data["targets"]] or [("flops", float("inf"))]
    for method, widths in BASELINES:
        found = [
            result
            for result in data["results"]
            if (result["trial"]["method"], result["trial"]["baseline"]) == (method, widths)
            and result["state"] == "complete"
        ]
        for quantity, limit in limits:
            inside = [result for result in found if result["cost"][quantity] <= limit]
            if not inside and f"Missing baseline: {method} with {widths}" not in shown:
                yield f"baseline {method} with {widths} widths: none within {limit} {quantity}, and nobody says so"


def _front(data: Mapping[str, Any], folder: Path, formats: list[str]) -> Iterable[str]:
    """Load every network of the front, and count it."""
    from search import load
    from spaces.counting import count_cost

    shape = tuple(data["space"]["input_shape"])
    networks = {}
    for result in data["results"]:
        for network in (result, *result["intermediate_networks"]):
            label = str(result["trial"]["number"])
            label += f".{network['intermediate_index']}" if network["intermediate_index"] else ""
            networks[label] = network
    for label in {*data["front"], *filter(None, [data["chosen"]])}:
        number, _, index = label.partition(".")
        place = folder / "front" / (f"trial-{int(number):04d}" + (f"-p{index}" if index else ""))
        counted = count_cost(load(place, trust=True), shape)
        if counted.flops != networks[label]["cost"]["flops"]:
            yield f"network {label} has {counted.flops} FLOPs, its record {networks[label]['cost']['flops']}"
        yield from (f"{place.name} has no {name}" for name in formats if not (place / name).is_file())
    named = {network["path"] for network in networks.values() if network["path"]}
    present = {f"trials/{file.name}" for file in (folder / "trials").iterdir()}
    if named != present:
        yield f"weights: {sorted(named - present)} are missing, {sorted(present - named)} are left"
