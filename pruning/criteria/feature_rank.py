"""Rank of the feature maps."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.base import Context, PruningError
from pruning.criteria.weights import NORMS, add_relative, norm_scores, rows_of
from spaces.space import SearchSpace

TIES = 1e-9  # far under any difference of mean ranks
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureRank:
    """Keep the channels whose feature maps have the highest matrix rank. Lin et al., HRank, arXiv 2002.10565.

    Maps are seen where convolutions read them, after additions and activations. Channels that no convolution reads
    are seen where convolutions, or normalisation layers, write them; a channel without a map has rank 0 or 1. Where
    ranks are equal, as they mostly are where no activation is between, the filters of the largest L1 norm are kept.

    Attributes:
        images: over which ranks are averaged. The paper takes 500 and finds that few do as well; ranks cost a singular
            value decomposition each.
    """

    images: int = 64

    seeded: ClassVar[bool] = False

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return mean ranks, relative to the mean of their layer and summed over the places that show them.

        Raises:
            PruningError: no calibration images, or feature maps that are not finite.
        """
        twin = copy.deepcopy(net).eval()  # hooks and modes of `net` stay as they are
        watched = _watch(twin, space)
        with torch.no_grad():
            for images, _ in context.calibration_batches(self.images):
                twin(images)
        if not any(each.seen for each in watched):
            raise PruningError("there are no calibration images; give the criterion a training set that is not empty")
        norms, scores = norm_scores(net, space, order=1), {}
        for group in space.variable:
            total = torch.zeros(group.width, dtype=torch.float64)
            shown = [(each, *rows_of(group, each.ids)) for each in watched if each.seen]
            shown = [each for each in shown if len(each[1])]
            read = [each for each in shown if each[0].reads]
            for site, rows, channels in read or shown:
                add_relative(total, channels, site.ranks[rows])
            scores[group.name] = total * (1 + TIES * norms[group.name])
        return scores


class _Site:
    """Adds up the ranks of the maps at one layer; `ids` are the channel ids of its channels."""

    def __init__(self, name: str, ids: Ids, reads: bool) -> None:
        self.ids, self.reads, self.seen = ids, reads, False
        self.ranks = torch.zeros(len(ids), dtype=torch.float64)
        self._name = name

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._add(module, inputs[0])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._add(module, output)

    def _add(self, module: nn.Module, maps: Tensor) -> None:
        if not torch.isfinite(maps).all():
            raise PruningError(f"the feature maps at {self._name!r} are not finite; the dense weights are unusable")
        if isinstance(module, (nn.Linear, nn.LayerNorm)):  # channels last
            maps = maps.movedim(-1, 1)
        maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1] if maps.ndim > 3 else 1)
        self.ranks += torch.linalg.matrix_rank(maps.float()).sum(dim=0).double().cpu()
        self.seen = True


def _watch(net: nn.Module, space: SearchSpace) -> list[_Site]:
    """Hook every place that shows channels of variable groups."""
    readers = _readers(net, space)
    read = np.concatenate([np.zeros(0, dtype=np.int64), *readers.values()])
    sites = []
    for name, module in net.named_modules():
        written = space.axes.get(f"{name}.weight", {}).get(0, np.zeros(0, dtype=np.int64))
        if name in readers:
            site = _Site(name, readers[name], reads=True)
            module.register_forward_pre_hook(site.before)
            sites.append(site)
        if isinstance(module, (_ConvNd, nn.Linear, *NORMS)) and not np.isin(written[written >= 0], read).all():
            site = _Site(name, written, reads=False)
            module.register_forward_hook(site.after)
            sites.append(site)
    return sites


def _readers(net: nn.Module, space: SearchSpace) -> dict[str, Ids]:
    """Return the convolutions that read channels of groups, with the channel ids of their inputs."""
    return {
        name: space.axes[f"{name}.weight"][1]
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd) and 1 in space.axes.get(f"{name}.weight", {})
    }
