import pytest
import torch
from torch import nn

from pruning.methods.chip import ChannelIndependence, Chip, independence
from spaces.tracing.tracer import trace


def by_singular_values(maps):
    """Return channel independence as the paper writes it: set a row to zero, and sum the singular values."""
    total = torch.zeros(maps.shape[1], dtype=torch.float64)
    for image in maps.double():
        matrix = image.flatten(1)
        for channel in range(len(matrix)):
            masked = matrix.clone()
            masked[channel] = 0
            total[channel] += torch.linalg.svdvals(matrix).sum() - torch.linalg.svdvals(masked).sum()
    return total


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (2, 12, 2, 3), (2, 4, 2, 2), (1, 1, 3, 3)])
def test_independence_is_what_the_paper_defines(shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(independence(maps), by_singular_values(maps), rtol=1e-6, atol=1e-6)


def test_a_map_that_others_replace_is_cut_first():
    maps = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0)).relu()
    maps[:, 3] = maps[:, 1]  # two alike replace each other
    maps[:, 4] = 0
    found = independence(maps)
    assert found[4] == 0
    assert sorted(found.argsort()[1:3].tolist()) == [1, 3]


def test_scores_are_those_of_the_maps_that_the_next_layer_reads(tiny_context):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    space, context = trace(net, torch.zeros(1, 3, 8, 8)), tiny_context()
    scores = ChannelIndependence(images=4).scores(net, space, context)["0"]
    images = torch.cat([batch for batch, _ in context.calibration_batches(4)])
    expected = by_singular_values(net[:2](images).detach())
    torch.testing.assert_close(scores, expected / expected.mean(), rtol=1e-5, atol=1e-5)


def test_the_setting_reaches_the_criterion():
    assert Chip(images=7).chosen() == ChannelIndependence(7)
