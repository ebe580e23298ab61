import pytest
import torch
from torch import nn

from spaces.zoo.normalisation import IMAGENET_MEAN, IMAGENET_STD, fold_normalisation

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_network_gives_for_imagenet_images_what_it_gave_for_its_own(bias):
    conv, norm = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4).eval()
    pixels = torch.rand(2, 3, 6, 6)

    def standardised(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    with torch.no_grad():
        before = norm(conv(standardised(MEAN, STD)))
        assert fold_normalisation(conv, norm, MEAN, STD)
        after = norm(conv(standardised(IMAGENET_MEAN, IMAGENET_STD)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_nothing_can_shift_is_left_as_it_was():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    weight = conv.weight.clone()
    assert not fold_normalisation(conv, nn.GroupNorm(2, 4), MEAN, STD)
    assert torch.equal(conv.weight, weight)
