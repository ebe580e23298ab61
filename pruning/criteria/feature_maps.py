"""Scores of channels by their feature maps, observed where convolutions read or write them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pruning.base import Context, PruningError
from pruning.criteria.weights import NORMS, add_relative, norm_scores, rows_of
from spaces.space import SearchSpace

TIES = 1e-9  # weight of the filter norms that break ties; far below any difference of scores
Ids = NDArray[np.int64]
Measure = Callable[[Tensor], Tensor]  # maps of shape (B, C, H, W) -> values >= 0 of shape (C,), summed over the images


def map_scores(
    net: nn.Module, space: SearchSpace, context: Context, measure: Measure, images: int
) -> Mapping[str, Tensor]:
    """Score every variable group by a measure of its feature maps; `net` is not changed.

    Maps are observed where convolutions read them, after additions and activations. Channels that no convolution reads
    are observed where convolutions or normalisation layers write them. Values are relative to the mean of their layer
    and summed over the observed layers; of equal channels the one whose filter has the larger L1 norm scores higher.

    Args:
        images: number of calibration images over which values are averaged.

    Raises:
        PruningError: there are no calibration images, or feature maps are not finite.
    """
    copied = copy.deepcopy(net).eval()  # neither modes nor hooks of `net` may change
    observers = _observe(copied, space, measure)
    with torch.no_grad():
        for batch, _ in context.calibration_batches(images):
            copied(batch)
    reached = [observer for observer in observers if observer.reached]
    if not reached:
        raise PruningError("there are no calibration images; give the criterion a training set that is not empty")
    norms, scores = norm_scores(net, space, order=1), {}
    for group in space.variable:
        total = torch.zeros(group.width, dtype=torch.float64)
        showing = [(observer, *rows_of(group, observer.ids)) for observer in reached]
        showing = [entry for entry in showing if len(entry[1])]
        consumed = [entry for entry in showing if entry[0].at_consumer]
        for observer, rows, channels in consumed or showing:
            add_relative(total, channels, observer.values[rows])
        scores[group.name] = total * (1 + TIES * norms[group.name])
    return scores


class _MapObserver:
    """Sums a measure of the maps at the input or output of one layer; `ids` are the channel ids of the maps."""

    def __init__(self, name: str, ids: Ids, measure: Measure, at_consumer: bool) -> None:
        self.ids, self.at_consumer, self.reached = ids, at_consumer, False
        self.values = torch.zeros(len(ids), dtype=torch.float64)
        self._name, self._measure = name, measure

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._add(module, inputs[0])

    def after(self, module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        self._add(module, output)

    def _add(self, module: nn.Module, maps: Tensor) -> None:
        if not torch.isfinite(maps).all():
            raise PruningError(f"the feature maps at {self._name!r} are not finite; the dense weights are unusable")
        if isinstance(module, (nn.Linear, nn.LayerNorm)):  # channels last
            maps = maps.movedim(-1, 1)
        maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1] if maps.ndim > 3 else 1)
        self.values += self._measure(maps.float()).cpu().double()
        self.reached = True


def _observe(net: nn.Module, space: SearchSpace, measure: Measure) -> list[_MapObserver]:
    """Add a hook wherever channels of variable groups can be observed."""
    consumed = _consumed_ids(net, space)
    consumed_anywhere = np.concatenate([np.zeros(0, dtype=np.int64), *consumed.values()])
    observers = []
    for name, module in net.named_modules():
        written = space.axes.get(f"{name}.weight", {}).get(0, np.zeros(0, dtype=np.int64))
        if name in consumed:
            observer = _MapObserver(name, consumed[name], measure, at_consumer=True)
            module.register_forward_pre_hook(observer.before)
            observers.append(observer)
        only_written = not np.isin(written[written >= 0], consumed_anywhere).all()
        if only_written and isinstance(module, (_ConvNd, nn.Linear, *NORMS)):
            observer = _MapObserver(name, written, measure, at_consumer=False)
            module.register_forward_hook(observer.after)
            observers.append(observer)
    return observers


def _consumed_ids(net: nn.Module, space: SearchSpace) -> dict[str, Ids]:
    """Return the channel ids of the inputs of every convolution that reads channels of groups."""
    return {
        name: space.axes[f"{name}.weight"][1]
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd) and 1 in space.axes.get(f"{name}.weight", {})
    }
