import pytest
import torch
from torch import nn

from pruning.criteria.geometric_median import GeometricMedian, distances
from spaces.tracing.tracer import trace


def test_distances_to_all_others_in_closed_form() -> None:
    filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    assert distances(filters).tolist() == pytest.approx([6.0, 5 + 18**0.5, 1 + 18**0.5])


def test_a_large_filter_that_others_repeat_goes_before_a_small_one_of_its_own(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0.0], [3.0, 0.1], [3.0, -0.1], [0.0, 0.5]]).reshape(4, 2, 1, 1))
    space = trace(net, torch.zeros(1, 2, 1, 1))
    scores = GeometricMedian().scores(net, space, tiny_context())["0"]
    assert (int(scores.argmin()), int(scores.argmax())) == (0, 3)


def test_equal_filters_all_score_zero(tiny_context) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    space = trace(net, torch.zeros(1, 2, 1, 1))
    assert GeometricMedian().scores(net, space, tiny_context())["0"].tolist() == [0.0] * 3
