"""The model card of an exported network: what it is, how good, measured how, and how to load each of its files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning.export import WrittenFile
from pruning.quantization.static import INT8_FILE
from runners.latency.meter import Reading
from runners.trial import TrialResult
from search.reporting.latency import readings
from search.reporting.wording import milliseconds, percent, plural
from search.results.comparison import reached_on_test
from search.results.int8 import Int8
from search.results.result import SearchResult
from spaces.files import write_atomically

CARD = "model_card.md"


def write_card(
    result: SearchResult, network: TrialResult, files: Sequence[WrittenFile], folder: Path, layers: Sequence[str] = ()
) -> Path:
    """Write the card of a network into the folder of its files, and return its path.

    Args:
        layers: kinds of its layers that are not plain ones.
    """
    from jinja2 import Environment, PackageLoader

    config, cost, trial = result.config, network.cost, network.trial
    if cost is None:
        raise ValueError(f"network {network.label} has no cost to write on its card")
    loader = PackageLoader("search.finalization", "")
    template = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    of_dense = percent(cost.flops / result.dense.cost.flops, 1)
    text = template.get_template("model_card.md.j2").render(
        title=f"{result.network} at {of_dense} of its FLOPs: network {network.label}",
        model=result.network,
        score=result.score_name,
        method=f"method {trial.method}"
        + (f", {trial.baseline} widths (a baseline of the search)" if trial.baseline else ""),
        origin=f"cut from network {trial.parent} of the search" if trial.parent else "cut from the dense network",
        cost=cost,
        dense=result.dense,
        of_dense=of_dense,
        in_bytes=[
            (
                "activations of one image, bytes at most",
                _amount(cost.activations),
                _amount(result.dense.cost.activations),
            ),
            ("size on disk, bytes", _amount(cost.size), _amount(result.dense.cost.size)),
        ],
        after_search="made by the final training"
        if network.searched_accuracy is None
        else percent(network.searched_accuracy),
        after_final=percent(network.accuracy) if network.final_epochs else "not trained on",
        test=reached_on_test(network),
        dense_val=percent(result.dense.val_accuracy),
        dense_test=percent(result.dense.test_accuracy),
        budgets="; ".join(f"at most {budget}" for budget in result.budgets),
        data=config.get("data", {}).get("name"),
        shape=", ".join(map(str, result.space["input_shape"])),
        val_images=result.val_images or "an unknown number of",
        seed=config.get("seed"),
        trial_seed=trial.seed,
        training=_training(network),
        latency=[*_latency(result, network)],
        int8=result.int8.get(network.label),
        int8_rows=[*_int8(result.int8.get(network.label))],
        int8_file=INT8_FILE,
        files=files,
        layers=layers,
        widths=[*_widths(result, network)],
    )
    path = folder / CARD
    write_atomically(path, text.encode())
    return path


def _amount(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _training(network: TrialResult) -> str:
    if network.trained is None:
        return "none was recorded"
    text = plural(network.trained, "epoch")
    return f"{text}, {network.final_epochs} of them in the final training" if network.final_epochs else text


def _latency(result: SearchResult, network: TrialResult) -> Iterator[tuple[str, ...]]:
    for reading in readings(result, network.label):
        conditions = reading.conditions
        device = f"{conditions.device} ({conditions.device_name})"
        form = f"{conditions.engine}, {conditions.dtype}" + (", channels_last" if conditions.channels_last else "")
        yield (str(conditions.batch), *_figures(reading), f"{device}, {plural(conditions.threads, 'thread')}, {form}")


def _figures(reading: Reading) -> tuple[str, str, str]:
    if reading.seconds is None or reading.low is None or reading.high is None:
        return f"refused: {reading.refused}", "-", "-"
    interval = f"{milliseconds(reading.low)} to {milliseconds(reading.high)}"
    return milliseconds(reading.seconds), interval, percent(reading.ratio, 1)


def _int8(int8: Int8 | None) -> Iterator[tuple[str, str, str]]:
    if int8 is None or int8.refused:
        return
    yield "bytes", f"{int8.bytes:,}", f"{int8.float_bytes:,}"
    yield "validation", percent(int8.val_accuracy), percent(int8.float_val_accuracy)
    yield "test", percent(int8.test_accuracy), percent(int8.float_test_accuracy)
    if int8.seconds is None or int8.low is None or int8.high is None or int8.float_seconds is None:
        yield "ms", int8.untimed, "-"
    else:
        interval = f"{milliseconds(int8.low)} to {milliseconds(int8.high)}"
        own = f"{milliseconds(int8.seconds)} (95% interval {interval})"
        yield f"ms on {int8.conditions}", own, milliseconds(int8.float_seconds)


def _widths(result: SearchResult, network: TrialResult) -> Iterator[tuple[str, ...]]:
    widths = {} if network.widths is None else dict(network.widths)
    for group in result.space.get("groups", ()):
        if group["group"] in widths:
            layers = ", ".join(group.get("layers", ()))
            yield group["group"], layers, str(group["width"]), str(widths[group["group"]])
