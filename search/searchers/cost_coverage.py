"""Where on the budget range the next trial goes, so that the front comes out even in log cost."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from spaces.budget import Budget

TURN = 10  # proposals in a row that may repeat earlier ones at one place before another is tried


@dataclass(frozen=True)
class Spread:
    """The range of the scaled budget that candidates are proposed in, and the targets they are drawn to.

    Attributes:
        quantity: "flops" or "params", which is scaled.
        base: the whole of it, so a fraction of 1.
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
        """The mean fraction of what is proposed: over the targets, else over log cost."""
        if self.targets:
            return statistics.fmean(self.by_fraction)
        return (1 - self.lowest) / -math.log(self.lowest) if self.lowest < 1 else 1.0

    def limit(self, fraction: float) -> Budget:
        """Return the budget of a candidate: that of a target exactly, whatever its fraction would be rounded to."""
        return self.by_fraction.get(fraction) or Budget(self.quantity, math.floor(fraction * self.base))

    def next_target(self, served: Iterable[float], turn: int = 0) -> float | None:
        """Return the fraction of the target that the next trial goes to; None without targets.

        Args:
            served: limit of every trial so far, running ones too.
            turn: how many proposals in a row have repeated earlier ones.
        """
        if not self.targets:
            return None
        order = least_served([target.limit for target in self.targets], served)
        return order[turn // TURN % len(order)] / self.base


def least_served(limits: Sequence[float], served: Iterable[float]) -> list[float]:
    """Order the targets: the one that the fewest trials had first, of equals the largest.

    Args:
        served: limit of every trial so far, running ones too; those that are none of `limits` do not count.
    """
    counts = Counter(served)
    return sorted(limits, key=lambda limit: (counts[limit], -limit))


def widest_gap(shares: Iterable[float], lowest: float) -> float:
    """Return the middle, in log cost, of the widest gap that trials leave in [lowest, 1]; of equals the dearest.

    Args:
        shares: of the scaled budget that each trial costs or, while it runs, may cost; those outside are ignored.
        lowest: above 0.
    """
    places = sorted({lowest, 1.0, *(share for share in shares if lowest < share < 1)})
    gaps = [(round(math.log(high / low), 9), high, low) for low, high in itertools.pairwise(places)]
    _, high, low = max(gaps, default=(0.0, 1.0, 1.0))
    return math.sqrt(low * high)
