"""Measured latency in the reports: numbers beside the FLOPs, and sentences about networks that are not faster.

A refused reading has no numbers; every report says that it was refused, and why. The latency that a method has noted
of its own networks is reported only where nothing was measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runners.latency.meter import EXTERNAL, REFERENCE, Conditions, Reading
from runners.trial import TrialResult
from search.reporting.wording import TextTable, milliseconds, percent, plural
from search.results.pareto import LATENCY, affordable, is_unclear
from search.results.result import SearchResult

FASTER = 0.95  # of the dense network's latency; above it a network is not called faster
GIVE_UP = 3  # refused networks in a row after which the machine is taken to stay busy
STILL = 0.02  # deviation from the idle machine up to which a correction is not worth a sentence


def readings(result: SearchResult, network: str) -> tuple[Reading, ...]:
    """Return the readings of a network, "dense" or a label, one per batch size."""
    return tuple(Reading.from_plain(plain) for plain in result.latency.get(network, ()))


def latency_columns(result: SearchResult, network: str) -> dict[str, float | str | None]:
    """Return the latency columns of a network: per batch size milliseconds, interval, ratio to dense, why refused.

    Millijoules are among them where the energy of the dense network was measured.

    All networks of a search have the same columns; one that was not measured has None in them.
    """
    by_batch = {reading.conditions.batch: reading for reading in readings(result, network)}
    columns: dict[str, float | str | None] = {}
    for dense in readings(result, REFERENCE):
        batch = dense.conditions.batch
        reading = by_batch.get(batch, Reading(network, dense.conditions, "not measured"))
        for name, seconds in (("ms", reading.seconds), ("low_ms", reading.low), ("high_ms", reading.high)):
            columns[f"latency_{name}_batch{batch}"] = None if seconds is None else round(1000 * seconds, 6)
        columns[f"latency_of_dense_batch{batch}"] = reading.ratio
        if dense.millijoules is not None:
            columns[f"energy_mj_batch{batch}"] = reading.millijoules
        columns[f"latency_refused_batch{batch}"] = reading.refused
    return columns


def latency_metrics(result: SearchResult, network: str) -> dict[str, float]:
    """Return the latency columns that are numbers."""
    return {name: value for name, value in latency_columns(result, network).items() if isinstance(value, float)}


def latency_heads(result: SearchResult) -> list[str]:
    """Return the heads of `latency_cells`."""
    dense = readings(result, REFERENCE)
    return [head for reading in dense for head in (f"ms, batch {reading.conditions.batch}", "of dense")]


def latency_cells(result: SearchResult, network: str) -> list[str]:
    """Write a network's latency and its ratio to dense, per batch size."""
    cells = [cell for reading in readings(result, network) for cell in _cells(reading)[::2]]
    return cells or ["-"] * len(latency_heads(result))


def latency_table(result: SearchResult) -> TextTable | None:
    """Tabulate the measured latencies of dense and front beside their FLOPs; None where nothing was measured."""
    dense = readings(result, REFERENCE)
    if not dense:
        return None
    shares = {REFERENCE: 1.0} | {member.label: _flops_share(result, member) for member in reversed(result.reported)}
    rows = [
        (network, percent(share, 1), str(reading.conditions.batch), *_cells(reading))
        for network, share in shares.items()
        for reading in readings(result, network)
    ]
    title = f"Latency {_described(dense[0].conditions)}"
    columns = ("network", ">FLOPs of dense", ">batch", ">ms", ">95% interval", ">time of dense")
    return TextTable(title, columns, rows, spaced=True)


def _described(conditions: Conditions) -> str:
    if conditions.device == EXTERNAL:
        return f"by {conditions.device_name} (files as {conditions.engine})"
    form = ", channels_last" if conditions.channels_last else ""
    return f"on {conditions.device} ({conditions.device_name}), {conditions.engine}, {conditions.dtype}{form}"


def latency_statements(result: SearchResult) -> list[str]:
    """Name the networks with fewer FLOPs that are not faster, and the networks whose reading was refused.

    Where nothing was measured, the latency that methods have noted of their own networks is named: a method whose
    layers are no plain ones measures it itself, since such layers need not become faster as they get narrower.
    """
    lines = [f"dense net: {_refusal(reading)}" for reading in readings(result, REFERENCE) if reading.refused]
    lines += _conditions(result)
    for member in reversed(result.reported):
        name = f"{member.trial.method} trial {member.label}"
        lines += [f"{name}: {text}" for text in _not_faster(result, member)]
    return [*lines, *_left_out(result), *_model_error(result)]


def _flops_share(result: SearchResult, network: TrialResult) -> float:
    return network.cost.flops / result.dense.cost.flops if network.cost else 1.0


def _cells(reading: Reading) -> tuple[str, str, str]:
    """Write the latency in milliseconds, its interval and its ratio to dense."""
    if reading.seconds is None or reading.low is None or reading.high is None:
        return "refused", "-", "-"
    interval = f"{milliseconds(reading.low)} to {milliseconds(reading.high)}"
    return milliseconds(reading.seconds), interval, percent(reading.ratio, 1)


def _conditions(result: SearchResult) -> Iterator[str]:
    """Say by how much the machine was slower than idle, and how many networks refused readings left unmeasured."""
    measured = [readings(result, member.label) for member in result.reported]
    read = [reading for network in (readings(result, REFERENCE), *measured) for reading in network]
    slowdowns = [reading.slowdown for reading in read if reading.slowdown is not None]
    if any(abs(slowdown - 1) > STILL for slowdown in slowdowns):
        yield (
            "Latencies are those of the idle machine: beside the networks the dense net took "
            f"{min(slowdowns):.2f} to {max(slowdowns):.2f} times as long, for which they are corrected"
        )
    unsteady = [f"{reading.network} ({reading.unsteady})" for reading in read if reading.unsteady]
    if unsteady:
        yield f"unsteady, with intervals that say how much: {', '.join(unsteady)}"
    unmeasured = measured.count(())
    if unmeasured and sum(bool(read) and all(reading.refused for reading in read) for read in measured) >= GIVE_UP:
        yield f"{plural(unmeasured, 'network')} of the front not measured: {GIVE_UP} before in a row were refused"
    elif unmeasured and read:
        yield f"{plural(unmeasured, 'network')} of the front not measured: timing takes a tenth of the search's time"


def _not_faster(result: SearchResult, member: TrialResult) -> Iterator[str]:
    """Say where a network has fewer FLOPs and is not faster, or why it has no latency."""
    measured, share = readings(result, member.label), _flops_share(result, member)
    for reading in measured:
        device, batch = reading.conditions.device, reading.conditions.batch
        if reading.ratio is None:
            yield _refusal(reading)
        elif share < 1 and reading.ratio > FASTER:
            where = "there" if device == EXTERNAL else f"on {device}"
            yield f"{_saving(share, reading.ratio)} at batch {batch}: fewer FLOPs, not faster {where}"
    ratio, flops = member.note.get("latency_ratio"), member.note.get("flops_ratio")
    if not measured and ratio is not None and flops is not None:
        yield _saving(flops, ratio) + (": fewer FLOPs, not faster here" if flops < 1 and ratio > FASTER else "")


def _left_out(result: SearchResult) -> Iterator[str]:
    """Say which networks are not on the front for their latency: refused, over the limit, or not measured."""
    limits = [budget.limit for budget in result.budgets if budget.quantity == "latency"]
    if not (limits or result.axis == LATENCY):
        return
    over, unclear, unmeasured = [], [], 0
    for network in affordable(result.results, result.budgets):
        if not network.latency:
            unmeasured += 1
        elif network.timed is None:
            refusal = _refusal(Reading.from_plain(network.latency[0]))
            yield f"{network.trial.method} trial {network.label}: {refusal}; so it is not on the front"
        elif is_unclear(network, result.budgets):
            low, high = (milliseconds(network.timed[end]) for end in ("low", "high"))
            unclear.append(f"{network.label} ({low} to {high} ms)")
        elif any(network.timed["high"] > limit for limit in limits):
            over.append(f"{network.label} ({milliseconds(network.timed['seconds'])} ms)")
    if over:
        yield f"over the latency budget by what they measured: trial {', '.join(over)}"
    if unclear:
        yield f"unclear, not on the front: the limit lies in the 95% interval of trial {', '.join(unclear)}"
    if unmeasured:
        yield (
            f"{plural(unmeasured, 'network')} inside the other budgets not measured: beaten by "
            "what was, predicted far over the limit, or the search was stopped before"
        )


def _model_error(result: SearchResult) -> Iterator[str]:
    """Say how far the latency model was off."""
    model = result.latency_model
    if not model:
        return

    def off(error: Mapping[str, Any]) -> str:
        median, upper = percent(error["median"], 1), percent(error["upper"], 1)
        return f"{median} at the median and {upper} at the 90% quantile over {error['nets']}"

    built = "an earlier run built it" if model["cached"] else f"built in {model['seconds']:.0f} s"
    text = f"latency model, {built}: off by {off(model['error'])} random networks it had not seen"
    during = model["during"]
    yield text + (f", by {off(during)} of the search before it learned them" if during else "")


def _saving(flops_share: float, ratio: float) -> str:
    return f"{100 * flops_share:.0f}% of the FLOPs, {ratio:.2g}x the dense latency"


def _refusal(reading: Reading) -> str:
    tries = "try" if reading.tries == 1 else "tries"
    return f"latency at batch {reading.conditions.batch} refused after {reading.tries} {tries}: {reading.refused}"
