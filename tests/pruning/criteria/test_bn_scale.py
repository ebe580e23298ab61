import torch
from torch import nn

from pruning.criteria.bn_scale import BatchNormScale
from pruning.criteria.norms import L1
from spaces.tracing.tracer import trace


def test_scores_are_absolute_scales_relative_to_the_layers_mean(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        tiny_residual.norm1.weight.copy_(torch.tensor([-4.0, 0.0] + [1.0] * 8 + [2.0, 2.0]))
    scores = BatchNormScale().scores(tiny_residual, space, tiny_context())["conv1"]
    mean = 16 / 12
    assert torch.allclose(scores, torch.tensor([4.0, 0.0] + [1.0] * 8 + [2.0, 2.0]).double() / mean)


def test_all_layers_that_scale_a_channel_count_the_same(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        tiny_residual.norm.weight.copy_(100 * torch.tensor([1.0] * 7 + [2.0]))
        tiny_residual.norm2.weight.copy_(torch.tensor([2.0] + [1.0] * 7))
    scores = BatchNormScale().scores(tiny_residual, space, tiny_context())["stem"]
    assert torch.allclose(scores[0], scores[7])
    assert set(scores.topk(2).indices.tolist()) == {0, 7}


def test_where_nothing_scales_filters_decide(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten()).eval()
    space = trace(net, torch.zeros(1, 3, 2, 2))
    ours, norms = (criterion.scores(net, space, tiny_context())["0"] for criterion in (BatchNormScale(), L1()))
    assert torch.equal(ours, norms)
