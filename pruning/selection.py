"""Selection: the channels of each group that are kept."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pruning.base import PruningError
from spaces.groups import ChannelGroup
from spaces.slicing.slicer import KeptIds
from spaces.space import SearchSpace

# Group name -> kept channel indices, ascending, int64. A missing group keeps all channels.
Selection = Mapping[str, Tensor]


def select_channels(space: SearchSpace, scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> Selection:
    """Keep, in every group of `widths`, the channels with the highest scores; of equal scores the lower index.

    Where a grouped convolution reads the channels, the same number is kept in each of its conv groups.

    Args:
        scores: group name -> shape (group.width,), finite.

    Raises:
        PruningError: scores of a wrong shape, or not finite.
        SpaceError: a width that is not legal.
    """
    space.check(widths)
    return {name: _highest(space.by_name[name], scores[name], width) for name, width in widths.items()}


def _highest(group: ChannelGroup, scores: Tensor, width: int) -> Tensor:
    if scores.shape != (group.width,) or not torch.isfinite(scores).all():
        raise PruningError(
            f"scores of {group.name!r} have shape {tuple(scores.shape)} and must be {group.width} finite numbers"
        )
    by_conv_group = scores.detach().cpu().reshape(group.conv_groups, -1)
    falling = torch.sort(by_conv_group, dim=1, descending=True, stable=True).indices
    offsets = torch.arange(group.conv_groups).unsqueeze(1) * by_conv_group.shape[1]
    return (falling[:, : width // group.conv_groups] + offsets).flatten().sort().values


def kept_ids(space: SearchSpace, selection: Selection) -> KeptIds:
    """Return, for every channel id of the network, whether the channel is kept."""
    last = space.groups[-1]
    mask = np.ones(last.start + last.width + 1, dtype=bool)
    for name, kept in selection.items():
        group = space.by_name[name]
        mask[group.start : group.start + group.width] = False
        mask[group.start + kept.detach().cpu().numpy()] = True
    return mask
