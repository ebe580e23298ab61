"""The interactive page of a search: one HTML file with picture and tables that needs no network."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.loading import command_line
from search.reporting.final_training import final_training_statements, final_training_table
from search.reporting.latency import latency_heads, latency_statements
from search.reporting.page.charts import baseline_chart, curves_chart, latency_chart, styled
from search.reporting.page.colours import DENSE, FRONT, LIMIT
from search.reporting.page.int8 import int8_statements, int8_table
from search.reporting.page.packing import packed
from search.reporting.page.shapes import network_shapes
from search.reporting.page.trials import HEADS, PER_PAGE, packed_rows, trial_rows
from search.reporting.picture import Coordinates, Picture, Series, picture_of
from search.reporting.rows import (
    NetworkRow,
    byte_cells,
    byte_heads,
    dense_row,
    front_rows,
    network_row,
    quantised,
    rank_correlation_table,
)
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
# With more networks on the picture the hover boxes of those that are in no table have no widths: of 10,000 networks
# with 37 groups they would be 7 MB.
DESCRIBED = 1000


def write_html(result: SearchResult, path: Path) -> None:
    """Write the interactive picture, the tables and the statements as one file, with plotly.js in it."""
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    picture, rows = picture_of(result), front_rows(result)
    statements = [ending(result), *target_statements(result)]
    statements.append(dense_statement(result.dense.learning_curve))
    template = Environment(loader=PackageLoader("search.reporting.page", ""), autoescape=True, trim_blocks=True)
    text = template.get_template("report.html.j2").render(
        score=result.score_name,
        title=picture.title,
        statements=[*filter(None, statements), *(f"{text}." for text in latency_statements(result))],
        library=packed(get_plotlyjs()),  # type: ignore[no-untyped-call]
        **_charts(result, picture),
        comparison=result.baseline_comparison.statement,
        shapes=network_shapes(result),
        trials=packed_rows(trial_rows(result)),
        per_page=PER_PAGE,
        trial_heads=HEADS,
        command=command_line(result.config),
        settings=yaml.safe_dump(dict(result.config), sort_keys=False, allow_unicode=True),
        versions=", ".join(f"{package} {version}" for package, version in result.versions.items()),
        targets=targets_table(result),
        final_training=final_training_table(result),
        networks=rows,
        latency_heads=latency_heads(result),
        byte_heads=byte_heads(result),
        byte_cells=partial(byte_cells, result),
        sized=quantised(rows),
        notes=[
            *final_training_statements(result),
            *rung_statements(result),
            *screening_statements(result),
            *baseline_statements(result),
            *(f"{text}." for text in int8_statements(result.int8)),
        ],
        correlations=rank_correlation_table(result),
        int8=int8_table(result.int8),
    )
    path.write_text(text, encoding="utf-8")


def _charts(result: SearchResult, picture: Picture) -> dict[str, str]:
    """Return the charts of the page as JSON, by their names in the template; empty where there is nothing to draw."""
    charts = {
        "chart": _chart(result, picture),
        "latency_chart": latency_chart(result),
        "baseline_chart": baseline_chart(result),
        "curves_chart": curves_chart(result),
    }
    # In a string of JSON this is the same sign, and it ends no element of the page.
    return {name: "" if chart is None else chart.to_json().replace("<", "\\u003c") for name, chart in charts.items()}


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
    shown = {row.label for row in front_rows(result)}
    are_many = sum(len(drawn.networks) for drawn in picture.series) > DESCRIBED
    for drawn in picture.series:
        style = {"color": drawn.colour, "symbol": "square-open" if drawn.hollow else "circle"}
        described = [not are_many or drawn.hollow or network.label in shown for network in drawn.networks]
        sizes = drawn.sizes(10, 5)
        if not all(described):
            left = [index for index, is_described in enumerate(described) if not is_described]
            _add_many(figure, drawn, left, {**style, "size": [sizes[index] for index in left]}, picture)
        kept = [index for index, is_described in enumerate(described) if is_described]
        place = tuple(drawn.xs[index] for index in kept), tuple(drawn.ys[index] for index in kept)
        rows = [network_row(result, drawn.networks[index]) for index in kept]
        add_marks(drawn.name, place, rows, **style, size=[sizes[index] for index in kept])
    cost, accuracy = picture.dense
    place = (() if cost is None else (cost,), (accuracy,))
    add_marks("dense network", place, [dense_row(result)], size=15, color=DENSE, symbol="star")
    ticks = {"tickvals": axis.ticks, "ticktext": [f"{tick:g}" for tick in axis.ticks]}
    figure.update_xaxes(type="log", range=[log10(axis.low), log10(axis.high)], **ticks)
    figure.update_yaxes(range=picture.accuracies)
    figure = styled(figure, axis.title, f"validation {result.score_name} (%)")
    return figure.update_layout(height=560)


def _add_many(figure: Any, drawn: Series, indices: Sequence[int], marker: Mapping[str, Any], picture: Picture) -> None:
    """Draw networks of a series whose hover boxes have name and numbers alone, in a tenth of the bytes."""
    places = [np.array([values[index] for index in indices], dtype=np.float32) for values in (drawn.xs, drawn.ys)]
    numbers = f"%{{x:.4g}} {picture.axis.unit}<br>validation %{{y:.2f}}%"
    figure.add_scatter(
        x=places[0], y=places[1], mode="markers", name=drawn.name, marker=marker, showlegend=False,
        text=[drawn.networks[index].label for index in indices],
        hovertemplate=f"<b>trial %{{text}}</b>, {escape(drawn.name)}<br>{numbers}<extra></extra>",
    )  # fmt: skip
