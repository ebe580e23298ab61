"""Selection: which channels of each group stay."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.base import PruningError
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

Selection = Mapping[str, Tensor]  # group name -> kept channel indices, ascending, int64; a missing group keeps all


def select_channels(space: SearchSpace, scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> Selection:
    """Keep, in every group of `widths`, the channels with the highest scores (ties: the lower index).

    Where a grouped convolution splits the channels into blocks, each block keeps the same number.

    Args:
        scores: group name -> shape (group.width,), finite.

    Raises:
        PruningError: scores of a wrong shape or not finite.
        SpaceError: a width that is not legal.
    """
    space.check(widths)
    return {name: _best(space.by_name[name], scores[name], width) for name, width in widths.items()}


def _best(group: ChannelGroup, scores: Tensor, width: int) -> Tensor:
    if scores.shape != (group.width,) or not torch.isfinite(scores).all():
        raise PruningError(
            f"scores of {group.name!r} have shape {tuple(scores.shape)} and must be {group.width} finite numbers"
        )
    conv_groups = scores.detach().cpu().reshape(group.conv_groups, -1)
    order = torch.sort(conv_groups, dim=1, descending=True, stable=True).indices[:, : width // group.conv_groups]
    offsets = torch.arange(group.conv_groups).unsqueeze(1) * conv_groups.shape[1]
    return (order + offsets).flatten().sort().values
