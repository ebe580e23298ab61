import pytest
import torch
from torch import Tensor, nn

from pruning.criteria.norms import L1, L2
from pruning.criteria.random import Random
from spaces.tracing.tracer import trace


def _chain() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([3.0, -1.0, 2.0]).reshape(3, 1, 1, 1))
    return net.eval()


@pytest.mark.parametrize("criterion", [L1(), L2()])
def test_scores_are_norms_relative_to_the_layers_mean(criterion, tiny_context) -> None:
    net = _chain()
    space = trace(net, torch.zeros(1, 1, 1, 1))
    assert criterion.scores(net, space, tiny_context())["0"].tolist() == [1.5, 0.5, 1.0]


def test_l1_and_l2_differ_on_filters_of_several_weights(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 6.0]]).reshape(2, 2, 1, 1))
    space = trace(net, torch.zeros(1, 2, 1, 1))
    assert L1().scores(net, space, tiny_context())["0"].argmax() == 0
    assert L2().scores(net, space, tiny_context())["0"].argmax() == 1


def test_all_layers_that_write_a_channel_add_to_its_score(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        tiny_residual.stem.weight[2] *= 100
        tiny_residual.conv2.weight[5] *= 100
    scores = L2().scores(tiny_residual, space, tiny_context())["stem"]
    assert set(scores.topk(2).indices.tolist()) == {2, 5}


def test_depthwise_filters_count(tiny_context) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 2, 1)
    ).eval()
    space = trace(net, torch.zeros(1, 3, 4, 4))
    with torch.no_grad():
        net[1].weight[3] *= 100
    assert int(L2().scores(net, space, tiny_context())["0"].argmax()) == 3


def test_random_scores_depend_on_the_seed_alone(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))

    def scores(seed: int) -> Tensor:
        return Random().scores(tiny_residual, space, tiny_context(seed=seed))["conv1"]

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))
