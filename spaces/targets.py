"""Targets: several budgets that one search answers, written as `0.1,0.3,0.5gflops`, `8,20,50%`, or `20,50%params`."""

import re
from collections.abc import Sequence

from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace

_UNIT = re.compile(r"%?-?[a-z]*$")
_EXAMPLES = "0.1,0.3,0.5gflops, 8,20,50% or 20,50%params"


def parse_targets(text: str) -> tuple[Budget, ...]:
    """Read targets and return them largest first; a number without unit takes the unit of the last one.

    An empty text gives no targets.

    Raises:
        BudgetError: a text without any target, a target that is no budget on flops or params, targets on both
            quantities, shares of the dense network mixed with counts, or a repeated target.
    """
    if not text.strip():
        return ()
    pieces = [piece.strip().lower() for piece in text.split(",") if piece.strip()]
    if not pieces:
        raise BudgetError(f"--targets {text!r} names no budget; write them as in {_EXAMPLES}")
    found = _UNIT.search(pieces[-1])
    unit = found[0] if found else ""
    try:
        targets = [Budget.parse(piece if _UNIT.search(piece)[0] else piece + unit) for piece in pieces]  # type: ignore[index]
    except BudgetError as error:
        raise BudgetError(f"--targets {text!r}: {error}") from error
    _check_kind(text, targets)
    return tuple(sorted(targets, key=lambda target: -target.limit))


def with_targets(budgets: Sequence[Budget], targets: Sequence[Budget]) -> tuple[Budget, ...]:
    """Add the largest target to the budgets, unless a budget limits its quantity already."""
    limited = {budget.quantity for budget in budgets}
    largest = [target for target in targets[:1] if target.quantity not in limited]
    return (*largest, *budgets)


def absolute_targets(targets: Sequence[Budget], budgets: Sequence[Budget], space: SearchSpace) -> tuple[Budget, ...]:
    """Return the targets as absolute budgets, the largest first.

    Args:
        targets: as returned by `parse_targets`.
        budgets: the absolute budgets of the whole search.

    Raises:
        BudgetError: a target above the dense network, the largest network of the space or a budget; a target under
            the smallest network; or two targets that resolve to the same count.
    """
    resolved = tuple(target.resolve(space.dense_cost) for target in targets)
    for target in resolved:
        _check_reach(target, budgets, space)
    if len({target.limit for target in resolved}) < len(resolved):
        raise BudgetError(f"targets {_names(targets)} are not all different on this network; keep one of each")
    return resolved


def _check_kind(text: str, targets: Sequence[Budget]) -> None:
    for target in targets:
        if target.quantity not in ("flops", "params"):
            raise BudgetError(
                f"--targets {text!r} has {target}, and targets limit flops or params, which are met exactly; "
                "give that one with --budget"
            )
    if len({(target.quantity, target.relative) for target in targets}) > 1:
        raise BudgetError(
            f"--targets {text!r} mixes {_names(targets)}; give all in one unit, as in {_EXAMPLES}, "
            "and a limit on another quantity with --budget"
        )
    if len(set(targets)) < len(targets):
        raise BudgetError(f"--targets {text!r} names one budget twice; keep one")


def _check_reach(target: Budget, budgets: Sequence[Budget], space: SearchSpace) -> None:
    dense, largest, least = (
        getattr(cost, target.quantity) for cost in (space.dense_cost, space.cost(space.largest), space.smallest_cost)
    )
    if target.limit > dense:
        raise BudgetError(
            f"target {target} is above the dense network, which has {dense:,} {target.quantity}; lower it"
        )
    if target.limit > largest < dense:
        raise BudgetError(
            f"target {target} is above the largest network that --bound allows, which has {largest:,} "
            f"{target.quantity}; lower it or widen the bounds"
        )
    for budget in budgets:
        if budget.quantity == target.quantity and target.limit > budget.limit:
            raise BudgetError(
                f"target {target} is above the budget {budget}; lower it, or leave that --budget away: "
                "the largest target is the budget then"
            )
    if target.limit < least:
        raise BudgetError(
            f"target {target} is under the smallest network of this space, which has {least:,} {target.quantity}; "
            "raise it, or allow narrower networks with --floor or --divisor"
        )


def _names(targets: Sequence[Budget]) -> str:
    return ", ".join(str(target) for target in targets)
