"""What `python -m search prune` shows at its end."""

from collections.abc import Iterator

from rich.console import RenderableType

from search.library.prune_run import NetworkFigures, PruneRun
from search.reporting.wording import TextTable, percent, plural, scaled


def pruned_page(run: PruneRun) -> Iterator[RenderableType]:
    """Show the dense network and the narrow one, and where the files are; a `str` is printed unwrapped."""
    rows = [("dense", *_cells(run.dense, run.dense))]
    if run.epochs:
        rows.append((f"{run.method}, cut", *_cells(run.cut, run.dense)))
    after = f", after {plural(run.epochs, 'epoch')}" if run.epochs else ", cut"
    rows.append((f"{run.method}{after}", *_cells(run.trained, run.dense)))
    columns = ("network", ">FLOPs", ">of dense", ">params", ">val", ">test")
    yield TextTable(f"Cut once, {run.score_name} on val and test", columns, rows, parted=True)
    if run.trained.val_top5 is not None:
        yield f"Top-5: {_top5(run.trained)} (dense {_top5(run.dense)})."
    trust = ", trust=True" if run.names_code else ""
    yield f'Written to {run.folder}; search.load("{run.folder}"{trust}) gives the network.'


def _top5(figures: NetworkFigures) -> str:
    return f"{percent(figures.val_top5)} on val, {percent(figures.test_top5)} on test"


def _cells(figures: NetworkFigures, dense: NetworkFigures) -> tuple[str, ...]:
    cost = figures.cost
    share = percent(cost.flops / dense.cost.flops, 1)
    return (
        scaled(cost.flops),
        share,
        scaled(cost.params),
        percent(figures.val_accuracy),
        percent(figures.test_accuracy),
    )
