"""The geometry of a space: few directions in which its groups are likely to differ, and widths as real numbers.

Searched group by group, 120 widths need hundreds of trials. What is known of a network before any trial says along
which lines groups will differ: how deep they lie, at which resolution they work, how many layers share them (the
channels of a residual stream or of a dense block, against the inner ones of a single block), what share of the cost
they carry and, where it was measured, how the dense network takes their narrowing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.space import SearchSpace

Floats = NDArray[np.float64]

SENSITIVITY = "measured sensitivity"
SECANTS = 4  # steps to a budget: log cost is nearly straight in the log of a common factor on all widths


@dataclass(frozen=True)
class Structure:
    """Directions over the groups of a space.

    Attributes:
        names: of the coordinates.
        directions: shape (groups, coordinates); each has mean 0 and root mean square 1 over the groups.
    """

    names: tuple[str, ...]
    directions: Floats

    def __len__(self) -> int:
        """Count the coordinates."""
        return len(self.names)


def structure_of(space: SearchSpace, sensitivities: Mapping[str, float] | None = None) -> Structure:
    """Return the directions in which the groups of a space differ from each other; none where there is one group.

    Args:
        space: of the network.
        sensitivities: group -> what halving it alone costs, positive; None leaves that coordinate out.
    """
    groups = space.variable
    full = np.array([[group.width for group in groups]], dtype=np.float64)
    flops, params = (slopes[0] for slopes in space.cost_model.slopes(full))
    stages = np.rint(np.log(np.maximum(flops / np.maximum(params, 1.0), 1.0)) / math.log(4))
    columns = {
        "depth": np.arange(len(groups), dtype=np.float64),
        "layers sharing a group": np.log([len(group.producers) + len(group.consumers) + 1 for group in groups]),
        "share of the FLOPs": np.log(np.maximum(flops * full[0], 1.0)),
    }
    if sensitivities is not None:
        columns[SENSITIVITY] = np.log([max(sensitivities[group.name], 1e-6) for group in groups])
    levels = sorted(set(stages.tolist()), reverse=True)
    for number, arcsine_sqrt in enumerate(levels, start=1):
        columns[f"stage {number} of {len(levels)}"] = (stages == arcsine_sqrt).astype(np.float64)
    log2_ratios = {name: column - column.mean() for name, column in columns.items() if np.ptp(column) > 1e-9}
    scaled = [column / math.sqrt(float((column**2).mean())) for column in log2_ratios.values()]
    return Structure(tuple(log2_ratios), np.stack(scaled, axis=1) if scaled else np.zeros((len(groups), 0)))


def balanced(space: SearchSpace, sensitivities: Mapping[str, float]) -> Floats:
    """Return proportions in octaves, shape (groups,), that are wide where a group is sensitive for its FLOPs.

    What narrowing group i to half costs, s_i, is taken for the size of a loss s_i / x_i, and the FLOPs c_i that its
    channels carry for the size of a cost c_i * x_i**2: the best shares x_i at a cost grow with (s_i / c_i) ** (1/3).
    """
    dense = np.array([[group.width for group in space.variable]], dtype=np.float64)
    carried = np.maximum(space.cost_model.slopes(dense)[0][0] * dense[0], 1.0)
    per_cost = np.log2([max(sensitivities[group.name], 1e-6) for group in space.variable]) - np.log2(carried)
    return np.asarray((per_cost - np.median(per_cost)) / 3)


class Relaxation:
    """Widths as real numbers, many candidates at once: what `SearchSpace.fit` gives but for its rounding.

    Kept shares are in octaves: log2 of width / dense width, at most 0.

    Args:
        latency_use: widths of shape (n, groups) -> predicted shares of a latency limit, shape (n,); None without one.
    """

    def __init__(self, space: SearchSpace, latency_use: Callable[[Floats], Floats] | None = None) -> None:
        self._cost, self._latency_use = space.cost_model, latency_use
        self._full = np.array([group.width for group in space.variable], dtype=np.float64)
        self._least = np.log2(np.array([group.lowest for group in space.variable]) / self._full)
        self._most = np.log2(np.array([group.ceiling for group in space.variable]) / self._full)

    def fit(self, proportions: Floats, limits: Floats) -> Floats:
        """Return the kept shares, shape (n, groups), that proportions have at the limits.

        Args:
            shares: proportions in octaves, shape (n, groups).
            limits: FLOPs and parameters, infinite where there is no such budget, shape (n, 2).
        """
        near = np.zeros(len(proportions))
        far = near - 1.0
        near_use, far_use = (self.usage(self._at(proportions, scale), limits) for scale in (near, far))
        for _ in range(SECANTS):
            slope = np.maximum((near_use - far_use) / np.where(near == far, 1.0, near - far), 0.3)
            far, far_use = near, near_use
            near = near - np.clip(near_use / slope, -4.0, 4.0)
            near_use = self.usage(self._at(proportions, near), limits)
        return self._at(proportions, near)

    def usage(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return log2 of the share of the tightest limit that is used, shape (n,)."""
        widths = self._full * 2.0**log2_ratios
        flops, params = self._cost.batch(widths)
        used = np.maximum(flops / limits[:, 0], params / limits[:, 1])
        if self._latency_use is not None:
            used = np.maximum(used, self._latency_use(widths))
        return np.asarray(np.log2(np.maximum(used, 1e-12)))

    def slopes(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return the octaves of the tighter of both limits that an octave more of each group takes, shape (n, groups).

        FLOPs stand for latency here: what is climbed along them is fitted to the predicted latency at every step.
        """
        widths = self._full * 2.0**log2_ratios
        costs = np.stack(self._cost.batch(widths), axis=1) / limits
        by_flops, by_params = self._cost.slopes(widths)
        tightest = np.argmax(costs, axis=1)
        slopes = np.where(tightest[:, None] == 0, by_flops / limits[:, :1], by_params / limits[:, 1:])
        return np.asarray(slopes * widths / np.maximum(costs.max(axis=1), 1e-12)[:, None])

    def _at(self, proportions: Floats, scale: Floats) -> Floats:
        return np.asarray(np.clip(proportions + scale[:, None], self._least, self._most))
