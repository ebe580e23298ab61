"""Neighbours: width vectors close to those of a good network, for screening pools, which need many at no cost."""

from collections.abc import Sequence

import numpy as np

from search.searchers.parameters import WIDTH, width_parameter
from spaces.groups import ChannelGroup
from spaces.widths import Widths

# Standard deviation of the change of a log2 width ratio, and the share of the groups that are changed (of two groups at
# least): now and then a few groups by much, or all of them by little.
CHANGES = ((0.4, 0.1), (0.2, 1.0))


def neighbour(widths: Widths, groups: Sequence[ChannelGroup], random: np.random.Generator) -> dict[str, float]:
    """Return the width parameters of a random neighbour of a network, which the projection brings inside a budget.

    Args:
        widths: of the network; a group that is not named has its full width.
        groups: the variable groups of the search space.
    """
    log2_ratios = np.log2([widths.get(group.name, group.width) / group.width for group in groups])
    deviation, share = CHANGES[random.integers(len(CHANGES))]
    changed = random.random(len(groups)) < max(share, 2 / len(groups))
    log2_ratios += np.where(changed, random.normal(0.0, deviation, len(groups)), 0.0)
    proportions = (log2_ratios - np.median(log2_ratios)).tolist()
    return {WIDTH + group.name: width_parameter(log2) for group, log2 in zip(groups, proportions, strict=True)}
