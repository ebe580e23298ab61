"""Steps of channels at which the latency of a device jumps, found by an experiment on whole networks.

For every step that a device may have, two networks are measured: one in which as many groups as possible have an odd
multiple of the step, and the same with one channel more in each of them. On a device of this step the second takes a
whole step longer, on one of half the step half as long, and on one of larger steps no longer at all. Other causes of
latency hardly differ within a pair, so that the rises tell steps apart that the errors of predictions do not.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from runners.latency.prediction.model import LatencyModel, Layers, Readings
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace
from spaces.widths import Widths

STEPS = (1, 4, 8, 16, 32, 64)  # channels at which the latency of a device may jump
USUAL = 0.75  # of its full width, about which the groups of a pair have their widths
NOISE = 0.01  # of a rise in log seconds: smaller differences tell nothing
CLEARLY = 0.7  # times the error of the rises without a step, below which a step is taken for real


def step_pairs(space: SearchSpace) -> list[tuple[Widths, Widths]]:
    """Return a pair of widths for every step, at the end of a step and just beyond it; none where no group can be."""
    pairs = []
    for step in STEPS[1:-1]:
        ends = {group.name: end for group in space.variable if (end := _step_end(group, step)) is not None}
        if ends:
            usual = {group.name: _usual(group) for group in space.variable}
            beyond = {group.name: _next(group, ends[group.name]) for group in space.variable if group.name in ends}
            base = space.full | usual | ends
            pairs.append((base, base | beyond))
    return pairs


def find_step(
    make: Callable[[int, Readings], Layers],
    dense: Sequence[int],
    readings: Readings,
    pairs: Sequence[tuple[int, int]],
) -> int:
    """Return the step by which the rises within pairs are explained best; 1 unless another one is clearly better.

    Args:
        make: makes layers of a step and of readings.
        readings: (widths, seconds) of whole networks.
        pairs: indices of the readings of a pair.
    """
    if not pairs:
        return 1
    first, second = np.array(pairs).T
    measured = np.log([seconds for _, seconds in readings])
    widths = np.array([row for row, _ in readings], dtype=np.float64)
    errors = {}
    for step in STEPS:
        predicted = np.log(LatencyModel(make(step, readings), dense, readings).predict_vectors(widths))
        apart = np.abs((measured[second] - measured[first]) - (predicted[second] - predicted[first]))
        errors[step] = NOISE + float(apart.mean())
    best = min(errors, key=lambda step: errors[step])
    return best if errors[best] < CLEARLY * errors[1] else 1


def _usual(group: ChannelGroup) -> int:
    width = max(group.lowest, math.floor(USUAL * group.ceiling) // group.divisor * group.divisor)
    return min(width, group.ceiling)


def _step_end(group: ChannelGroup, step: int) -> int | None:
    """Return the odd multiple of a step next to the usual width, if the group may have it and a little more."""
    odd = range(step, group.ceiling, 2 * step)
    legal = [width for width in odd if group.legal(width) and _next(group, width) < width + step]
    return min(legal, key=lambda width: abs(width - _usual(group)), default=None)


def _next(group: ChannelGroup, width: int) -> int:
    """Return the next legal width."""
    return min(group.ceiling, width + group.divisor)
