"""Intermediate networks: which of the networks that a method makes before its goal are measured.

A measurement takes a forward pass over the validation images and over the 512 images on which BatchNorm is
re-estimated; training takes the time of about three forward passes per image. With the default share of validation
images, a measurement of the dense network takes 9% of an epoch of CIFAR-10 and 12% of an epoch of 4,800 images, and
that of a narrower network takes less. The published schedule of AOFP on the 27 layers of a ResNet-56 may narrow the
network every 37 batches of 64, which take less time than one measurement. So the number of measurements is bounded by
the epochs of the trial, not by the number of networks: two per epoch add about a fifth to the training, and `MOST` of
them show the trade-off between cost and accuracy well.
"""

import math
from collections.abc import Sequence

from pruning.base import Goal, Snapshot
from spaces.cost import Cost
from spaces.space import SearchSpace

PER_EPOCH = 2  # intermediate networks per epoch of the trial
MOST = 8  # per trial; each takes the memory and the disk space of a network, and one digit can number them


def promised_cost(snapshot: Snapshot, space: SearchSpace) -> Cost:
    """Return the cost that a snapshot states for its network."""
    return snapshot.cost or space.cost(snapshot.widths)


def short_of(goal: Goal, snapshot: Snapshot, space: SearchSpace) -> str:
    """Return why the stated widths and cost of a snapshot do not meet the goal; empty if they do."""
    if goal.widths is not None:
        wanted, found = space.full | goal.widths, space.full | snapshot.widths
        for name, width in wanted.items():
            if found[name] != width:
                return f"has {found[name]} channels of {name!r} where {width} were asked for"
    cost = promised_cost(snapshot, space)
    for budget in goal.budgets:
        absolute = budget.resolve(space.dense_cost)
        if absolute.quantity != "latency" and not absolute.allows(cost):
            count = getattr(cost, absolute.quantity)
            return f"has {'unknown' if count is None else f'{count:,}'} {absolute.unit} and must stay within {absolute}"
    return ""


class IntermediateSelector:
    """Selects intermediate networks that lie evenly in log cost between the dense network and the goal.

    The range of log cost is divided into equal parts, and the first network beyond the end of each part but the last is
    selected. So at most `MOST` are selected, none of them close to the dense network, and no network has to be kept
    that is dropped later.

    Args:
        epochs: of the trial.
        earlier: costs of the networks that an earlier attempt of the trial has selected.
    """

    def __init__(self, goal: Goal, space: SearchSpace, epochs: int, earlier: Sequence[Cost] = ()) -> None:
        self._dense = space.dense_cost
        if goal.widths is not None:
            limits = [("flops", float(space.cost(goal.widths).flops))]
        else:
            budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
            limits = [(budget.quantity, budget.limit) for budget in budgets if budget.quantity != "latency"]
        lengths = {quantity: math.log(getattr(self._dense, quantity) / limit) for quantity, limit in limits}
        self._lengths = {quantity: length for quantity, length in lengths.items() if length > 0}
        self._parts = 1 + min(MOST, PER_EPOCH * epochs)
        self._part = max((self._part_of(cost) for cost in earlier), default=0)  # of the last network selected

    def selects(self, cost: Cost) -> bool:
        """Return whether to measure the next network, which has this cost."""
        part = self._part_of(cost)
        if part <= self._part:
            return False
        self._part = part
        return True

    def _part_of(self, cost: Cost) -> int:
        return min(int(self._parts * self._covered(cost)), self._parts - 1)

    def _covered(self, cost: Cost) -> float:
        """Return the fraction of the range of log cost above this cost; the smallest one of several budgets."""
        fractions = (math.log(getattr(self._dense, q) / getattr(cost, q)) / n for q, n in self._lengths.items())
        return min(fractions, default=0.0)
