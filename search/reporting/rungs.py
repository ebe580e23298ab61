"""What a reader is told of rungs: how far trials were trained, and whether rungs are worth believing."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from configs.schema import RunConfig
from search.reporting.screening import screening_lines
from search.results.rank_correlation import LEAST, LEAST_TO_JUDGE, TRUSTED, RungAudit, first_rung
from search.results.result import SearchResult
from search.schedulers.asha import NOT_CONTINUED
from search.schedulers.segments import KEPT_AFTER

_UNITS = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"), (1, ""))


def rungs_text(config: RunConfig) -> str:
    """Say where trials pause; empty when they do not."""
    rungs = config.rung_epochs
    return f" at most, rungs after {', '.join(map(str, rungs[:-1]))}" if rungs else ""


def rung_lines(result: SearchResult) -> list[str]:
    """Say how many trials ended where, which of the front are not trained to the end, and what went wrong."""
    rungs = result.rungs
    if not rungs:
        return []
    climbed = [each for each in result.results if each.rungs]
    ended = Counter(each.rungs[-1][0] for each in climbed)
    spent = sum(epochs * trials for epochs, trials in ended.items())
    places = ", ".join(f"{ended[epochs]} after {epochs}" for epochs in sorted(ended))
    whole = len(climbed) * rungs[-1]
    lines = [
        f"Rungs after {_listed(rungs[:-1])} of {rungs[-1]} epochs: trials ended {places or 'nowhere'}; "
        f"{spent} epochs of training instead of {whole}."
    ]
    short = [member for member in result.front if member.rungs and (member.trained or 0) < rungs[-1]]
    if short:
        named = ", ".join(f"{member.label} ({member.trained})" for member in short)
        lines.append(f"Not trained to the end, though on the front (epochs): {named}.")
    for each in climbed:
        if NOT_CONTINUED in each.note:
            lines.append(f"Trial {each.trial.number} did not go on {each.note[NOT_CONTINUED]}.")
        if KEPT_AFTER in each.note:
            lines.append(
                f"Trial {each.trial.number} was better after {each.note[KEPT_AFTER]} epochs than after {each.trained}: "
                "that network is kept."
            )
    return [*lines, audit_statement(result.proxy_audit, rungs)]


def audit_statement(audits: Sequence[RungAudit], rungs: Sequence[int]) -> str:
    """Say from which rung on trials were judged, and why."""
    first = first_rung(audits)
    if not audits or audits[0].trials < LEAST_TO_JUDGE or audits[0].correlation is None:
        return f"Proxy audit: fewer than {LEAST_TO_JUDGE} different trials came to the end, too few to judge a rung by."
    known = ", ".join(f"{each.correlation or 0:.2f} after {each.epochs}" for each in audits)
    text = f"Proxy audit: rank correlation with the end is {known} epochs over {audits[0].trials} trials; "
    if (audits[first].correlation or 0) < TRUSTED:
        return f"{text}none reaches {TRUSTED:g}, so trials were first judged where it is highest, after {rungs[first]}."
    return f"{text}trials were first judged after {rungs[first]}, the first to reach {TRUSTED:g}."


def audit_table(result: SearchResult) -> Table | None:
    """Tabulate the rank correlation of each rung with the end of training; None where there is nothing to show."""
    rows = list(_rows(result))
    if not rows:
        return None
    title = "Proxy audit: rank correlation of a rung with the end of training, by cost (trials)"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def audit_html(result: SearchResult) -> str:
    """Return the same as an HTML table, with its lines; empty where there is nothing to show."""
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in (*rung_lines(result), *screening_lines(result)))
    rows = list(_rows(result))
    if not rows:
        return lines
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"{lines}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _rows(result: SearchResult) -> Iterator[tuple[str, ...]]:
    """Yield the head and a row per rung."""
    first = [] if result.screening_audit is None else [result.screening_audit]
    audits = [each for each in (*first, *result.proxy_audit) if each.trials]
    if not audits:
        return
    bands = [f"{_short(low)} to {_short(high)}" for low, high in (band.flops for band in audits[0].bands)]
    yield ("epochs", *bands, "within all")
    for each in audits:
        cells = [_cell(band.correlation, band.trials) for band in each.bands]
        yield (str(each.epochs) if each.epochs else "0 (before training)", *cells, _cell(each.correlation, each.trials))


def _cell(correlation: float | None, trials: int) -> str:
    """Write a correlation with its number of trials; a dash under `LEAST` of them, or where nothing varies."""
    return f"{'-' if correlation is None or trials < LEAST else f'{correlation:.2f}'} ({trials})"


def _short(flops: int) -> str:
    factor, prefix = next(unit for unit in _UNITS if flops >= unit[0] or unit[0] == 1)
    return f"{flops / factor:.3g}{prefix}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
