"""The picture of a search: accuracy over FLOPs or latency.

`picture_of` decides what is drawn; `write_png` draws it with matplotlib, `search.reporting.page.report` with plotly.
`write_fronts_png` draws the fronts of several searches.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.trial import TrialResult
from search.reporting.fronts import NamedRun, common_axis, common_score, dense_cost, front_along
from search.reporting.page.colours import DENSE, FRONT, GREY, LIMIT, PALETTE
from search.reporting.wording import plural
from search.results.pareto import FLOPS, LATENCY, measured, objectives
from search.results.result import SearchResult
from spaces.budget import Budget

MARKERS = "osD^vP"  # of the fronts of several searches
_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
_FLOPS_UNITS = ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs"), (1.0, "FLOPs"))
Coordinates = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Axis:
    """The logarithmic cost axis; a cost in FLOPs or seconds is divided by `factor`, everything else is in the unit."""

    quantity: str
    factor: float
    unit: str
    ticks: tuple[float, ...]
    low: float
    high: float

    @property
    def title(self) -> str:
        """The text below the axis."""
        quantity = "measured latency" if self.quantity == LATENCY else "cost of one image"
        return f"{quantity} ({self.unit}, log scale)"

    def coordinates(self, networks: Sequence[TrialResult]) -> Coordinates:
        """Return the costs and the accuracies of networks as they are drawn."""
        found = [objectives(network, self.quantity) for network in networks]
        return tuple(cost / self.factor for cost, _ in found), tuple(100 * accuracy for _, accuracy in found)


@dataclass(frozen=True)
class Series:
    """Networks that are drawn alike; intermediate networks are smaller."""

    name: str
    colour: str
    hollow: bool
    networks: tuple[TrialResult, ...]
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def sizes(self, own: int, intermediate: int) -> list[int]:
        """Return the size of every mark."""
        return [intermediate if network.intermediate_index else own for network in self.networks]


@dataclass(frozen=True)
class Picture:
    """Everything that is drawn: costs in the unit of the axis, accuracies in per cent.

    Attributes:
        accuracies: the visible range.
        series: one per method of the searched networks, and one of the baselines.
        steps: corners of the best accuracy that fits, up to the budget: the members of the front, and the end.
        dense: the dense network; its cost is None where its latency reading was refused.
        limits: (position, label) of the budgets and targets on the axis.
        below: number of networks below the visible range.
    """

    title: str
    axis: Axis
    accuracies: tuple[float, float]
    series: tuple[Series, ...]
    steps: Coordinates
    dense: tuple[float | None, float]
    limits: tuple[tuple[float, str], ...]
    below: int
    score_name: str


def picture_of(result: SearchResult) -> Picture:
    """Decide what is drawn of a search: every measured network, intermediate ones and those above the budget too.

    Along a latency axis only networks with a reading have a place.
    """
    networks = [network for trial in result.results for network in trial.networks if measured(network)]
    dense: float | None = result.dense.cost.flops
    if result.axis == LATENCY:
        networks = [network for network in networks if network.timed is not None]
        readings = result.latency.get("dense", ())
        dense = readings[0]["seconds"] if readings else None
    costs = [objectives(network, result.axis)[0] for network in networks]
    axis = _axis(result.axis, costs if dense is None else [*costs, dense])
    budgets = _limits(result.budgets, axis, "budget")
    targets = _limits([target for target in result.targets if target not in result.budgets], axis, "target")
    end = min([position for position, _ in budgets], default=(dense or 0.0) / axis.factor)
    xs, ys = axis.coordinates(result.front.members)
    dense_accuracy = 100 * result.dense.val_accuracy
    drawn = [dense_accuracy, *axis.coordinates(networks)[1]]
    # The front and the dense network fill the range of accuracies; far outliers stay outside.
    shown = [dense_accuracy, *ys]
    span = max(max(shown) - min(shown), 2.0)
    low = max(min(drawn), min(shown) - 1.5 * span) - 0.08 * span
    cost, images = "FLOPs" if result.axis == FLOPS else "latency", result.config.get("data", {}).get("name", "")
    return Picture(
        title=f"{result.network} on {images}: {result.score_name} over {cost}",
        axis=axis,
        accuracies=(low, max(drawn) + 0.12 * span),
        series=tuple(_series(networks, axis)),
        steps=((*xs, max(end, xs[-1])), (*ys, ys[-1])) if xs else ((), ()),
        dense=(None if dense is None else dense / axis.factor, dense_accuracy),
        limits=(*budgets, *targets),
        below=sum(accuracy < low for accuracy in drawn),
        score_name=result.score_name,
    )


def _axis(quantity: str, costs: Sequence[float]) -> Axis:
    """Choose unit, range and round ticks."""
    low, high = min(costs, default=1e-3), max(costs, default=1e-3)
    factor, unit = next((scale for scale in _FLOPS_UNITS if high >= scale[0]), _FLOPS_UNITS[-1])
    if quantity == LATENCY:
        factor, unit = 1e-3, "ms"
    margin = max((high / low) ** 0.08, 1.1)
    low, high = low / factor / margin, high / factor * margin
    return Axis(quantity, factor, unit, _ticks(low, high), low, high)


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Return at least four round numbers in a logarithmic range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = tuple(step * 10.0**decade for decade in decades for step in steps)
        ticks = tuple(tick for tick in ticks if low <= tick <= high)
        if len(ticks) >= 4:
            return ticks
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 3)
    return tuple(step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _series(networks: Sequence[TrialResult], axis: Axis) -> Iterator[Series]:
    searched = [network for network in networks if not network.trial.baseline]
    for index, method in enumerate(sorted({network.trial.method for network in searched})):
        own = tuple(network for network in searched if network.trial.method == method)
        small = "; small: intermediate" if any(network.intermediate_index for network in own) else ""
        colour = PALETTE[index % len(PALETTE)]
        yield Series(f"{method} (searched{small})", colour, False, own, *axis.coordinates(own))
    baselines = tuple(network for network in networks if network.trial.baseline)
    if baselines:
        yield Series("baselines", GREY, True, baselines, *axis.coordinates(baselines))


def _limits(budgets: Sequence[Budget], axis: Axis, kind: str) -> list[tuple[float, str]]:
    """Return (position, label) of the budgets that limit the cost on the axis."""
    positions = [budget.limit / axis.factor for budget in budgets if budget.quantity == axis.quantity]
    return [(position, f"{kind} {position:.4g} {axis.unit}") for position in positions]


def write_png(result: SearchResult, path: Path) -> None:
    """Draw the picture."""
    picture = picture_of(result)
    axes = _make_axes(picture.axis, picture.title, picture.score_name)
    axes.set_ylim(picture.accuracies)
    for drawn in picture.series:
        face, marker = ("none", "s") if drawn.hollow else (drawn.colour, "o")
        marks = axes.scatter(drawn.xs, drawn.ys, s=drawn.sizes(34, 9), label=drawn.name, zorder=3, marker=marker)
        marks.set(facecolors=face, edgecolors=drawn.colour)
    xs, ys = picture.steps
    if xs:
        axes.step(xs, ys, where="post", color=FRONT, linewidth=1.4, label="Pareto front", zorder=2)
        axes.scatter(xs[:-1], ys[:-1], s=95, facecolors="none", edgecolors=FRONT, linewidths=1.2, zorder=4)
    if (cost := picture.dense[0]) is not None:
        axes.scatter(cost, picture.dense[1], s=150, marker="*", color=DENSE, label="dense network", zorder=5)
    for position, label in picture.limits:
        axes.axvline(position, color=LIMIT, linestyle="--", linewidth=1.2, label=label, zorder=1)
    if picture.below:
        note = f"{plural(picture.below, 'network')} below this range"
        axes.text(0.01, 0.015, note, transform=axes.transAxes, color=GREY, fontsize=8)
    _save(axes, path)


def write_fronts_png(runs: Sequence[NamedRun], path: Path) -> None:
    """Draw the fronts of several searches and their dense networks on one picture.

    Raises:
        OSError: the file cannot be written.
    """
    quantity = common_axis(runs)
    fronts = [front_along(run, quantity).members for run in runs]
    costs = [objectives(member, quantity)[0] for members in fronts for member in members]
    dense = [dense_cost(run.result, quantity) for run in runs]
    axis = _axis(quantity, [*costs, *(cost for cost in dense if cost is not None)])
    score = common_score(runs)
    title = f"{len(runs)} searches: {score} over {'FLOPs' if quantity == FLOPS else 'latency'}"
    axes = _make_axes(axis, title, score)
    for index, (run, members, cost) in enumerate(zip(runs, fronts, dense, strict=True)):
        xs, ys = axis.coordinates(members)
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        axes.step(xs, ys, where="post", color=colour, marker=marker, markersize=6, linewidth=1.4, label=run.title)
        if cost is not None:
            place = cost / axis.factor, 100 * run.result.dense.val_accuracy
            axes.scatter(*place, s=150, marker="*", color=colour, edgecolors=DENSE, zorder=5)
    axes.scatter([], [], s=150, marker="*", color="none", edgecolors=DENSE, label="dense networks")
    _save(axes, path)


def _make_axes(axis: Axis, title: str, score_name: str) -> Any:
    """Return the axes of a new figure, with the cost axis and the labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", xlim=(axis.low, axis.high), xlabel=axis.title, axisbelow=True)
    axes.set_ylabel(f"validation {score_name} (%)")
    axes.set_xticks(axis.ticks, [f"{tick:g}" for tick in axis.ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _save(axes: Any, path: Path) -> None:
    """Write the figure of these axes with its legend below them."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=9)
    axes.figure.savefig(path)
