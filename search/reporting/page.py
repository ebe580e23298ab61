"""The interactive page of a search: one HTML file with picture and tables that needs no network."""

from collections.abc import Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

from search.reporting.final_training import final_training_statements, final_training_table
from search.reporting.latency import latency_heads, latency_statements
from search.reporting.picture import ACCURACY, DENSE, FRONT, LIMIT, Coordinates, Picture, picture_of
from search.reporting.rows import NetworkRow, dense_row, front_rows, network_row, quantised, rank_correlation_table
from search.reporting.statements import (
    baseline_statements,
    dense_statement,
    ending,
    rung_statements,
    screening_statements,
)
from search.reporting.targets import target_statements, targets_table
from search.reporting.wording import counts
from search.results.result import SearchResult

WIDTHS_SHOWN = 24  # in a hover box; more would not fit on a screen


def write_html(result: SearchResult, path: Path) -> None:
    """Write the interactive picture, the tables and the statements as one file, with plotly.js in it."""
    from jinja2 import Environment, PackageLoader

    picture, rows = picture_of(result), front_rows(result)
    statements = [ending(result), result.baseline_comparison.statement, *target_statements(result)]
    statements.append(dense_statement(result.dense.learning_curve))
    template = Environment(loader=PackageLoader("search.reporting", ""), autoescape=True, trim_blocks=True)
    text = template.get_template("report.html.j2").render(
        title=picture.title,
        statements=[*filter(None, statements), *(f"{text}." for text in latency_statements(result))],
        chart=_chart(result, picture).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False}),
        targets=targets_table(result),
        final_training=final_training_table(result),
        networks=rows,
        latency_heads=latency_heads(result),
        sized=quantised(rows),
        notes=[
            *final_training_statements(result),
            *rung_statements(result),
            *screening_statements(result),
            *baseline_statements(result),
        ],
        correlations=rank_correlation_table(result),
    )
    path.write_text(text, encoding="utf-8")


def hover_text(row: NetworkRow) -> str:
    """Describe a network for its hover box: name, numbers, and widths before and after."""
    head = f"<b>trial {row.label}</b>, {escape(row.method_name)}" if row.label else "<b>dense network</b>"
    on_test = "" if row.test == "-" else f", test {row.test}"
    lines = [head, counts(row.cost), f"validation {row.validation}{on_test}"]
    lines += [f"fine-tuned with {row.training}"] if row.training else []
    shown = [escape(change) for change in row.width_changes[:WIDTHS_SHOWN]]
    lines += [", ".join(shown[start : start + 3]) for start in range(0, len(shown), 3)]
    if len(row.width_changes) > WIDTHS_SHOWN:
        lines.append(f"and {len(row.width_changes) - WIDTHS_SHOWN} more groups")
    return "<br>".join(lines)


def _chart(result: SearchResult, picture: Picture) -> Any:
    """Draw the picture with plotly."""
    from plotly import graph_objects

    axis = picture.axis
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]

    def add_line(name: str, xs: Sequence[float], ys: Sequence[float], **line: Any) -> None:
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name=name, hoverinfo="skip")

    def add_marks(name: str, place: Coordinates, rows: Sequence[NetworkRow], **marker: Any) -> None:
        (xs, ys), texts, hover = place, [hover_text(row) for row in rows], "%{text}<extra></extra>"
        figure.add_scatter(x=xs, y=ys, mode="markers", name=name, marker=marker, text=texts, hovertemplate=hover)

    for position, label in picture.limits:
        add_line(label, [position] * 2, picture.accuracies, color=LIMIT, dash="dash", width=1.5)
    xs, ys = picture.steps
    if xs:
        add_line("Pareto front", xs, ys, shape="hv", color=FRONT, width=2)
        ring = {"size": 17, "color": FRONT, "symbol": "circle-open", "line": {"width": 1.5}}
        figure.add_scatter(x=xs[:-1], y=ys[:-1], mode="markers", marker=ring, showlegend=False, hoverinfo="skip")
    for drawn in picture.series:
        rows = [network_row(result, network) for network in drawn.networks]
        style = {
            "size": drawn.sizes(10, 5),
            "color": drawn.colour,
            "symbol": "square-open" if drawn.hollow else "circle",
        }
        add_marks(drawn.name, (drawn.xs, drawn.ys), rows, **style)
    cost, accuracy = picture.dense
    place = (() if cost is None else (cost,), (accuracy,))
    add_marks("dense network", place, [dense_row(result)], size=15, color=DENSE, symbol="star")
    ticks = {"tickvals": axis.ticks, "ticktext": [f"{tick:g}" for tick in axis.ticks]}
    figure.update_xaxes(type="log", title=axis.title, range=[log10(axis.low), log10(axis.high)], **ticks)
    figure.update_yaxes(title=ACCURACY, range=picture.accuracies)
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        legend={"orientation": "h", "y": -0.16, "x": 0},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 12}},
    )
    return figure
