"""The interactive page of a search: one HTML file with picture and tables that needs no network."""

from html import escape
from math import log10
from pathlib import Path
from typing import Any

from search.reporting.latency import latency_heads, latency_statements
from search.reporting.picture import DENSE, FRONT, LIMIT, Picture, picture_of
from search.reporting.rows import NetworkRow, dense_row, front_rows, network_row, quantised, rank_correlation_table
from search.reporting.statements import ending, rung_statements, screening_statements
from search.reporting.targets import target_statements, targets_table
from search.reporting.wording import counts
from search.results.result import SearchResult

WIDTHS_SHOWN = 24  # in a hover box; more would not fit on a screen


def write_html(result: SearchResult, path: Path) -> None:
    """Write the interactive picture, the tables and the statements as one file, with plotly.js in it."""
    from jinja2 import Environment, PackageLoader

    picture, rows = picture_of(result), front_rows(result)
    statements = [ending(result), result.baseline_comparison.statement, *target_statements(result)]
    template = Environment(loader=PackageLoader("search.reporting", ""), autoescape=True, trim_blocks=True)
    text = template.get_template("report.html.j2").render(
        title=picture.title,
        statements=[*filter(None, statements), *(f"{text}." for text in latency_statements(result))],
        chart=_chart(result, picture).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False}),
        targets=targets_table(result),
        networks=rows,
        latency_heads=latency_heads(result),
        sized=quantised(rows),
        notes=[*rung_statements(result), *screening_statements(result)],
        correlations=rank_correlation_table(result),
    )
    path.write_text(text, encoding="utf-8")


def hover_text(row: NetworkRow) -> str:
    """Describe a network for its hover box: name, numbers, and widths before and after."""
    head = f"<b>trial {row.label}</b>, {escape(row.method_name)}" if row.label else "<b>dense network</b>"
    on_test = "" if row.test == "-" else f", test {row.test}"
    lines = [head, counts(row.cost), f"validation {row.validation}{on_test}"]
    lines += [f"fine-tuned with {row.training}"] if row.training else []
    changes = [escape(change) for change in row.width_changes]
    shown = changes[:WIDTHS_SHOWN]
    lines += [", ".join(shown[start : start + 3]) for start in range(0, len(shown), 3)]
    if len(changes) > WIDTHS_SHOWN:
        lines.append(f"and {len(changes) - WIDTHS_SHOWN} more groups")
    return "<br>".join(lines)


def _chart(result: SearchResult, picture: Picture) -> Any:
    """Draw the picture with plotly."""
    from plotly import graph_objects

    axis = picture.axis
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]
    _add_lines(figure, picture)
    for drawn in picture.series:
        symbol = "square-open" if drawn.hollow else "circle"
        marker = {"size": drawn.sizes(10, 5), "color": drawn.colour, "symbol": symbol}
        texts = [hover_text(network_row(result, network)) for network in drawn.networks]
        _add_marks(figure, drawn.name, drawn.xs, drawn.ys, marker, texts)
    cost, accuracy = picture.dense
    star = {"size": 15, "color": DENSE, "symbol": "star"}
    _add_marks(
        figure, "dense network", [] if cost is None else [cost], [accuracy], star, [hover_text(dense_row(result))]
    )
    figure.update_xaxes(
        type="log",
        title=axis.title,
        tickvals=axis.ticks,
        ticktext=[f"{tick:g}" for tick in axis.ticks],
        range=[log10(axis.low), log10(axis.high)],
    )
    figure.update_yaxes(title="validation accuracy (%)", range=picture.accuracies)
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        legend={"orientation": "h", "y": -0.16, "x": 0},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 12}},
    )
    return figure


def _add_marks(figure: Any, name: str, xs: Any, ys: Any, marker: dict[str, Any], texts: list[str]) -> None:
    hover = "%{text}<extra></extra>"
    figure.add_scatter(x=xs, y=ys, mode="markers", name=name, marker=marker, text=texts, hovertemplate=hover)


def _add_lines(figure: Any, picture: Picture) -> None:
    """Draw budgets and targets as upright lines, and the front as steps with a ring around each member."""
    for position, label in picture.limits:
        line = {"color": LIMIT, "dash": "dash", "width": 1.5}
        ends = {"x": [position] * 2, "y": picture.accuracies}
        figure.add_scatter(**ends, mode="lines", line=line, name=label, hoverinfo="skip")
    xs, ys = picture.steps
    if xs:
        line = {"shape": "hv", "color": FRONT, "width": 2}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
        ring = {"size": 17, "color": FRONT, "symbol": "circle-open", "line": {"width": 1.5}}
        figure.add_scatter(x=xs[:-1], y=ys[:-1], mode="markers", marker=ring, showlegend=False, hoverinfo="skip")
