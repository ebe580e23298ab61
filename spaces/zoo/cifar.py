"""Networks of the pruning papers for small images, at their published widths."""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.errors import ModelError
from spaces.zoo.widening import Shape, scaled

_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return functional.relu(y)


class ResNet(nn.Module):
    """A residual network with a 3x3 stem of stride 1. He et al., 2016.

    Args:
        stages: (width, blocks) of each stage; every stage but the first halves the resolution.
    """

    def __init__(self, stages: tuple[tuple[int, int], ...], num_classes: int, channels: int) -> None:
        super().__init__()
        inputs = stages[0][0]
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.layers = nn.Sequential()
        for number, (width, blocks) in enumerate(stages, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(BasicBlock(inputs, width, stride))
                inputs = width
            self.layers.add_module(f"stage{number}", stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.pool(self.layers(y)).flatten(1))  # type: ignore[no-any-return]


class VGG(nn.Module):
    """VGG-16 with BatchNorm and one linear head. Simonyan & Zisserman, 2015, in the form of the CIFAR literature."""

    def __init__(self, num_classes: int, channels: int, factor: float = 1.0) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for step in _VGG16:
            if isinstance(step, str):
                self.features.append(nn.MaxPool2d(2))
                continue
            width = scaled(step, factor)
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.features.extend([convolution, nn.BatchNorm2d(width), nn.ReLU()])
            channels = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution whose `growth` channels are appended to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, inputs + growth, H, W)."""
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], dim=1)


class DenseNet(nn.Module):
    """Three dense blocks without bottleneck or compression. Huang et al., 2017.

    Args:
        layers: convolutions in each block; the published depth is 3 * layers + 4.
        width: of the stem.
    """

    def __init__(self, growth: int, layers: int, num_classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, width, 3, padding=1, bias=False)))
        for block in range(1, 4):
            dense = nn.Sequential(*[DenseLayer(width + i * growth, growth) for i in range(layers)])
            self.features.add_module(f"block{block}", dense)
            width += layers * growth
            if block < 3:
                convolution = nn.Conv2d(width, width, 1, bias=False)
                step = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), convolution, nn.AvgPool2d(2))
                self.features.add_module(f"transition{block}", step)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        y = functional.relu(self.norm(self.features(x)))
        return self.classifier(self.pool(y).flatten(1))  # type: ignore[no-any-return]


class LeNet(nn.Module):
    """LeNet of Caffe's MNIST example: widths 20-50-500, and one ReLU, in the hidden layer. LeCun et al., 1998."""

    def __init__(self, num_classes: int, input_shape: Shape, factor: float = 1.0) -> None:
        super().__init__()
        channels, height, width = input_shape
        first, second, hidden = (scaled(number, factor) for number in (20, 50, 500))
        rows, columns = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        if min(rows, columns) < 1:
            raise ModelError(f"images of {height}x{width} are too small for lenet5; give at least 16x16")
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * rows * columns, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        y = functional.max_pool2d(self.conv1(x), 2)
        y = functional.max_pool2d(self.conv2(y), 2).flatten(1)
        return self.fc2(functional.relu(self.fc1(y)))  # type: ignore[no-any-return]


def _resnet(*stages: tuple[int, int]) -> "Builder":
    def build(num_classes: int, shape: Shape, factor: float) -> nn.Module:
        wider = tuple((scaled(width, factor), blocks) for width, blocks in stages)
        return ResNet(wider, num_classes, shape[0])

    return build


def _thin_resnet(depth: int) -> "Builder":
    blocks = (depth - 2) // 6
    return _resnet((16, blocks), (32, blocks), (64, blocks))


def _check_halvings(name: str, shape: Shape, side: int) -> None:
    if min(shape[1:]) < side:
        raise ModelError(f"images of {shape[1]}x{shape[2]} are too small for {name}; give at least {side}x{side}")


def _vgg16_bn(num_classes: int, shape: Shape, factor: float) -> nn.Module:
    _check_halvings("cifar_vgg16_bn", shape, 32)
    return VGG(num_classes, shape[0], factor)


def _densenet40(num_classes: int, shape: Shape, factor: float) -> nn.Module:
    _check_halvings("densenet40", shape, 4)
    return DenseNet(scaled(12, factor), 12, num_classes, shape[0], scaled(16, factor))


Builder = Callable[[int, Shape, float], nn.Module]  # of the classes, the image and the factor of all widths

CIFAR_NETS: dict[str, Builder] = {
    "resnet20": _thin_resnet(20),
    "resnet56": _thin_resnet(56),
    "resnet110": _thin_resnet(110),
    "cifar_resnet18": _resnet((64, 2), (128, 2), (256, 2), (512, 2)),
    "cifar_vgg16_bn": _vgg16_bn,
    "densenet40": _densenet40,
    "lenet5": LeNet,
}


def build_cifar(name: str, num_classes: int, input_shape: Shape, factor: float = 1.0) -> nn.Module:
    """Build a network of `CIFAR_NETS` with He-initialised convolutions; all widths are multiplied by `factor`.

    Raises:
        ModelError: the images are too small for the network.
    """
    net = CIFAR_NETS[name](num_classes, input_shape, factor)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
