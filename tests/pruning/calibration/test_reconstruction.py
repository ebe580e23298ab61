import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.calibration.activation_moments import Recipe, gather
from pruning.calibration.reconstruction import reconstruct
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.tracing.tracer import trace

RECIPE = Recipe("spatial", "input", images=48, positions=64)


def _cut(net: nn.Module, context, width: int) -> tuple[nn.Module, nn.Module]:
    """Cut group "0" to its first channels; once plainly, once reconstructed."""
    space = trace(net, context.images)
    scores = {"0": -torch.arange(space.by_name["0"].width, dtype=torch.float64)}
    selection = select_channels(space, scores, {"0": width})
    narrow = [slice_channels(net, space, selection) for _ in range(2)]
    reconstruct(narrow[1], net, space, selection, gather(net, space, RECIPE, context))
    return narrow[0], narrow[1]


def _repeat_channels(net: nn.Sequential) -> None:
    """Make channels 3 to 5 of the first layer sums of channels 0 to 2, before and after the activation."""
    first = net[0]
    with torch.no_grad():
        first.weight.abs_()
        first.bias.fill_(10.0)  # all stay above zero, so that the activation is linear
        first.weight[3:] = 2 * first.weight[:3]
        first.bias[3:] = 7.0


def test_channels_that_others_determine_are_replaced_exactly(tiny_context) -> None:
    torch.manual_seed(0)
    context = tiny_context()
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(256, 3)).eval()
    _repeat_channels(net)
    plain, reconstructed = _cut(net, context, 3)
    with torch.no_grad():
        torch.testing.assert_close(reconstructed(context.images), net(context.images), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(plain(context.images), net(context.images), atol=0.1)


class _Bare(nn.Module):
    """A 1x1 convolution whose parameters a function takes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 6, 1, 1)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel, bias=self.shift)


@pytest.mark.parametrize("make", [lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), _Bare], ids=["transposed", "bare"])
def test_whatever_reads_the_channels_reads_the_kept_ones_instead(tiny_context, make) -> None:
    torch.manual_seed(0)
    context = tiny_context()
    layers = nn.Conv2d(3, 6, 1), nn.ReLU(), make(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    net = nn.Sequential(*layers).eval()  # the mean over maps has the mean constant that a transposed convolution lacks
    _repeat_channels(net)
    plain, reconstructed = _cut(net, context, 3)
    with torch.no_grad():
        torch.testing.assert_close(reconstructed(context.images), net(context.images), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(plain(context.images), net(context.images), atol=0.1)


def test_a_linear_layer_after_flatten_reads_the_kept_channels_instead(tiny_context) -> None:
    torch.manual_seed(0)
    context = tiny_context()
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 3)).eval()
    _repeat_channels(net)
    _, reconstructed = _cut(net, context, 3)
    with torch.no_grad():
        torch.testing.assert_close(reconstructed(context.images), net(context.images), rtol=1e-3, atol=1e-3)


def test_a_grouped_convolution_is_replaced_conv_group_by_conv_group(tiny_context) -> None:
    torch.manual_seed(0)
    context = tiny_context()
    grouped = nn.Conv2d(8, 4, 1, groups=2)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), grouped, nn.Flatten(), nn.Linear(256, 3)).eval()
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.fill_(10.0)
        for start in (0, 4):
            net[0].weight[start + 2 : start + 4] = 0.5 * net[0].weight[start : start + 2]
    _, reconstructed = _cut(net, context, 4)
    with torch.no_grad():
        torch.testing.assert_close(reconstructed(context.images), net(context.images), rtol=1e-3, atol=1e-3)
