"""The fronts of several finished searches beside each other: which search found what, and what is best of all."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from runners.trial import TrialResult
from search.reporting.wording import TextTable, milliseconds, percent, plural, scaled
from search.results.comparison import reached_on_test
from search.results.pareto import FLOPS, LATENCY, ParetoFront, non_dominated, objectives
from search.results.result import SearchResult


@dataclass(frozen=True)
class NamedRun:
    """A finished search, and the letter that stands for it in tables and pictures."""

    letter: str
    folder: Path
    result: SearchResult

    @property
    def network(self) -> str:
        """The dense network that was searched, and its images."""
        return f"{self.result.network} on {self.result.config.get('data', {}).get('name')}"

    @property
    def title(self) -> str:
        """The run in one line, for a legend."""
        return f"{self.letter}: {self.folder.resolve().name}"


def common_axis(runs: Sequence[NamedRun]) -> str:
    """Return the cost that all fronts share: latency where every search traded that, else FLOPs."""
    return LATENCY if all(run.result.axis == LATENCY for run in runs) else FLOPS


def front_along(run: NamedRun, axis: str) -> ParetoFront:
    """Return the members of a front that are not dominated along another axis, too."""
    return ParetoFront(run.result.front.members, axis)


def runs_report(runs: Sequence[NamedRun]) -> list[RenderableType]:
    """Show what was searched, the fronts on one table, and which search contributes most to the joint front."""
    axis = common_axis(runs)
    placed = [(run, member) for run in runs for member in front_along(run, axis)]
    joint = non_dominated(placed, lambda place: objectives(place[1], axis), keep_equal=True)
    shares = Counter(run.letter for run, _ in joint)
    parts: list[RenderableType] = ["", _runs_table(runs, axis), "", _fronts_table(placed, joint, axis), ""]
    if joint:
        named = ", ".join(f"{shares[run.letter]} of {run.letter}" for run in runs)
        parts.append(f"The joint front has {plural(len(joint), 'network')}: {named}.")
    return [*parts, *_warnings(runs, axis)]


def _runs_table(runs: Sequence[NamedRun], axis: str) -> TextTable:
    references = [reference for run in runs if (reference := dense_cost(run.result, axis)) is not None]
    rows = []
    for run in runs:
        config, chosen, front = run.result.config, run.result.chosen, front_along(run, axis)
        volume = f"{front.hypervolume(max(references)):.4f}" if references else "-"
        rows.append(
            (
                run.letter,
                str(run.folder),
                run.network,
                ", ".join(config.get("budget", ())) or str(config.get("targets", "")),
                str(len(run.result.results)),
                str(config.get("seed", "")),
                percent(run.result.dense.val_accuracy),
                percent(None if chosen is None else chosen.accuracy),
                volume,
            )
        )
    heads = ("", "run", "searched", "budget", ">trials", ">seed", ">dense", ">chosen", ">hyperv.")
    return TextTable(f"Runs: {common_score(runs)} on validation, and hypervolume of the front", heads, rows)


def _fronts_table(
    placed: Sequence[tuple[NamedRun, TrialResult]], joint: Sequence[tuple[NamedRun, TrialResult]], axis: str
) -> TextTable:
    rows, styles = [], {}
    by_cost = sorted(placed, key=lambda place: (objectives(place[1], axis)[0], place[0].letter))
    for index, (run, member) in enumerate(by_cost):
        if member.cost is None:
            continue
        seconds = () if axis == FLOPS else (milliseconds(objectives(member, axis)[0]),)
        best = any(other is member for _, other in joint)
        if best:
            styles[index] = "bold"
        rows.append(
            (
                run.letter,
                *seconds,
                scaled(member.cost.flops),
                percent(member.cost.flops / run.result.dense.cost.flops, 1),
                scaled(member.cost.params),
                percent(member.accuracy),
                reached_on_test(member),
                f"{member.trial.baseline} {member.trial.method}".lstrip(),
                member.label,
                "*" if best else "",
            )
        )
    latency = () if axis == FLOPS else (">ms",)
    heads = ("", *latency, ">FLOPs", ">of dense", ">params", ">val", ">test", "method", ">network", "")
    return TextTable("Fronts, cheapest first; * is on the front of all runs together", heads, rows, styles=styles)


def common_score(runs: Sequence[NamedRun]) -> str:
    """Return the name of the score of all runs, or "score" where their tasks differ."""
    names = {run.result.score_name for run in runs}
    return names.pop() if len(names) == 1 else "score"


def dense_cost(result: SearchResult, axis: str) -> float | None:
    """Return the cost of the dense network; None where its latency was not measured."""
    if axis == FLOPS:
        return result.dense.cost.flops
    seconds: float | None = _first_reading(result).get("seconds")
    return seconds


def _warnings(runs: Sequence[NamedRun], axis: str) -> Iterator[str]:
    """Say what makes the accuracies or costs of these runs hard to compare."""

    def differ(what: Callable[[SearchResult], Any]) -> bool:
        return len({str(what(run.result)) for run in runs}) > 1

    if differ(lambda result: (result.config.get("data"), result.val_images)):
        yield f"The runs were scored on different images: their {common_score(runs)} does not compare."
    elif differ(lambda result: result.config.get("seed")):
        yield "The seeds differ, and with them the validation images: small differences say little."
    if differ(lambda result: (result.network, result.dense.cost)):
        yield "The runs searched different networks: `of dense` is of the network of each run."
    if axis == FLOPS and any(run.result.axis == LATENCY for run in runs):
        yield "Some runs traded latency and some FLOPs: all fronts are shown over FLOPs."
    if axis == LATENCY and differ(lambda result: _first_reading(result).get("conditions")):
        yield "Latency was measured on different devices or under different conditions: the costs do not compare."


def _first_reading(result: SearchResult) -> Mapping[str, Any]:
    """Return the latency reading of the dense network at the first batch size; empty where none was asked for."""
    readings: Sequence[Mapping[str, Any]] = result.latency.get("dense") or ({},)
    return readings[0]
