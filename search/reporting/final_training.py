"""What the final training brought: every network that was trained on after the search, before and after."""

from collections.abc import Sequence

from runners.trial import TrialResult
from search.reporting.wording import TextTable, percent, plural
from search.results.comparison import reached_on_test
from search.results.result import SearchResult


def final_training_table(result: SearchResult) -> TextTable | None:
    """Tabulate the networks of the final training, the most expensive first; None without any.

    A network that is trained to the rung alone has lost to another one of its target there.
    """
    trained = finally_trained(result)
    if not trained:
        return None
    rows = []
    for network in trained:
        flops = 0 if network.cost is None else network.cost.flops
        name = f"{network.label} {network.trial.method}"
        start = f"network {network.trial.parent}" if network.trial.final else "itself"
        rows.append(
            (
                name,
                percent(flops / result.dense.cost.flops, 1),
                start,
                percent(network.searched_accuracy) if network.searched_accuracy is not None else "-",
                str(network.final_epochs),
                percent(network.accuracy),
                reached_on_test(network),
            )
        )
    columns = ("network", ">of dense", "started from", ">after search", ">epochs", ">after final", ">test")
    return TextTable(f"Final training, {result.score_name} on val and test", columns, rows)


def final_training_statements(result: SearchResult) -> list[str]:
    """Say how much training the search took in all, and how the best baselines compared at equal training."""
    trained = finally_trained(result)
    if not trained:
        return []
    final = sum(network.final_epochs for network in trained)
    lines = [
        f"Final training: {final} of {plural(result.trained_epochs, 'epoch')} of training in all; "
        f"{plural(sum(network.trial.final for network in trained), 'network')} cut from a finished one."
    ]
    for target in result.targets:
        best, baseline = result.best_at(target), _best_baseline(result, target.limit)
        if best is None or baseline is None or best.label == baseline.label:
            continue
        epochs, reached = _rungs(baseline)[-1]
        own = dict(_rungs(best)).get(epochs)
        if own is not None:
            share = percent(target.limit / getattr(result.dense.cost, target.quantity), 1)
            verdict = "ahead of" if own > reached else "behind"
            lines.append(
                f"At {share}, after equal training of {plural(epochs, 'epoch')}: network {best.label} has "
                f"{percent(own)}, {verdict} the best baseline ({_kind(baseline)}) with {percent(reached)}."
            )
    return lines


def finally_trained(result: SearchResult) -> Sequence[TrialResult]:
    """Return the networks with final training, the most expensive first."""
    trained = [network for network in result.results if network.final_epochs and network.cost is not None]
    return sorted(trained, key=lambda network: (-(network.cost.flops if network.cost else 0), network.trial.number))


def _best_baseline(result: SearchResult, limit: float) -> TrialResult | None:
    """Return the best baseline of the target with this limit, and not of a smaller one; None without."""
    quantity = result.targets[0].quantity
    lower = max([target.limit for target in result.targets if target.limit < limit], default=0.0)
    here = [
        network
        for network in result.results
        if network.trial.baseline and lower < getattr(network.cost, quantity, 0) <= limit
    ]
    return max(here, key=lambda network: network.accuracy or 0.0, default=None)


def _rungs(network: TrialResult) -> Sequence[tuple[int, float]]:
    """Return (epochs of training, accuracy) at the end of every segment, or of the whole training."""
    return network.rungs or ((network.trained or 0, network.accuracy or 0.0),)


def _kind(baseline: TrialResult) -> str:
    return f"{baseline.trial.baseline} {baseline.trial.method}"
