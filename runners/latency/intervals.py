"""How sure a median is."""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that holds the median with 95% confidence.

    The k-th smallest and k-th largest of n hold it with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the
    distribution (David and Nagaraja, Order Statistics, section 7.1). Under six samples no pair does: the whole range.
    """
    ordered, count = sorted(samples), len(samples)
    outside, k = 0.0, 0
    while k < count // 2:
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    k = max(1, k)
    return ordered[k - 1], ordered[-k]
