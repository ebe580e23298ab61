"""Which of the networks that a method passes on its way to the goal are measured.

Measuring one takes a forward pass over the validation images and over the 512 that its BatchNorm is re-estimated on,
where an image of training takes about three. With the default share of validation images that is 9% of an epoch of
CIFAR-10 and 12% of one of 4,800 images, of the dense net, and less of the narrower one at hand. AOFP's published
schedule on the 27 layers of a ResNet-56 may move every 37 batches of 64, which is training for less than one
measurement. So what is measured is bounded by the epochs of the trial, not by its moves: two per epoch add about a
fifth to the training, and where there are epochs enough, `MOST` draw the way well.
"""

import math

from pruning.base import Goal, Snapshot
from spaces.cost import Cost
from spaces.space import SearchSpace

PER_EPOCH = 2  # of the trial
MOST = 8  # per trial: each weighs as much as a net, in a worker's memory and on disk; one digit also names them all


def promised_cost(snapshot: Snapshot, space: SearchSpace) -> Cost:
    """Return what a snapshot says that its network costs."""
    return snapshot.cost or space.cost(snapshot.widths)


def short_of(goal: Goal, snapshot: Snapshot, space: SearchSpace) -> str:
    """Say by its promise why a snapshot does not meet the goal; empty when it does."""
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
            return f"has {count:,} {absolute.quantity} and must stay within {absolute}"
    return ""


class IntermediateSelector:
    """Chooses from the networks on the way from the dense one to a goal, so that they lie evenly in log cost.

    The way is cut into equal parts of log cost; the first network beyond the end of each part but the last is taken.
    So no more than `MOST` are, none of them next to the dense net, and none has to be kept that is dropped later.

    Args:
        epochs: of the trial.
    """

    def __init__(self, goal: Goal, space: SearchSpace, epochs: int) -> None:
        self._dense = space.dense_cost
        if goal.widths is not None:
            limits = [("flops", float(space.cost(goal.widths).flops))]
        else:
            budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
            limits = [(budget.quantity, budget.limit) for budget in budgets if budget.quantity != "latency"]
        lengths = {quantity: math.log(getattr(self._dense, quantity) / limit) for quantity, limit in limits}
        self._lengths = {quantity: length for quantity, length in lengths.items() if length > 0}
        self._parts = 1 + min(MOST, PER_EPOCH * epochs)
        self._passed = 0

    def takes(self, cost: Cost) -> bool:
        """Whether a network of this cost, the next on the way, is measured."""
        part = min(int(self._parts * self._share(cost)), self._parts - 1)
        if part <= self._passed:
            return False
        self._passed = part
        return True

    def _share(self, cost: Cost) -> float:
        """Return how much of the way is behind, in log cost; of several budgets the one that is furthest away."""
        behind = (math.log(getattr(self._dense, q) / getattr(cost, q)) / n for q, n in self._lengths.items())
        return min(behind, default=0.0)
