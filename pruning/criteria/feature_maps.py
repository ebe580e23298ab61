"""Scores of channels by their feature maps, observed where convolutions read or write them."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import Context, PruningError
from pruning.calibration.layer_calls import LayerHooks, is_observable
from pruning.criteria.weights import NORMS, add_relative, norm_scores, rows_of
from spaces.space import LayerWeights, SearchSpace

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

    def add(self, maps: Tensor, channels_last: bool) -> None:
        if not torch.isfinite(maps).all():
            raise PruningError(f"the feature maps at {self._name!r} are not finite; the dense weights are unusable")
        if channels_last:
            maps = maps.movedim(-1, 1)
        maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1] if maps.ndim > 3 else 1)
        self.values += self._measure(maps.float()).cpu().double()
        self.reached = True


def _observe(net: nn.Module, space: SearchSpace, measure: Measure) -> list[_MapObserver]:
    """Add a hook wherever channels of variable groups can be observed; the hooks stay."""
    layers = {name: layer for name, layer in space.layers.items() if is_observable(net, layer)}
    axes = {name: space.axes.get(layer.weight, {}) for name, layer in layers.items()}
    consumed = {name: axes[name][1] for name, layer in layers.items() if 1 in axes[name] and _is_conv(net, layer)}
    consumed_anywhere = np.concatenate([np.zeros(0, dtype=np.int64), *consumed.values()])
    hooks, observers = LayerHooks(net, layers), []
    for name in layers:
        if name in consumed:
            at_input = _MapObserver(name, consumed[name], measure, at_consumer=True)
            hooks.add(name, after=lambda call, seen=at_input: seen.add(call.value, call.channels_last))  # type: ignore[misc]
            observers.append(at_input)
        written = axes[name].get(0, np.zeros(0, dtype=np.int64))
        if not np.isin(written[written >= 0], consumed_anywhere).all():
            at_output = _MapObserver(name, written, measure, at_consumer=False)
            hooks.add(name, after=lambda call, seen=at_output: seen.add(call.output, call.channels_last))  # type: ignore[misc]
            observers.append(at_output)
    for name, module in net.named_modules():
        written = space.axes.get(f"{name}.weight", {}).get(0, np.zeros(0, dtype=np.int64))
        if isinstance(module, NORMS) and not np.isin(written[written >= 0], consumed_anywhere).all():
            observer = _MapObserver(name, written, measure, at_consumer=False)
            last = isinstance(module, nn.LayerNorm)
            module.register_forward_hook(lambda _, _inputs, maps, seen=observer, last=last: seen.add(maps, last))
            observers.append(observer)
    return observers


def _is_conv(net: nn.Module, layer: LayerWeights) -> bool:
    return net.get_parameter(layer.weight).ndim > 2
