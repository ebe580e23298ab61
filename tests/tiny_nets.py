"""Tiny networks, one for each way in which channels can be tied."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.space import SearchSpace
from spaces.tracing.tracer import trace

IMAGE = (3, 8, 8)


@cache
def space_of(make: Callable[[], nn.Module], image: tuple[int, int, int] = IMAGE) -> SearchSpace:
    """Return the space of the net that `make` gives, traced once for all tests that only read it.

    A trace runs the net some ten times to prove itself, which takes longer than most tests.
    """
    torch.manual_seed(0)
    return trace(make().eval(), torch.zeros(1, *image))


class Residual(nn.Module):
    """Stem and block output share their channels through an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = x + self.outer(functional.relu(self.inner(x)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Two branches side by side, then a flattened linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.join = nn.Conv2d(10, 8, 1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return self.fc(torch.flatten(functional.max_pool2d(x, 2), 1))


class Depthwise(nn.Module):
    """Inverted bottleneck with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 7, 1)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.bn(self.depthwise(self.expand(x))))
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(self.project(x * scale).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones, as in ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.last = nn.Conv2d(24, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(functional.relu(self.grouped(functional.relu(self.first(x)))))
        return self.fc(x.mean((2, 3)))


class ChannelsLast(nn.Module):
    """A ConvNeXt block: permuted LayerNorm and linear layers, a scale parameter, an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 20)
        self.down = nn.Linear(20, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.fc((x + self.scale * y).mean((2, 3)))


class Twice(nn.Module):
    """One convolution used twice: its output channels are its input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(functional.relu(self.shared(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Decoder(nn.Module):
    """A UNet with transposed convolutions, one of them depthwise, and a convolution whose parameters are its own."""

    def __init__(self, inputs: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.top, self.bottom = nn.Conv2d(inputs, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up1, self.norm = nn.ConvTranspose2d(12, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.smooth = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=6)
        self.kernel, self.shift = nn.Parameter(torch.randn(10, 14, 3, 3) / 10), nn.Parameter(torch.zeros(10))
        self.up2, self.head = nn.ConvTranspose2d(10, 8, 3, stride=2), nn.Linear(8, classes)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.kernel, std=0.1)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.top(x))
        y = self.up1(functional.relu(self.bottom(functional.max_pool2d(x, 2))))
        x = torch.cat([x, functional.relu(self.smooth(functional.relu(self.norm(y))))], 1)
        x = functional.relu(functional.conv2d(x, self.kernel, self.shift, padding=1))
        return self.head(functional.relu(self.up2(x)).mean((2, 3)))


def filters_of(name: str, weight: Tensor) -> Tensor:
    """Return a parameter of one of the nets here with the outputs of its layer first."""
    return weight.transpose(0, 1) if name in ("up1.weight", "up2.weight") else weight


class Shuffle(nn.Module):
    """A channel shuffle, which no narrower net could repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 8, 8, 8)
        return self.fc(x.mean((2, 3)))


ALL = (Residual, Concat, Depthwise, Grouped, ChannelsLast, Twice, Decoder)


def residual(num_classes: int) -> nn.Module:
    """Return a `Residual` for a data set, as a user's factory would."""
    net = Residual()
    net.fc = nn.Linear(8, num_classes)
    return net
