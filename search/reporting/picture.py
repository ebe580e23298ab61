"""The picture of a search: accuracy over FLOPs or latency.

What is drawn is decided here; drawn as PNG here, as HTML in `page`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.trial import TrialResult
from search.reporting.wording import plural
from search.results.pareto import FLOPS, LATENCY, measured, objectives
from search.results.result import UNIFORM, SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too; black and grey are kept for dense and control arm.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, FRONT, DENSE, LIMIT = "#8a8f98", "#1b1f24", "#000000", "#b42318"
_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))


@dataclass(frozen=True)
class Axis:
    """The cost axis: FLOPs or seconds are divided by `factor`; ticks and range are in the unit."""

    factor: float
    unit: str
    ticks: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Networks drawn alike; those that a trial passed on its way are smaller."""

    name: str
    colour: str
    hollow: bool
    results: tuple[TrialResult, ...]


def drawn(result: SearchResult) -> list[TrialResult]:
    """Return every measured network, those that a trial passed on its way too, also above the budget.

    Along a latency axis only those that were timed have a place.
    """
    found = [network for each in result.results for network in each.networks if measured(network)]
    return found if result.axis == FLOPS else [network for network in found if network.timed is not None]


def dense_place(result: SearchResult) -> float | None:
    """Return the dense network's cost along the axis; None where its latency reading was refused."""
    if result.axis == FLOPS:
        return result.dense.cost.flops
    readings = result.latency.get("dense", ())
    return readings[0]["seconds"] if readings else None


def cost_axis(result: SearchResult) -> Axis:
    """Choose unit, range and round ticks for the logarithmic cost axis."""
    dense = dense_place(result)
    counts = [objectives(r, result.axis)[0] for r in drawn(result)] + ([] if dense is None else [dense]) or [1e-3]
    units = ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs"), (1, "FLOPs"))
    factor, unit = next((each for each in units if max(counts) >= each[0]), units[-1])
    if result.axis == LATENCY:
        factor, unit = 1e-3, "ms"
    margin = max((max(counts) / min(counts)) ** 0.08, 1.1)
    low, high = min(counts) / factor / margin, max(counts) / factor * margin
    return Axis(factor, unit, _ticks(low, high), low, high)


def axis_title(axis: Axis) -> str:
    """Return what stands below the axis."""
    what = "measured latency" if axis.unit == "ms" else "cost of one image"
    return f"{what} ({axis.unit}, log scale)"


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Return at least four round numbers in a logarithmic range."""
    for steps in _STEPS:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = tuple(step * 10.0**decade for decade in decades for step in steps)
        ticks = tuple(tick for tick in ticks if low <= tick <= high)
        if len(ticks) >= 4:
            return ticks
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 3)
    return tuple(step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def accuracy_range(result: SearchResult) -> tuple[float, float]:
    """Choose the visible accuracies in per cent: the front and the dense net fill it, far outliers stay outside."""
    everything = [100 * objectives(r)[1] for r in drawn(result)] + [100 * result.dense.val_accuracy]
    front = [100 * objectives(r)[1] for r in result.front] + [100 * result.dense.val_accuracy]
    span = max(max(front) - min(front), 2.0)
    low = max(min(everything), min(front) - 1.5 * span)
    return low - 0.08 * span, max(everything) + 0.12 * span


def series(result: SearchResult) -> Iterator[Series]:
    """Yield one series per method that the search chose from, and one for the uniform control arm."""
    found = drawn(result)
    searched = [r for r in found if r.trial.baseline != UNIFORM]
    for index, method in enumerate(sorted({r.trial.method for r in searched})):
        own = tuple(r for r in searched if r.trial.method == method)
        small = "; small: on the way" if any(r.intermediate_index for r in own) else ""
        yield Series(f"{method} (searched{small})", PALETTE[index % len(PALETTE)], False, own)
    baselines = tuple(r for r in found if r.trial.baseline == UNIFORM)
    if baselines:
        yield Series("uniform control arm", GREY, True, baselines)


def front_steps(result: SearchResult, axis: Axis) -> tuple[list[float], list[float]]:
    """Return the corners of the best accuracy that fits, over cost in the axis' unit, up to the budget."""
    xs, ys = [], []
    for member in result.front:
        cost, accuracy = objectives(member, result.axis)
        xs.append(cost / axis.factor)
        ys.append(100 * accuracy)
    if not xs:
        return [], []
    dense = (dense_place(result) or 0.0) / axis.factor
    end = min([position for position, _ in limits(result, axis)], default=dense)
    return [*xs, max(end, xs[-1])], [*ys, ys[-1]]


def limits(result: SearchResult, axis: Axis) -> list[tuple[float, str]]:
    """Return (position, label) of every budget that the cost axis can show."""
    found = [budget.limit for budget in result.budgets if budget.quantity == result.axis]
    return [(limit / axis.factor, f"budget {limit / axis.factor:.4g} {axis.unit}") for limit in found]


def target_limits(result: SearchResult, axis: Axis) -> list[tuple[float, str]]:
    """Return (position, label) of every target that the cost axis can show and no budget does already."""
    shown = {budget.limit for budget in result.budgets if budget.quantity == result.axis}
    found = [each.limit for each in result.targets if each.quantity == result.axis and each.limit not in shown]
    return [(limit / axis.factor, f"target {limit / axis.factor:.4g} {axis.unit}") for limit in found]


def heading(result: SearchResult) -> str:
    """Return the title of the picture."""
    config: Mapping[str, Any] = result.config
    data = config.get("data", {})
    name = data.get("data", "") if isinstance(data, Mapping) else data
    cost = "latency" if result.axis == LATENCY else "FLOPs"
    return f"{config.get('model', 'network')} on {name}: accuracy over {cost}"


def write_png(result: SearchResult, path: Path) -> None:
    """Draw the trials, the front, the dense network and the budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis, (low, high) = cost_axis(result), accuracy_range(result)
    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set(xlim=(axis.low, axis.high), ylim=(low, high))
    axes.xaxis.set_major_locator(FixedLocator(list(axis.ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in axis.ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis_title(axis))
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(heading(result), loc="left", fontsize=12, fontweight="bold")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_points(axes, result, axis)
    below = sum(100 * objectives(r)[1] < low for r in drawn(result))
    if below:
        note = f"{plural(below, 'network')} below this range"
        axes.text(0.01, 0.015, note, transform=axes.transAxes, color=GREY, fontsize=8)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def _draw_points(axes: "Axes", result: SearchResult, axis: Axis) -> None:
    for each in series(result):
        xs = [objectives(r, result.axis)[0] / axis.factor for r in each.results]
        ys = [100 * objectives(r)[1] for r in each.results]
        face, marker = ("none", "s") if each.hollow else (each.colour, "o")
        sizes = [9 if r.intermediate_index else 34 for r in each.results]
        axes.scatter(xs, ys, s=sizes, marker=marker, facecolors=face, edgecolors=each.colour, label=each.name, zorder=3)
    xs, ys = front_steps(result, axis)
    if ys:
        axes.step(xs, ys, where="post", color=FRONT, linewidth=1.4, label="Pareto front", zorder=2)
        axes.scatter(xs[:-1], ys[:-1], s=95, facecolors="none", edgecolors=FRONT, linewidths=1.2, zorder=4)
    if (cost := dense_place(result)) is not None:
        place = (cost / axis.factor, 100 * result.dense.val_accuracy)
        axes.scatter(*place, s=150, marker="*", color=DENSE, label="dense network", zorder=5)
    for position, label in (*limits(result, axis), *target_limits(result, axis)):
        axes.axvline(position, color=LIMIT, linestyle="--", linewidth=1.2, label=label, zorder=1)
