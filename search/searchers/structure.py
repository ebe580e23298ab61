"""The geometry of a space: the few directions in which its groups are likely to differ, and widths as real numbers.

A search group by group over 120 widths needs hundreds of trials. The network itself tells, before any trial, in which
respects groups will differ: their depth, their resolution, the number of layers that share them (many for the channels
of a residual stream or of a dense block, few for the inner channels of a single block), their share of the cost and,
where it was measured, the loss from narrowing them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.space import SearchSpace

Floats = NDArray[np.float64]

SENSITIVITY = "measured sensitivity"
SECANT_STEPS = 4  # to a budget: log cost is nearly linear in the log of a common factor of all widths


@dataclass(frozen=True)
class Structure:
    """Directions over the groups of a space.

    Attributes:
        names: of the coordinates.
        directions: shape (groups, coordinates); every column has mean 0 and root mean square 1.
    """

    names: tuple[str, ...]
    directions: Floats

    def __len__(self) -> int:
        """Count the coordinates."""
        return len(self.names)


def structure_of(space: SearchSpace, sensitivities: Mapping[str, float] | None = None) -> Structure:
    """Return the directions in which the groups of a space differ from each other; none for a single group.

    Args:
        sensitivities: group -> loss from narrowing it alone to half, positive; None leaves that coordinate out.
    """
    groups = space.variable
    full = np.array([[group.width for group in groups]], dtype=np.float64)
    flops, params = (slopes[0] for slopes in space.cost_model.slopes(full))
    # FLOPs per parameter are the positions of a feature map, of which each stage has a quarter of those before.
    stages = np.rint(np.log(np.maximum(flops / np.maximum(params, 1.0), 1.0)) / math.log(4))
    columns = {
        "depth": np.arange(len(groups), dtype=np.float64),
        "layers sharing a group": np.log([len(group.producers) + len(group.consumers) + 1 for group in groups]),
        "share of the FLOPs": np.log(np.maximum(flops * full[0], 1.0)),
    }
    if sensitivities is not None:
        columns[SENSITIVITY] = np.log([max(sensitivities[group.name], 1e-6) for group in groups])
    resolutions = sorted(set(stages.tolist()), reverse=True)
    for number, resolution in enumerate(resolutions, start=1):
        columns[f"stage {number} of {len(resolutions)}"] = (stages == resolution).astype(np.float64)
    centred = {name: column - column.mean() for name, column in columns.items() if np.ptp(column) > 1e-9}
    scaled = [column / math.sqrt(float((column**2).mean())) for column in centred.values()]
    return Structure(tuple(centred), np.stack(scaled, axis=1) if scaled else np.zeros((len(groups), 0)))


def balanced(space: SearchSpace, sensitivities: Mapping[str, float]) -> Floats:
    """Return log2 proportions, shape (groups,), that are large for groups which are sensitive for their FLOPs.

    At a share x_i of its channels, group i is taken to add a loss of s_i / x_i, with the measured loss s_i from
    narrowing it to half, and a cost of c_i * x_i**2, with the FLOPs c_i of its channels. The shares x_i that minimise
    the loss at a given cost then grow with (s_i / c_i) ** (1/3).
    """
    dense = np.array([[group.width for group in space.variable]], dtype=np.float64)
    flops = np.maximum(space.cost_model.slopes(dense)[0][0] * dense[0], 1.0)
    per_cost = np.log2([max(sensitivities[group.name], 1e-6) for group in space.variable]) - np.log2(flops)
    return np.asarray((per_cost - np.median(per_cost)) / 3)


class Relaxation:
    """Widths as real numbers, for many candidates at once: the widths of `SearchSpace.fit` before its rounding.

    Widths are given as log2 ratios: log2 of width / dense width, at most 0.

    Args:
        latency_use: widths, shape (n, groups) -> predicted shares of the latency limit, shape (n,); None without one.
    """

    def __init__(self, space: SearchSpace, latency_use: Callable[[Floats], Floats] | None = None) -> None:
        self._cost, self._latency_use = space.cost_model, latency_use
        self._full = np.array([group.width for group in space.variable], dtype=np.float64)
        self._least = np.log2(np.array([group.lowest for group in space.variable]) / self._full)
        self._most = np.log2(np.array([group.ceiling for group in space.variable]) / self._full)

    def fit(self, proportions: Floats, limits: Floats) -> Floats:
        """Return the log2 ratios, shape (n, groups), at which widths of given proportions use the limits up.

        The common factor of the widths is found by the secant method on the log cost.

        Args:
            proportions: log2 proportions, shape (n, groups).
            limits: on FLOPs and on parameters, infinite without such a budget, shape (n, 2).
        """
        near = np.zeros(len(proportions))
        far = near - 1.0
        near_use, far_use = (self.usage(self._at(proportions, scale), limits) for scale in (near, far))
        for _ in range(SECANT_STEPS):
            slope = np.maximum((near_use - far_use) / np.where(near == far, 1.0, near - far), 0.3)
            far, far_use = near, near_use
            near = near - np.clip(near_use / slope, -4.0, 4.0)
            near_use = self.usage(self._at(proportions, near), limits)
        return self._at(proportions, near)

    def usage(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return log2 of the used share of the tightest limit, shape (n,)."""
        widths = self._full * 2.0**log2_ratios
        flops, params = self._cost.batch(widths)
        used = np.maximum(flops / limits[:, 0], params / limits[:, 1])
        if self._latency_use is not None:
            used = np.maximum(used, self._latency_use(widths))
        return np.asarray(np.log2(np.maximum(used, 1e-12)))

    def slopes(self, log2_ratios: Floats, limits: Floats) -> Floats:
        """Return the gradient of log cost by the log2 ratios, for the tighter of both limits, shape (n, groups).

        Under a latency limit too, this is the gradient of FLOPs or parameters: after every gradient step, `fit` brings
        the widths back to the predicted latency.
        """
        widths = self._full * 2.0**log2_ratios
        costs = np.stack(self._cost.batch(widths), axis=1) / limits
        by_flops, by_params = self._cost.slopes(widths)
        tightest = np.argmax(costs, axis=1)
        slopes = np.where(tightest[:, None] == 0, by_flops / limits[:, :1], by_params / limits[:, 1:])
        return np.asarray(slopes * widths / np.maximum(costs.max(axis=1), 1e-12)[:, None])

    def _at(self, proportions: Floats, scale: Floats) -> Floats:
        return np.asarray(np.clip(proportions + scale[:, None], self._least, self._most))
