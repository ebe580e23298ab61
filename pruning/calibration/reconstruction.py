"""Let the channels that stay stand in for those that go: least squares from second moments already gathered."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.calibration.activation_moments import Recipe, Site, Statistics
from pruning.calibration.information import ridge_for
from pruning.selection import Selection
from spaces.space import SearchSpace

RECIPE = Recipe("spatial", "input", images=512, positions=64)  # what suffices to reconstruct from
RIDGE = 1e-3  # relative to the mean variance of the kept channels
IdMask = NDArray[np.bool_]  # channel id -> whether it stays; the last entry answers for -1, which always stays


def reconstruct(
    narrow: nn.Module, net: nn.Module, space: SearchSpace, selection: Selection, statistics: Statistics
) -> None:
    """Change, in place, the layers of a freshly cut net so that they read kept channels in place of missing ones.

    A missing channel is predicted at every position as x_cut = B x_kept + const with B = S_ck (S_kk + rho I)^-1, and
    the weights that read it are moved by B onto the kept ones. Where the layer has a bias it takes the constant; a
    BatchNorm after it absorbs it otherwise, once re-estimated.

    Args:
        narrow: what `slice_channels` made of `net` by `selection`.
        net: the dense network.
        space: of the dense network.
        selection: kept channels per group.
        statistics: of the dense network's layer inputs, with moments of spatial samples.
    """
    stays = _stays(space, selection)
    for site in statistics.sites:
        if site.moments is None:
            continue
        weight = f"{site.module}.weight"
        reads, writes = space.axes[weight][1], space.axes[weight].get(0)
        dense = net.get_submodule(site.module).weight
        assert isinstance(dense, Tensor)
        kept_rows = np.ones(len(dense), dtype=bool) if writes is None else stays[writes]
        layer = narrow.get_submodule(site.module)
        with torch.no_grad():
            _replace(layer, _Blocks(dense, reads, kept_rows, space.grouped.get(weight, 1)), site, stays)


def _stays(space: SearchSpace, selection: Selection) -> IdMask:
    last = space.groups[-1]
    stays = np.ones(last.start + last.width + 1, dtype=bool)
    for name, kept in selection.items():
        group = space.by_name[name]
        stays[group.start : group.start + group.width] = False
        stays[group.start + kept.cpu().numpy()] = True
    return stays


@dataclass(frozen=True)
class _Blocks:
    """A dense layer's weight, split as a grouped convolution splits it (one block for any other layer)."""

    weight: Tensor
    reads: NDArray[np.int64]
    kept_rows: NDArray[np.bool_]
    conv_groups: int

    def __iter__(self) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield per block the kept filters (outputs, inputs, ...) in float64 and the channel ids of their inputs."""
        filters = self.weight.detach().double().cpu().chunk(self.conv_groups)
        rows, ids = np.split(self.kept_rows, self.conv_groups), np.split(self.reads, self.conv_groups)
        for each, kept, read in zip(filters, rows, ids, strict=True):
            yield each[torch.as_tensor(kept)], read


def _replace(layer: nn.Module, dense: _Blocks, site: Site, stays: IdMask) -> None:
    feature_of = torch.full((len(stays),), -1)
    feature_of[site.ids] = torch.arange(len(site.ids))
    folded = [_fold(filters, torch.as_tensor(ids), feature_of, site, stays) for filters, ids in dense]
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    weight.copy_(torch.cat([filters for filters, _ in folded]))
    if isinstance(bias, Tensor):
        bias += torch.cat([constant for _, constant in folded]).to(bias)


def _fold(filters: Tensor, ids: Tensor, feature_of: Tensor, site: Site, stays: IdMask) -> tuple[Tensor, Tensor]:
    """Return the filters over the kept inputs only, and the constant that their outputs miss."""
    moments = site.moments
    assert moments is not None
    keeps = torch.as_tensor(stays[ids.numpy()])
    features = feature_of[ids]
    kept, cut = features[keeps & (features >= 0)].unique(), features[~keeps].unique()
    narrow = filters[:, keeps].clone()
    if not len(kept) or not len(cut):
        return narrow, torch.zeros(len(filters), dtype=torch.float64)
    system = moments.scatter[kept][:, kept]
    system = system + ridge_for(system, RIDGE) * torch.eye(len(kept), dtype=torch.float64)
    predict = torch.linalg.solve(system, moments.scatter[kept][:, cut]).T  # shape (cut, kept)
    # A flattened map shows each channel at several inputs, in runs; in front of them are the channels.
    missing = filters[:, ~keeps].reshape(len(filters), len(cut), -1)
    moved = torch.einsum("ocx,ck->okx", missing, predict)
    observed = features[keeps] >= 0
    narrow[:, observed] += moved.reshape(narrow[:, observed].shape)
    gap = moments.mean[cut] - predict @ moments.mean[kept]
    return narrow, torch.einsum("ocx,c->o", missing, gap)
