"""CostCoverage: where on the budget range the next trial goes, so that the front comes out even in log cost."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from spaces.budget import Budget

MAX_REPEATS = 10  # proposals in a row at one cost that may repeat earlier ones before another cost is tried


@dataclass(frozen=True)
class CostCoverage:
    """The range of the scaled budget in which candidates are proposed, and the targets to which they are drawn.

    Attributes:
        quantity: "flops" or "params", the scaled one.
        base: its limit, a fraction of 1.
        lowest: the least fraction that is proposed.
        targets: absolute, on that quantity, the largest first; none spreads candidates over the range.
    """

    quantity: str
    base: float
    lowest: float
    targets: tuple[Budget, ...] = ()

    @cached_property
    def by_fraction(self) -> Mapping[float, Budget]:
        """Fraction -> target, the largest first."""
        return {target.limit / self.base: target for target in self.targets}

    @property
    def mean(self) -> float:
        """The mean fraction of the proposals: over the targets, else over log cost."""
        if self.targets:
            return statistics.fmean(self.by_fraction)
        return (1 - self.lowest) / -math.log(self.lowest) if self.lowest < 1 else 1.0

    def limit(self, fraction: float) -> Budget:
        """Return the budget at a fraction; at that of a target exactly the target, whatever the rounding."""
        return self.by_fraction.get(fraction) or Budget(self.quantity, math.floor(fraction * self.base))

    def next_target(self, served: Iterable[float], repeats: int = 0) -> float | None:
        """Return the fraction of the target with the fewest trials, of equals the largest; None without targets.

        Args:
            served: limit of every trial so far, pending ones too; a limit of no target does not count.
            repeats: number of proposals in a row that have repeated earlier ones.
        """
        if not self.targets:
            return None
        counts = Counter(served)
        order = sorted((target.limit for target in self.targets), key=lambda limit: (counts[limit], -limit))
        return order[repeats // MAX_REPEATS % len(order)] / self.base


def largest_gap(shares: Iterable[float], lowest: float) -> float:
    """Return the middle, in log cost, of the largest gap that trials leave in [lowest, 1]; of equals the dearest.

    Args:
        shares: share of the scaled budget that a trial costs or, while it is pending, may cost; others are ignored.
        lowest: above 0.
    """
    places = sorted({lowest, 1.0, *(share for share in shares if lowest < share < 1)})
    gaps = [(round(math.log(high / low), 9), high, low) for low, high in itertools.pairwise(places)]
    _, high, low = max(gaps, default=(0.0, 1.0, 1.0))
    return math.sqrt(low * high)
