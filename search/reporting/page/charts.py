"""The charts of the page beside the front: accuracy over measured latency, learning curves, the best baseline."""

from collections.abc import Iterator
from typing import Any

from plotly import graph_objects

from runners.latency.meter import REFERENCE
from runners.trial import TrialResult
from search.reporting.latency import readings
from search.reporting.page.colours import DENSE, GREY, PALETTE
from search.results.comparison import baseline_text
from search.results.pareto import FLOPS
from search.results.result import SearchResult

MOST_CURVES = 60  # of trials that are not in the report; more would hide those that are


def latency_chart(result: SearchResult) -> Any:
    """Draw accuracy over measured latency with its 95% interval; None without readings, or where the front shows it."""
    if result.axis != FLOPS:
        return None
    networks = [
        (f"trial {member.label}, {member.trial.method}", member.label, member.accuracy) for member in result.reported
    ]
    rows = []
    for name, label, accuracy in [*networks, ("dense network", REFERENCE, result.dense.val_accuracy)]:
        reading = next(iter(readings(result, label)), None)
        if reading is not None and reading.seconds and reading.low and reading.high and accuracy is not None:
            rows.append((name, label, reading, accuracy))
    if not any(label != REFERENCE for _, label, _, _ in rows):
        return None
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]
    for name, label, reading, accuracy in rows:
        milliseconds = [1000 * float(value or 0) for value in (reading.seconds, reading.low, reading.high)]
        spread = {
            "type": "data",
            "array": [milliseconds[2] - milliseconds[0]],
            "arrayminus": [milliseconds[0] - milliseconds[1]],
        }
        marker = (
            {"size": 15, "color": DENSE, "symbol": "star"} if label == REFERENCE else {"size": 10, "color": PALETTE[0]}
        )
        interval = f"{milliseconds[1]:.4g} to {milliseconds[2]:.4g}"
        hover = f"{name}<br>{milliseconds[0]:.4g} ms ({interval})<br>{accuracy:.2%}<extra></extra>"
        figure.add_scatter(
            x=[milliseconds[0]], y=[100 * accuracy], error_x={"symmetric": False, **spread, "color": GREY},
            mode="markers", marker=marker, name=name, hovertemplate=hover,
        )  # fmt: skip
    conditions = rows[0][2].conditions
    title = f"measured latency (ms, batch {conditions.batch}, {conditions.device}, {conditions.engine})"
    return styled(figure, title, f"validation {result.score_name} (%)")


def curves_chart(result: SearchResult) -> Any:
    """Draw validation accuracy over epochs: dense network and networks of the report in colour, the others in grey."""
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]
    reported = {member.trial.number for member in result.reported}
    others = [trial for trial in result.results if trial.trial.number not in reported]
    for trial in others[:MOST_CURVES]:
        _add_curve(figure, trial, f"trial {trial.label}, {trial.trial.method}", color=GREY, width=1, shown=False)
    if result.dense.learning_curve is not None:
        val = result.dense.learning_curve.val
        ys = [100 * accuracy for accuracy in val]
        line = {"color": DENSE, "width": 2, "dash": "dot"}
        figure.add_scatter(x=[*range(1, len(val) + 1)], y=ys, mode="lines+markers", line=line, name="dense network")
    for index, trial in enumerate(trial for trial in result.results if trial.trial.number in reported):
        colour = PALETTE[index % len(PALETTE)]
        _add_curve(figure, trial, f"trial {trial.label}, {trial.trial.method}", color=colour, width=2, shown=True)
    return styled(figure, "epochs of training", f"validation {result.score_name} (%)") if figure.data else None


def baseline_chart(result: SearchResult) -> Any:
    """Draw the accuracies of the dense network, the best baseline and the chosen network; None without the two."""
    chosen, baseline = result.chosen, result.best_baseline
    if chosen is None or baseline is None:
        return None
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]
    names = ["dense network", f"best baseline: {baseline_text(baseline.trial)}", "chosen network"]
    validation = [result.dense.val_accuracy, baseline.accuracy, chosen.accuracy]
    test = [result.dense.test_accuracy, *(_on_test(network) for network in (baseline, chosen))]
    spread = [None, *(_spread(network) for network in (baseline, chosen))]
    for name, values, symbol, colour in (
        ("validation", validation, "circle", PALETTE[0]),
        ("test", test, "diamond", PALETTE[1]),
    ):
        errors = {"type": "data", "array": [100 * std if std else 0 for std in spread]} if name == "test" else None
        figure.add_scatter(
            x=[None if value is None else 100 * value for value in values], y=names, mode="markers", name=name,
            marker={"size": 12, "color": colour, "symbol": symbol}, error_x=errors,
        )  # fmt: skip
    figure = styled(figure, f"{result.score_name} (%)", "")
    return figure.update_layout(height=260, margin={"l": 190})


def styled(figure: Any, x_title: str, y_title: str) -> Any:
    """Give a chart the look of the page, which sets its colours to those of the light or the dark theme."""
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return figure.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8b949e", "activecolor": "#0072b2"},  # readable in both themes
        height=420,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        legend={"orientation": "h", "y": -0.2, "x": 0},
        hoverlabel={"align": "left", "font": {"size": 12}},
    )


def _add_curve(figure: Any, trial: TrialResult, name: str, *, color: str, width: int, shown: bool) -> None:
    points = [*_finite(trial)]
    if points:
        xs, ys = zip(*points, strict=True)
        line, opacity = {"color": color, "width": width}, 1.0 if shown else 0.45
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, opacity=opacity, name=name, showlegend=shown)


def _finite(trial: TrialResult) -> Iterator[tuple[int, float]]:
    return ((report.epoch, 100 * report.accuracy) for report in trial.curve if report.accuracy == report.accuracy)


def _on_test(network: TrialResult) -> float | None:
    """Return the mean over several trainings, else the one accuracy that was read."""
    confirmed = network.confirmation
    return network.test_accuracy if confirmed is None or confirmed.mean is None else confirmed.mean


def _spread(network: TrialResult) -> float | None:
    return None if network.confirmation is None else network.confirmation.std
