"""Where on the budget range the next trial goes, so that the front comes out even in log cost."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence


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
