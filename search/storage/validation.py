"""Checks of a result before it is recorded."""

from collections.abc import Sequence
from dataclasses import replace

from runners.trial import TrialResult, TrialState
from search.results.pareto import affordable, measured
from spaces.budget import Budget


def validate(result: TrialResult, budgets: Sequence[Budget]) -> TrialResult:
    """Return the result; as failed, with the reason, without a finite accuracy or a cost, or over a budget.

    Args:
        budgets: absolute; a latency budget is not checked, since latency is measured later.
    """
    if result.state is TrialState.FAILED:
        return result if result.error else replace(result, error="failed without a reason")
    if not measured(result) or result.cost is None:
        error = f"accuracy {result.accuracy} is not finite" if result.cost else "no cost was measured"
        return replace(result, state=TrialState.FAILED, accuracy=None, error=error)
    for budget in budgets:
        if budget.quantity != "latency" and not budget.allows(result.cost):
            cost = getattr(result.cost, budget.quantity)
            amount = "unknown" if cost is None else f"{cost:,}"
            error = f"the network has {amount} {budget.unit}, over the budget of {budget}"
            return replace(result, state=TrialState.FAILED, error=error)
    return result


def drop_checkpoints(result: TrialResult, budgets: Sequence[Budget]) -> TrialResult:
    """Drop the weights of networks over a budget, which no front can have."""
    useful = {network.label for network in affordable([result], budgets)}
    return result.with_checkpoints({label: weights for label, weights in result.checkpoints.items() if label in useful})
