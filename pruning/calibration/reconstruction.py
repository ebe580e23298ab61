"""Least-squares reconstruction: kept channels replace removed ones in the layers that read them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.calibration.activation_moments import ActivationMoments, Recipe, Site
from pruning.calibration.occurrences import Occurrences
from pruning.calibration.second_moments import ridge_for
from pruning.selection import Selection, kept_ids
from spaces.slicing.filters import as_filters
from spaces.slicing.slicer import KeptIds
from spaces.space import SearchSpace

RECIPE = Recipe("spatial", "input", images=512, positions=64)  # sufficient to reconstruct from
RIDGE = 1e-3  # relative to the mean variance of the kept channels


def reconstruct(
    narrow: nn.Module, net: nn.Module, space: SearchSpace, selection: Selection, moments: ActivationMoments
) -> None:
    """Change, in place, the layers of a freshly cut net so that they read kept channels instead of the missing ones.

    A missing channel is predicted at every position as x_cut = B x_kept + const with B = S_ck (S_kk + rho I)^-1, and
    the weights that read it are moved by B onto the kept channels. A layer's bias takes the constant; where the layer
    has none, a BatchNorm that follows absorbs the constant once its statistics are re-estimated.

    Args:
        narrow: the net that `slice_channels` made of `net` by `selection`.
        net: the dense network.
        space: search space of the dense network.
        selection: kept channels per group.
        moments: activation moments of the dense network's layer inputs, of spatial samples.
    """
    kept = kept_ids(space, selection)
    for site in moments.sites:
        if site.moments is None:
            continue
        layer = space.layers[site.module]
        input_ids, output_ids = space.axes[layer.weight][1], space.axes[layer.weight].get(0)
        dense = as_filters(space, layer.weight, net.get_parameter(layer.weight))
        kept_rows = np.ones(len(dense), dtype=bool) if output_ids is None else kept[output_ids]
        weight = as_filters(space, layer.weight, narrow.get_parameter(layer.weight))
        with torch.no_grad():
            filters = _DenseFilters(dense, input_ids, kept_rows, space.grouped.get(layer.weight, 1))
            constant = _replace(weight, filters, site, kept)
            if layer.bias:
                bias = narrow.get_parameter(layer.bias)
                bias.add_((constant / layer.stride).to(bias))


@dataclass(frozen=True)
class _DenseFilters:
    """The filters of a dense layer, split into the conv groups of a grouped convolution; one group for other layers."""

    filters: Tensor
    input_ids: NDArray[np.int64]
    kept_rows: NDArray[np.bool_]
    conv_groups: int

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield per conv group the kept filters (outputs, inputs, ...) in float64 and the channel ids of the inputs."""
        parts = self.filters.detach().cpu().double().chunk(self.conv_groups)
        rows, ids = np.split(self.kept_rows, self.conv_groups), np.split(self.input_ids, self.conv_groups)
        for filters, kept, inputs in zip(parts, rows, ids, strict=True):
            yield filters[torch.as_tensor(kept)], inputs


def _replace(filters: Tensor, dense: _DenseFilters, site: Site, kept: KeptIds) -> Tensor:
    """Replace filters in place, and return the constant that the outputs lack, were every kernel position read."""
    feature_of = torch.full((len(kept),), -1)
    feature_of[site.ids] = torch.arange(len(site.ids))
    folded = [_fold(wide, torch.as_tensor(ids), feature_of, site, kept) for wide, ids in dense]
    filters.copy_(torch.cat([narrow for narrow, _ in folded]))
    return torch.cat([constant for _, constant in folded])


def _fold(filters: Tensor, ids: Tensor, feature_of: Tensor, site: Site, kept: KeptIds) -> tuple[Tensor, Tensor]:
    """Return the filters over the kept inputs only, and the constant that their outputs lack."""
    moments = site.moments
    assert moments is not None
    keeps = torch.as_tensor(kept[ids.numpy()])
    features = feature_of[ids]
    stay, cut = features[keeps & (features >= 0)].unique(), features[~keeps].unique()
    narrow = filters[:, keeps].clone()
    if not len(stay) or not len(cut):
        return narrow, torch.zeros(len(filters), dtype=torch.float64)
    system = moments.scatter[stay][:, stay]
    system = system + ridge_for(system, RIDGE) * torch.eye(len(stay), dtype=torch.float64)
    predict = torch.linalg.solve(system, moments.scatter[stay][:, cut]).T  # shape (cut, stay)
    # The n-th occurrence of a cut channel is predicted from the n-th occurrences of the kept ones.
    read, kept_reads = Occurrences.of(torch.where(keeps, -1, features)), Occurrences.of(features[keeps])
    missing = read.select(filters, 1).reshape(len(filters), *read.index.shape, -1) * read.counted[..., None]
    moved = torch.einsum("ocpx,ck->okpx", missing, predict)
    places = kept_reads.index[:, torch.arange(read.index.shape[1]) % kept_reads.index.shape[1]].flatten()
    narrow.index_add_(1, places, moved.reshape(len(filters), len(places), *filters.shape[2:]))
    gap = moments.mean[cut] - predict @ moments.mean[stay]
    return narrow, torch.einsum("ocpx,c->o", missing, gap)
