"""Activation moments: second moments, by class, of the features of all layers, gathered in one pass over images."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pruning.base import Context, PruningError
from pruning.calibration.flattened_maps import flattened_scores, label_codes
from pruning.calibration.layer_calls import LayerCall, LayerHooks, is_observable
from pruning.calibration.occurrences import Occurrences
from pruning.calibration.second_moments import MomentAccumulator, Moments
from pruning.steps import steps_done
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Recipe:
    """How activation moments are gathered; moments of one recipe serve all settings that only read them.

    Attributes:
        features: "pooled" (spatial mean), "spatial" (positions are samples) or "flatten" (whole maps, scored batch by
            batch as the authors do).
        where: "input" of the layers that read the channels (after addition, BatchNorm and activation) or "output" of
            the layers that write them.
        images: number of calibration images.
        positions: largest number of positions taken from each map, on a regular grid; only for "spatial".
        ridge: ridge of the flattened score, which cannot be changed afterwards; 0 for the other features.
        unit: scaling of the label codes of the flattened score (see `label_codes`), which cannot be changed either.
        batch: images of a batch of the flattened score, which is computed batch by batch; 0 for the other features.
    """

    features: str
    where: str
    images: int
    positions: int
    ridge: float = 0.0
    unit: bool = True
    batch: int = 0


@dataclass(frozen=True)
class Site:
    """The input or output of a layer, at which channels are observed.

    Attributes:
        module: name of the layer.
        ids: channel id of each observed feature, in memory order (see `ChannelGroup.start`).
        moments: moments of the features; None for flattened maps.
        scores: sum over batches of the flattened score of each feature; None for moments.
    """

    module: str
    ids: Tensor
    moments: Moments | None = None
    scores: Tensor | None = None

    def locate(self, group: ChannelGroup) -> tuple[Tensor, Tensor]:
        """Return the features that are channels of the group, and the channel of the group that each of them is."""
        channels = self.ids - group.start
        features = torch.nonzero((channels >= 0) & (channels < group.width)).flatten()
        return features, channels[features]


@dataclass(frozen=True)
class ActivationMoments:
    """The moments of all sites, gathered by one recipe: plain tensors on the CPU, picklable."""

    recipe: Recipe
    sites: tuple[Site, ...]

    def sites_of(self, group: ChannelGroup) -> Iterator[tuple[Site, Tensor, Tensor]]:
        """Yield every site at which channels of the group are observed, with its features and their channels.

        Features and channels are as `Site.locate` returns them.
        """
        for site in self.sites:
            features, channels = site.locate(group)
            if len(channels):
                yield site, features, channels


def gather(net: nn.Module, space: SearchSpace, recipe: Recipe, context: Context) -> ActivationMoments:
    """Run the calibration images through the net once, in eval mode, and gather the moments of every layer.

    Raises:
        PruningError: there are no calibration images, or feature maps are not finite.
    """
    observers: dict[str, _Observer] | None = None
    with _evaluating(net), torch.no_grad():
        for images, labels in _batches(recipe, context):
            if observers is None:
                logits = next(leaf for leaf in tree_leaves(net(images[:2])) if isinstance(leaf, Tensor))
                classes = max(int(logits.shape[1]), 2)
                observers = {name: _Observer(ids, recipe, classes) for name, ids in _observed_ids(net, space, recipe)}
            with _observing(net, space, observers, recipe, labels):
                net(images)
    if observers is None:
        raise PruningError("there are no calibration images; give the method a training set that is not empty")
    sites = tuple(observer.site(name) for name, observer in observers.items() if observer.images)
    for site in sites:
        values = site.scores if site.moments is None else site.moments.scatter
        if values is not None and not torch.isfinite(values).all():
            raise PruningError(f"the feature maps at {site.module!r} are not finite; the dense weights are unusable")
    return ActivationMoments(recipe, sites)


def _batches(recipe: Recipe, context: Context) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels in the batches of the recipe; a rest of one image is left out, it has no score.

    Without classes all images are of one, and what tells classes apart is nothing.
    """
    for images, targets in context.calibration_batches(recipe.images):
        labels = targets if context.classifies else images.new_zeros(len(images), dtype=torch.int64)
        size = recipe.batch or len(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            if len(images[part]) > 1 or not recipe.batch:
                yield images[part], labels[part]


def _observed_ids(net: nn.Module, space: SearchSpace, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer to observe, with the channel id of every index; -1 for channels of no variable group."""
    variable = np.zeros(sum(group.width for group in space.groups) + 1, dtype=bool)
    for group in space.variable:
        variable[group.start : group.start + group.width] = True
    for name, layer in space.layers.items():
        ids = space.axes.get(layer.weight, {}).get(1 if recipe.where == "input" else 0)
        if ids is None or not is_observable(net, layer):
            continue
        ids = np.where(variable[ids], ids, -1)
        if (ids >= 0).any():
            yield name, torch.as_tensor(ids, dtype=torch.int64)


class _Observer:
    """Gathers the moments of one layer's input or output.

    Args:
        ids: channel id of every index of the tensor; -1 for indices that are not observed.
        recipe: how moments are gathered.
        classes: number of classes.
    """

    def __init__(self, ids: Tensor, recipe: Recipe, classes: int) -> None:
        self.images = 0  # seen so far
        self._recipe, self._classes = recipe, classes
        self._occurrences = Occurrences.of(ids)  # several of a channel are positions of one feature
        self._ids = self._occurrences.channels
        self._moments = MomentAccumulator(classes)
        self._scores = torch.zeros(len(self._ids), dtype=torch.float64)

    def add(self, tensor: Tensor, channels_last: bool, labels: Tensor) -> None:
        maps = self._occurrences.select(tensor.movedim(-1, 1) if channels_last else tensor, 1)
        self.images += len(labels)
        if self._recipe.features == "flatten":
            codes = label_codes(labels.cpu(), self._classes, self._recipe.unit)
            maps = maps.reshape(len(maps), len(self._ids), -1).float()
            self._scores += flattened_scores(maps, codes, self._recipe.ridge)
            return
        if self._recipe.features == "pooled":
            self._moments.add(maps.reshape(len(maps), len(self._ids), -1).mean(dim=2).float(), labels)
            return
        maps = self._grid(maps)
        samples = maps.movedim(1, -1).reshape(-1, len(self._ids)).float()
        self._moments.add(samples, labels.repeat_interleave(len(samples) // len(labels)))

    def _grid(self, maps: Tensor) -> Tensor:
        """Return the maps at no more positions than the recipe says: shape (B, C, ...).

        Args:
            maps: shape (B, C, occurrences, ...).
        """
        if maps.ndim < 5:
            return maps.reshape(len(maps), len(self._ids), -1)[..., : self._recipe.positions]
        step = max(1, math.ceil(math.sqrt(maps[0, 0, 0].numel() / self._recipe.positions)))
        return maps[..., step // 2 :: step, step // 2 :: step]

    def site(self, name: str) -> Site:
        if self._recipe.features == "flatten":
            return Site(name, self._ids, scores=self._scores)
        return Site(name, self._ids, moments=self._moments.finish())


@contextmanager
def _observing(
    net: nn.Module, space: SearchSpace, observers: Mapping[str, _Observer], recipe: Recipe, labels: Tensor
) -> Iterator[None]:
    def add(call: LayerCall, observer: _Observer) -> None:
        observer.add(call.value if recipe.where == "input" else call.output, call.channels_last, labels)
        # A layer and a batch are a step; a layer that is called twice counts twice.
        steps_done(sum(one.images for one in observers.values()), recipe.images * len(observers))

    hooks = LayerHooks(net, space.layers)
    for name, observer in observers.items():
        hooks.add(name, after=lambda call, observer=observer: add(call, observer))  # type: ignore[misc]
    try:
        yield
    finally:
        hooks.remove()


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
