import pytest
import torch
from torch import nn

from pruning.base import PruningError
from pruning.criteria.feature_rank import FeatureRank
from spaces.tracing.tracer import trace


def test_scores_are_mean_ranks_relative_to_the_layers_mean(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]).reshape(3, 3, 1, 1))
        net[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    space = trace(net, torch.zeros(1, 3, 8, 8))
    scores = FeatureRank().scores(net, space, tiny_context())["0"]
    assert scores.tolist() == pytest.approx([8 / 3, 1 / 3, 0.0])  # a random map, a constant one, none


def test_maps_are_seen_behind_the_activation(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, -100.0]))  # the second channel never fires
    space = trace(net, torch.zeros(1, 3, 8, 8))
    scores = FeatureRank().scores(net, space, tiny_context())["0"]
    assert scores[1] == 0
    assert scores[0] > 0


def test_channels_that_only_a_linear_layer_reads_are_seen_where_they_are_written(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        net[0].weight[2] = 0
    space = trace(net, torch.zeros(1, 3, 8, 8))
    assert int(FeatureRank().scores(net, space, tiny_context())["0"].argmin()) == 2


def test_a_linear_layers_channels_have_a_rank_of_zero_or_one(tiny_context) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    net = nn.Sequential(nn.Conv2d(3, 3, 1), *net).eval()
    with torch.no_grad():
        net[2].weight[1], net[2].bias[1] = 0, 0
    space = trace(net, torch.zeros(1, 3, 8, 8))
    assert FeatureRank().scores(net, space, tiny_context())["2"].tolist() == pytest.approx([4 / 3, 0, 4 / 3, 4 / 3])


def test_of_equal_ranks_the_larger_filter_is_kept(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 3.0, 2.0])[:, None, None, None].expand(3, 3, 1, 1))
    scores = FeatureRank().scores(net, trace(net, torch.zeros(1, 3, 8, 8)), tiny_context())["0"]
    assert scores.tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert scores.argsort().tolist() == [0, 2, 1]


def test_without_images_or_with_broken_weights_it_says_so(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with pytest.raises(PruningError, match="no calibration images"):
        FeatureRank(images=0).scores(tiny_residual, space, tiny_context())
    with torch.no_grad():
        tiny_residual.stem.weight[0] = torch.nan
    with pytest.raises(PruningError, match="not finite"):
        FeatureRank().scores(tiny_residual, space, tiny_context())
