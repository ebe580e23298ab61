"""Parents: the trained networks that others may be cut from instead of the dense one."""

from collections.abc import Callable, Iterable

from runners.trial import TrialResult
from search.results.pareto import measured
from search.schedulers.segments import NOT_CONTINUED
from spaces.widths import Widths


def parent_for(
    widths: Widths, results: Iterable[TrialResult], cost: Callable[[TrialResult], float]
) -> TrialResult | None:
    """Return the trained network that such a network is best cut from; None where no network contains its widths.

    That is the nearest one in cost among those of final training. Without any it is the one that was trained for
    longest, and of equals the nearest.

    Args:
        cost: of a result, on the quantity that the search scales.
    """

    def rank(result: TrialResult) -> tuple[bool, int, float]:
        is_finished = result.final_epochs > 0
        return is_finished, 0 if is_finished else result.trained or 0, -cost(result)

    able = [result for result in results if can_be_cut(result) and contains(result, widths)]
    return max(able, key=rank, default=None)


def can_be_cut(result: TrialResult) -> bool:
    """Return whether a network was trained and has weights that can be read."""
    return measured(result) and bool(result.trained) and NOT_CONTINUED not in result.note


def contains(wider: TrialResult, widths: Widths | None) -> bool:
    """Return whether a narrower network of these widths can be cut from that of a result."""
    own = wider.widths
    if own is None or widths is None or dict(own) == dict(widths):
        return False
    return all(widths[name] <= own[name] for name in widths)
