"""The geometry of a space: the few directions in which its groups are likely to differ.

A search group by group over 120 widths needs hundreds of trials. The network itself tells, before any trial, in which
respects groups will differ: their depth, their resolution, the number of layers that share them (many for the channels
of a residual stream or of a dense block, few for the inner channels of a single block), their share of the cost and,
where it was measured, the loss from narrowing them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spaces.projection import Floats
from spaces.space import SearchSpace

SENSITIVITY = "measured sensitivity"


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
