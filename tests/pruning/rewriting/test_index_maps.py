"""Cluster index maps, and merging by them: lossless where the members of a cluster are equal."""

import copy

import numpy as np
import pytest
import tiny_nets as nets
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import PruningError
from pruning.methods.csgd.clustering import cluster_channels
from pruning.rewriting.index_maps import ClusterIndexMap, Clusters, NetworkClusters
from pruning.rewriting.surgery import merge_channels, slice_channels
from pruning.selection import Selection
from spaces.counting import count_cost
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build


class Pooled(nn.Module):
    """Two consumers of one map, strides, padding and pooling, then a flattened map of 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.right = nn.Conv2d(8, 6, 5, stride=2, padding=2)
        self.act = nn.PReLU(6)
        self.fc = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = self.act(self.left(x) + functional.avg_pool2d(self.right(x), 1))
        return self.fc(functional.max_pool2d(x, 2).flatten(1))


class Dense(nn.Module):
    """Concatenations that are normalised where they are read, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1, bias=False)
        self.norm3, self.fc = nn.BatchNorm2d(14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(functional.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(functional.relu(self.norm2(x)))], 1)
        return self.fc(functional.relu(self.norm3(x)).mean((2, 3)))


NETS = (nets.Residual, nets.Concat, nets.Depthwise, nets.Grouped, nets.Twice, Pooled, Dense)


def half(space: SearchSpace) -> dict[str, int]:
    return {g.name: max(g.conv_groups, g.width * 5 // 8 // g.conv_groups * g.conv_groups) for g in space.variable}


def prepared(make: type[nn.Module], *, equal: bool = True) -> tuple[nn.Module, SearchSpace, Clusters]:
    """A net whose every number is random, and clusters whose members are equal."""
    torch.manual_seed(0)
    net = make().eval()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    clusters = cluster_channels(net, space, half(space))
    if equal:
        equalise(net, space, clusters)
    return net, space, clusters


@torch.no_grad()
def equalise(net: nn.Module, space: SearchSpace, clusters: Clusters) -> None:
    tensors = net.state_dict()
    for merged in NetworkClusters(space, clusters).merged_dimensions():
        if not merged.summed:
            tensor, index_map = tensors[merged.tensor], merged.index_map
            tensor.copy_(index_map.expand(tensor.index_select(merged.dim, index_map.first), merged.dim))


def index_map() -> ClusterIndexMap:
    return ClusterIndexMap.of(np.array([0, 1, 0, 2, 3, 2]), np.array([0, 1, 3, 4]))


def test_sums_means_and_their_expansion_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 8.0]], dtype=torch.float64)
    assert index_map().sums(values, 1).tolist() == [[4, 2, 12, 5]]
    assert index_map().means(values, 1).tolist() == [[2, 2, 6, 5]]
    assert index_map().expand(index_map().means(values, 1), 1).tolist() == [[2, 2, 2, 6, 5, 6]]
    assert index_map().deviation(values, 1) == 2 / 8
    assert index_map().deviation(torch.zeros(6)) == 0


def test_the_map_of_a_conv_group_starts_at_zero() -> None:
    second = index_map().of_conv_group(1, 2)
    assert (second.index.tolist(), second.first.tolist(), second.counts.tolist()) == ([0, 1, 0], [0, 1], [2, 1])


def difference(net: nn.Module, narrow: nn.Module, dtype: torch.dtype) -> float:
    images = torch.randn(4, *nets.IMAGE).to(dtype)
    with torch.no_grad():
        expected = net.to(dtype)(images)
        return float((narrow.to(dtype)(images) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("make", NETS)
def test_merging_equal_channels_changes_nothing(make: type[nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    net, space, clusters = prepared(make)
    net.to(dtype)
    narrow = merge_channels(net, space, clusters)
    assert count_cost(copy.deepcopy(narrow).float(), nets.IMAGE) == space.cost(half(space))
    assert difference(net, narrow, dtype) < tolerance


@pytest.mark.parametrize("make", [nets.Residual, Dense])
def test_a_norm_that_has_not_collapsed_shows_in_the_logits(make: type[nn.Module]) -> None:
    net, space, clusters = prepared(make)
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    assert difference(net, merge_channels(net, space, clusters), torch.float32) > 1e-3


@pytest.mark.parametrize("make", NETS)
def test_dropping_equal_channels_instead_of_merging_them_does_not_do(make: type[nn.Module]) -> None:
    net, space, clusters = prepared(make)
    kept: Selection = {
        name: torch.tensor([int((labels == cluster).nonzero()[0]) for cluster in range(int(labels.max()) + 1)])
        for name, labels in clusters.items()
    }
    assert difference(net, slice_channels(net, space, kept), torch.float32) > 1e-3


def test_filters_are_averaged_and_inputs_summed_by_hand() -> None:
    net, space, _ = prepared(nets.Residual, equal=False)
    narrow = merge_channels(net, space, {"stem": torch.tensor([0, 1, 0, 2, 2, 2, 1, 0])})
    rows = [[0, 2, 7], [1, 6], [3, 4, 5]]
    for name in ("stem.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "outer.weight"):
        means = torch.stack([net.state_dict()[name][row].mean(0) for row in rows])
        torch.testing.assert_close(narrow.state_dict()[name], means)
    for name in ("inner.weight", "fc.weight"):
        sums = torch.stack([net.state_dict()[name][:, row].sum(1) for row in rows], 1)
        torch.testing.assert_close(narrow.state_dict()[name], sums)


def test_flattened_maps_are_summed_position_by_position() -> None:
    net, space, _ = prepared(nets.Concat, equal=False)
    narrow = merge_channels(net, space, {"join": torch.tensor([0, 0, 1, 2, 3, 4, 5, 1])})
    maps = net.get_parameter("fc.weight").reshape(5, 8, 16)
    torch.testing.assert_close(narrow.get_parameter("fc.weight")[:, :16], maps[:, 0] + maps[:, 1])
    torch.testing.assert_close(narrow.get_parameter("fc.weight")[:, 16:32], maps[:, 2] + maps[:, 7])
    assert torch.equal(narrow.get_parameter("fc.weight")[:, 80:], maps[:, 6])


def test_the_wide_net_is_untouched_and_the_narrow_one_trains() -> None:
    net, space, clusters = prepared(nets.Depthwise)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    narrow = merge_channels(net, space, clusters).train()
    narrow(torch.randn(4, *nets.IMAGE)).sum().backward()
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    depthwise = narrow.get_submodule("depthwise")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (7, 7, 7)


def test_a_resnet56_at_five_eighths_keeps_the_papers_share_of_multiplications() -> None:
    shape = (3, 32, 32)
    net = build(ModelSpec("resnet56", 10, shape))
    space = trace(net, torch.empty(1, *shape))
    widths = {group.name: group.width * 5 // 8 for group in space.variable}
    narrow = merge_channels(net, space, cluster_channels(net, space, widths, "even"))
    assert count_cost(narrow, shape) == space.cost(widths)
    assert _multiplications(narrow) / _multiplications(net) == pytest.approx(0.3915, abs=5e-5)


def _multiplications(net: nn.Module) -> int:
    """Of convolutions and linear layers, as the paper counts."""
    total = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer.get_parameter("weight").numel() * output[0, 0].numel()

    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    net.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({"stem": torch.tensor([0, 0, 1])}, r"shape \(3,\) and must have \(8,\)"),
        ({"stem": torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])}, "in the order of their smallest channels"),
        ({"stem": torch.tensor([0, 0, 0, 0, 0, 0, 0, 2])}, "numbered from 0"),
        ({"fc": torch.tensor([0, 0, 0, 0, 0])}, "'fc' is no variable group"),
        ({"nose": torch.tensor([0])}, "known: stem, inner"),
    ],
)
def test_clusters_that_cannot_be_merged_are_named(clusters: Clusters, message: str) -> None:
    net = nets.Residual()
    with pytest.raises(PruningError, match=message):
        merge_channels(net, trace(net, torch.empty(1, *nets.IMAGE)), clusters)


def test_clusters_stay_within_the_groups_of_a_grouped_convolution() -> None:
    net = nets.Grouped()
    space = trace(net, torch.empty(1, *nets.IMAGE))
    across = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7])
    with pytest.raises(PruningError, match="within its 4 conv groups"):
        merge_channels(net, space, {"first": across})


def test_a_net_that_was_not_traced_is_refused() -> None:
    space = trace(nets.Residual(), torch.empty(1, *nets.IMAGE))
    other = nets.Residual()
    other.stem = nn.Conv2d(3, 10, 3, padding=1, bias=False)
    with pytest.raises(PruningError, match="slice the network that was traced"):
        merge_channels(other, space, {"stem": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])})
