"""The interactive page of a search: one HTML file with picture and table. plotly.js is inside: no network is needed."""

import html
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runners.latency.meter import REFERENCE
from runners.trial import TrialResult
from search.reporting.latency import cells, heads, latency_lines
from search.reporting.picture import (
    DENSE,
    FRONT,
    LIMIT,
    Axis,
    accuracy_range,
    axis_title,
    cost_axis,
    dense_place,
    front_steps,
    heading,
    limits,
    series,
    target_limits,
)
from search.reporting.rungs import audit_html
from search.reporting.summary import dense_widths, megabytes, quantised
from search.reporting.targets import TARGET_HEADS, target_lines, target_rows
from search.reporting.training import training_text
from search.reporting.wording import percent, scaled
from search.results.comparison import reached_on_test
from search.results.pareto import objectives
from search.results.result import SearchResult
from search.schedulers.stopping import ending
from spaces.cost import Cost

WIDTHS_SHOWN = 24  # in a hover box; more would not fit on a screen


def write_html(result: SearchResult, path: Path) -> None:
    """Write the interactive picture and the front's table as one file; plotly.js is inside it."""
    chart = _chart(result).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    latency = [f"{line}." for line in latency_lines(result)]
    statements = [ending(result), result.uniform_comparison.statement, *target_lines(result), *latency]
    text = _PAGE.format(
        title=html.escape(heading(result)),
        statement=html.escape(" ".join(filter(None, statements))),
        targets=_targets_table(result),
        chart=chart,
        timed="".join(f"<th>{html.escape(head)}</th>" for head in heads(result)),
        size="<th>MB</th>" if quantised(result) else "",
        rows="\n".join(_html_rows(result)),
        rungs=audit_html(result),
    )
    path.write_text(text, encoding="utf-8")


def _chart(result: SearchResult) -> Any:
    from plotly import graph_objects

    axis = cost_axis(result)
    accuracies = accuracy_range(result)
    figure = graph_objects.Figure()  # type: ignore[no-untyped-call]
    _add_lines(figure, result, axis, accuracies)
    for each in series(result):
        figure.add_scatter(
            x=[objectives(r, result.axis)[0] / axis.factor for r in each.results],
            y=[100 * objectives(r)[1] for r in each.results],
            mode="markers",
            name=each.name,
            marker={
                "size": [5 if r.intermediate_index else 10 for r in each.results],
                "color": each.colour,
                "symbol": "square-open" if each.hollow else "circle",
            },
            text=[hover_text(result, r) for r in each.results],
            hovertemplate="%{text}<extra></extra>",
        )
    dense, place = result.dense, dense_place(result)
    figure.add_scatter(
        x=[] if place is None else [place / axis.factor],
        y=[100 * dense.val_accuracy],
        mode="markers",
        name="dense network",
        marker={"size": 15, "color": DENSE, "symbol": "star"},
        text=[f"<b>dense network</b><br>{_figures(dense.cost, dense.val_accuracy, percent(dense.test_accuracy))}"],
        hovertemplate="%{text}<extra></extra>",
    )
    _lay_out(figure, axis, accuracies)
    return figure


def _add_lines(figure: Any, result: SearchResult, axis: Axis, accuracies: tuple[float, float]) -> None:
    """Draw budgets and targets as upright lines, and the front as steps with a ring around each member."""
    for position, label in (*limits(result, axis), *target_limits(result, axis)):
        line = {"color": LIMIT, "dash": "dash", "width": 1.5}
        figure.add_scatter(x=[position] * 2, y=accuracies, mode="lines", line=line, name=label, hoverinfo="skip")
    xs, ys = front_steps(result, axis)
    if ys:
        line = {"shape": "hv", "color": FRONT, "width": 2}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="Pareto front", hoverinfo="skip")
        ring = {"size": 17, "color": FRONT, "symbol": "circle-open", "line": {"width": 1.5}}
        figure.add_scatter(x=xs[:-1], y=ys[:-1], mode="markers", marker=ring, showlegend=False, hoverinfo="skip")


def _lay_out(figure: Any, axis: Axis, accuracies: tuple[float, float]) -> None:
    ticks = list(axis.ticks)
    figure.update_xaxes(
        type="log",
        title=axis_title(axis),
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        range=[math.log10(axis.low), math.log10(axis.high)],
    )
    figure.update_yaxes(title="validation accuracy (%)", range=list(accuracies))
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        legend={"orientation": "h", "y": -0.16, "x": 0},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 12}},
    )


def hover_text(result: SearchResult, member: TrialResult) -> str:
    """Describe a trial for the hover box: what it is, its figures, and its widths before and after."""
    trial = member.trial
    head = f"<b>trial {member.label}</b>, {html.escape(trial.method)}" + (
        f" ({trial.baseline})" if trial.baseline else ""
    )
    lines = [head, _figures(member.cost, member.accuracy, reached_on_test(member))]
    lines += [f"fine-tuned with {training_text(trial)}"] if trial.training else []
    before = dense_widths(result)
    widths = list((member.widths or {}).items())
    cells = [f"{html.escape(name)} {before.get(name, '?')}→{width}" for name, width in widths[:WIDTHS_SHOWN]]
    lines += [", ".join(cells[i : i + 3]) for i in range(0, len(cells), 3)]
    if len(widths) > WIDTHS_SHOWN:
        lines.append(f"and {len(widths) - WIDTHS_SHOWN} more groups")
    return "<br>".join(lines)


def _figures(cost: Cost | None, accuracy: float | None, test: str) -> str:
    counts = f"{scaled(cost.flops, 'FLOPs')}, {scaled(cost.params, 'params')}" if cost else "cost unknown"
    on_test = "" if test == "-" else f", test {test}"
    return f"{counts}<br>validation {percent(accuracy)}{on_test}"


def _html_rows(result: SearchResult) -> Iterator[str]:
    """Yield the table's rows: the dense network, then the front, most accurate first."""
    dense, before = result.dense, dense_widths(result)
    accuracies = (percent(dense.val_accuracy), percent(dense.test_accuracy))
    counts = (f"{dense.cost.flops:,}", "100.0%", *cells(result, REFERENCE), f"{dense.cost.params:,}")
    sized = quantised(result)
    yield _row("", "dense", *counts, *([megabytes(dense.cost)] if sized else []), *accuracies, "")
    for member in reversed(result.front.members):
        if member.cost is None:
            continue
        cost, trial = member.cost, member.trial
        widths = ", ".join(f"{name} {before.get(name, '?')}→{width}" for name, width in (member.widths or {}).items())
        yield _row(
            "chosen" if result.is_chosen(member) else "",
            f"trial {member.label}: {trial.method}"
            + (f" ({trial.baseline})" if trial.baseline else "")
            + (f", {training_text(trial)}" if trial.training else ""),
            f"{cost.flops:,}",
            percent(cost.flops / dense.cost.flops, 1),
            *cells(result, member.label),
            f"{cost.params:,}",
            *([megabytes(cost, member)] if sized else []),
            percent(member.accuracy),
            reached_on_test(member),
            widths,
        )


def _targets_table(result: SearchResult) -> str:
    """Return the answers to the targets as a table; empty when there are none."""
    if not result.targets:
        return ""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in TARGET_HEADS)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in target_rows(result))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="targets"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _row(css: str, *cells: str) -> str:
    shown = [f"<td>{html.escape(cell)}</td>" for cell in cells[:-1]]
    widths = f"<details><summary>show</summary>{html.escape(cells[-1])}</details>" if cells[-1] else ""
    return f'<tr class="{css}">{"".join(shown)}<td>{widths}</td></tr>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.35rem; margin: 0 0 .25rem; }}
p {{ margin: 0 0 1rem; color: #57606a; }}
table {{ border-collapse: collapse; width: 100%; margin: 1.2rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .35rem .7rem; border-bottom: 1px solid #e5e7eb; vertical-align: top; }}
th:first-child, td:first-child, th:last-child, td:last-child {{ text-align: left; }}
td:last-child {{ max-width: 26rem; }}
summary {{ cursor: pointer; color: #0072b2; }}
tr.chosen td {{ font-weight: 600; background: #eef7f1; }}
</style></head><body>
<h1>{title}</h1><p>{statement}</p>
{chart}
{targets}
<table><thead><tr><th>network</th><th>FLOPs</th><th>of dense</th>{timed}<th>params</th>{size}<th>validation</th>
<th>test</th><th>widths</th></tr></thead><tbody>
{rows}
</tbody></table>
{rungs}</body></html>
"""
