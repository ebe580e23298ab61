"""Measured latency in the reports: figures beside the FLOPs, and the networks whose FLOPs fell and whose time did not.

A reading that was refused has no figures; every report says so and why. What a method has noted of its own nets stands
only where nothing was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from configs.schema import RunConfig
from runners.latency.meter import REFERENCE, Reading
from runners.trial import TrialResult
from search.reporting.wording import plural
from search.results.pareto import LATENCY, affordable
from search.results.result import SearchResult, front_table
from spaces.budget import Budget

FASTER = 0.95  # of the dense net's latency; above it a net is not called faster
GIVE_UP = 3  # readings in a row, all refused, after which the machine is taken to stay busy
STILL = 0.02  # off the idle machine; below, a correction is not worth a line
REFUSED = "refused"


def planned(config: RunConfig, budgets: Sequence[Budget], dense_seconds: float | None) -> dict[str, str]:
    """Return the row of a plan that says where latency is measured, when and what for; none where it is not.

    Args:
        dense_seconds: of the dense network, once measured.
    """
    latency = config.latency
    where = f"{latency.device}, {latency.engine}, {latency.dtype}"
    uses = ["the budget"] if any(budget.quantity == "latency" for budget in budgets) else []
    uses += ["the axis of the front"] if config.objective.endswith(LATENCY) else []
    if not uses:
        return {"latency": f"of the front, measured at the end on {where}"} if latency.measures else {}
    when = (
        f"measured on {where}, at batch {latency.batch[0]} for {' and '.join(uses)}; before any training the "
        "dense and the smallest network, and layers for a model that proposes (a minute at most, once); networks while "
        "no trial runs"
    )
    if dense_seconds is None:
        return {"latency": f"{when}. A budget under what the smallest network measures then ends the search"}
    return {"latency": f"{when}. The dense network takes {1e3 * dense_seconds:.4g} ms"}


def readings(result: SearchResult, network: str) -> tuple[Reading, ...]:
    """Return what was measured of a network, one reading per batch size.

    Args:
        network: "dense" or a label.
    """
    return tuple(Reading.from_plain(each) for each in result.latency.get(network, ()))


def figures(result: SearchResult, network: str) -> dict[str, float | str | None]:
    """Return the columns of a network in tables: per batch milliseconds, interval, ratio to dense, and why refused.

    Every network of a search has the same columns; one that was not measured has None in them.
    """
    known = {each.conditions.batch: each for each in readings(result, network)}
    columns: dict[str, float | str | None] = {}
    for batch in _batches(result):
        reading = known.get(batch)
        for name in ("seconds", "low", "high"):
            seconds = getattr(reading, name, None)
            column = f"latency_{'' if name == 'seconds' else name + '_'}ms_batch{batch}"
            columns[column] = None if seconds is None else round(1000 * seconds, 6)
        columns[f"latency_of_dense_batch{batch}"] = None if reading is None else reading.ratio
        columns[f"latency_refused_batch{batch}"] = reading.refused if reading else "not measured"
    return columns


def metrics(result: SearchResult, network: str) -> dict[str, float]:
    """Return those of `figures` that are numbers."""
    return {name: value for name, value in figures(result, network).items() if isinstance(value, float)}


def front_columns(result: SearchResult) -> dict[str, list[Any]]:
    """Return the front as columns, with the measured latencies after the rest."""
    rows = [figures(result, member.label) for member in result.reported if member.cost is not None]
    return front_table(result) | {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def heads(result: SearchResult) -> list[str]:
    """Return the titles of the columns `cells` fills."""
    return [text for batch in _batches(result) for text in (f"ms, batch {batch}", "of dense")]


def cells(result: SearchResult, network: str) -> list[str]:
    """Return a network's latency and its ratio to dense, per batch size, as text."""
    shown = []
    for reading in readings(result, network):
        shown += [_milliseconds(reading), _ratio(reading)]
    return shown or ["-"] * len(heads(result))


def latency_tables(result: SearchResult) -> list[RenderableType]:
    """Tabulate the measured latencies of dense and front beside their FLOPs; nothing where nothing was measured."""
    rows = [(REFERENCE, "100.0%")]
    for member in reversed(result.reported):
        if member.cost is not None:
            rows.append((member.label, f"{100 * member.cost.flops / result.dense.cost.flops:.1f}%"))
    batches = _batches(result)
    if not batches:
        return []
    conditions = readings(result, REFERENCE)[0].conditions
    form = ", channels_last" if conditions.channels_last else ""
    title = f"Latency on {conditions.device} ({conditions.device_name}), {conditions.engine}, {conditions.dtype}{form}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("network")
    for name in ("FLOPs of dense", "batch", "ms", "95% interval", "time of dense"):
        table.add_column(name, justify="right")
    for network, flops in rows:
        for reading in readings(result, network):
            batch = str(reading.conditions.batch)
            table.add_row(network, flops, batch, _milliseconds(reading), _interval(reading), _ratio(reading))
    return ["", table]


def latency_lines(result: SearchResult) -> list[str]:
    """Name the networks whose FLOPs fell and whose latency did not, and those whose reading was refused.

    Where nothing was measured, what methods noted of their own nets is said: those whose layers are not plain ones
    measure it themselves, since such layers need not become faster as they get narrower.
    """
    lines = [f"dense net: {_refusal(each)}" for each in readings(result, REFERENCE) if each.refused]
    lines += [*_corrected(result), *_given_up(result)]
    for member in reversed(result.reported):
        name = f"{member.trial.method} trial {member.label}"
        measured = readings(result, member.label)
        said = [_measured(each, _flops_ratio(result, member)) for each in measured] if measured else [_noted(member)]
        lines += [f"{name}: {text}" for text in said if text]
    return [*lines, *_left_out(result), *_model_lines(result)]


def _corrected(result: SearchResult) -> Iterator[str]:
    """Say by how much the machine was slower than idle, where latencies were corrected by more than a little."""
    networks = [REFERENCE, *(member.label for member in result.reported)]
    slowdowns = [
        reading.slowdown
        for network in networks
        for reading in readings(result, network)
        if reading.slowdown is not None
    ]
    if any(abs(slowdown - 1) > STILL for slowdown in slowdowns):
        yield (
            "Latencies are those of the idle machine: beside the networks the dense net took "
            f"{min(slowdowns):.2f} to {max(slowdowns):.2f} times as long, for which they are corrected"
        )


def _given_up(result: SearchResult) -> Iterator[str]:
    """Say how many networks of the front were not measured, since the machine was too busy for those before them."""
    measured = [readings(result, member.label) for member in result.reported]
    unmeasured = measured.count(())
    if unmeasured and sum(bool(read) and all(each.refused for each in read) for read in measured) >= GIVE_UP:
        yield f"{plural(unmeasured, 'network')} of the front not measured: {GIVE_UP} before in a row were refused"


def _left_out(result: SearchResult) -> Iterator[str]:
    """Say which networks their latency keeps off the front: refused, over the limit, or not measured."""
    limits = [budget.limit for budget in result.budgets if budget.quantity == "latency"]
    if not (limits or result.axis == LATENCY):
        return
    others = affordable(result.results, result.budgets)
    for each in others:
        if each.latency and each.timed is None:
            refusal = _refusal(Reading.from_plain(each.latency[0]))
            yield f"{each.trial.method} trial {each.label}: {refusal}; so it is not on the front"
    over = [each for each in others if each.timed and any(each.timed["high"] > limit for limit in limits)]
    if over:
        named = ", ".join(f"{each.label} ({1e3 * each.timed['seconds']:.4g} ms)" for each in over if each.timed)
        yield f"over the latency budget by what they measured: trial {named}"
    unmeasured = sum(not each.latency for each in others)
    if unmeasured:
        yield (
            f"{plural(unmeasured, 'network')} inside the other budgets not measured: beaten by "
            "what was, predicted far over the limit, or the search was stopped before"
        )


def _model_lines(result: SearchResult) -> Iterator[str]:
    """Say how far the latency model was off."""
    model = result.latency_model
    if not model:
        return
    built = "an earlier run built it" if model["cached"] else f"built in {model['seconds']:.0f} s"
    held_out, during = model["error"], model["during"]
    text = f"latency model, {built}: off by {_errors(held_out)} over {held_out['nets']} random networks it had not seen"
    later = f", by {_errors(during)} over {during['nets']} of the search before it learned them" if during else ""
    yield text + later


def _errors(error: Mapping[str, Any]) -> str:
    return f"{100 * error['median']:.1f}% at the median and {100 * error['upper']:.1f}% at the 90% quantile"


def _measured(reading: Reading, flops: float) -> str:
    """Say what is wrong with a reading; nothing when the network is faster, or has no fewer FLOPs."""
    if reading.ratio is None:
        return _refusal(reading)
    if flops >= 1 or reading.ratio <= FASTER:
        return ""
    batch = reading.conditions.batch
    return f"{_said(flops, reading.ratio)} at batch {batch}: fewer FLOPs, not faster on {reading.conditions.device}"


def _noted(member: TrialResult) -> str:
    ratio, flops = member.note.get("latency_ratio"), member.note.get("flops_ratio")
    if ratio is None or flops is None:
        return ""
    return _said(flops, ratio) + (": fewer FLOPs, not faster here" if flops < 1 and ratio > FASTER else "")


def _said(flops: float, ratio: float) -> str:
    return f"{100 * flops:.0f}% of the FLOPs, {ratio:.2g}x the dense latency"


def _refusal(reading: Reading) -> str:
    return (
        f"latency at batch {reading.conditions.batch} refused after {reading.tries} "
        f"{'try' if reading.tries == 1 else 'tries'}: {reading.refused}"
    )


def _flops_ratio(result: SearchResult, member: TrialResult) -> float:
    return member.cost.flops / result.dense.cost.flops if member.cost else 1.0


def _batches(result: SearchResult) -> list[int]:
    found: Mapping[int, None] = {each.conditions.batch: None for each in readings(result, REFERENCE)}
    return list(found)


def _milliseconds(reading: Reading) -> str:
    return REFUSED if reading.seconds is None else f"{1000 * reading.seconds:.4g}"


def _interval(reading: Reading) -> str:
    if reading.low is None or reading.high is None:
        return "-"
    return f"{1000 * reading.low:.4g} to {1000 * reading.high:.4g}"


def _ratio(reading: Reading) -> str:
    return "-" if reading.ratio is None else f"{100 * reading.ratio:.1f}%"
