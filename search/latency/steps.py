"""Steps: channels at which the predicted latency jumps, and widths on the cheap side of them.

A device may take as long for 17 channels of a layer as for 32, or even longer, where it does not compute with an odd
number of channels as fast. A proposal of 17 then pays for channels that it does not have, so it is widened as far as
that costs nothing, or else to the end of the step, or narrowed to the end of the step before.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from runners.latency.prediction.model import LatencyModel
from runners.latency.prediction.steps import STEPS
from spaces.groups import ChannelGroup
from spaces.widths import Widths

JUMP = 0.75  # share of the rise over a step that its first channel must bring
SMALLEST_STEP = STEPS[1]


def on_cheap_side(
    model: LatencyModel, groups: Sequence[ChannelGroup], widths: Widths, inside: Callable[[Widths], bool]
) -> Widths:
    """Return the widths with every group as wide as costs no more, or at the end of its step or of the last one.

    Args:
        groups: that may vary.
        inside: tells whether widths meet the budgets.
    """
    for group in groups:
        for width in [*_free(model, group, widths), *_ends(model, group, widths)]:
            moved = widths | {group.name: width}
            if inside(moved):
                widths = moved
                break
    return widths


def _free(model: LatencyModel, group: ChannelGroup, widths: Widths) -> list[int]:
    """Return the widest legal width above that of a group that takes no longer; none where all take longer."""
    present = widths[group.name]
    first, last = present // SMALLEST_STEP + 1, min(group.ceiling, present + STEPS[-1]) // SMALLEST_STEP
    wider = [step * SMALLEST_STEP for step in range(last, first - 1, -1) if group.legal(step * SMALLEST_STEP)]
    seconds = _seconds(model, widths, group.name, [present, *wider])
    return [width for width, taken in zip(wider, seconds[1:], strict=True) if taken <= seconds[0]][:1]


def _ends(model: LatencyModel, group: ChannelGroup, widths: Widths) -> list[int]:
    """Return the legal ends of the widest step that a group stands inside, the upper end first; none without a step."""
    for step in sorted(STEPS[1:], reverse=True):
        low = widths[group.name] // step * step
        high = min(low + step, group.ceiling)
        if low == widths[group.name] or high <= low + 1:
            continue
        at_low, first, at_high = _seconds(model, widths, group.name, (low, low + 1, high))
        if first > at_low and first - at_low >= JUMP * (at_high - at_low):
            return [width for width in (high, low) if width != widths[group.name] and group.legal(width)]
    return []


def _seconds(model: LatencyModel, widths: Widths, name: str, tried: Sequence[int]) -> list[float]:
    vector: NDArray[np.float64] = np.array(
        [widths.get(other, full) for other, full in zip(model.layers.names, model.dense, strict=True)], dtype=np.float64
    )
    rows = np.tile(vector, (len(tried), 1))
    rows[:, model.layers.names.index(name)] = tried
    found: list[float] = model.predict_vectors(rows).tolist()
    return found
