"""A small network and images on which it trains in milliseconds."""

import torch
from torch import nn

from runners.config import TrainConfig
from runners.data.augmentation import Augmentation
from runners.data.splits import TensorSplit
from runners.training.loop import fit
from runners.training.run import TrainingRun

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=8, precision="float32")


def tiny_net(seed: int = 0) -> nn.Module:
    """Return a network of one convolution for images of 3x6x6 and two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )


def two_colours(count: int = 48) -> TensorSplit:
    """Reddish images are class 0, greenish ones class 1."""
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), labels] += 150
    return TensorSplit(images.to(torch.uint8), labels, (0.3,) * 3, (0.3,) * 3, (6, 6), Augmentation(shift=1))


def train(net: nn.Module, *, config: TrainConfig = CONFIG, epochs: int = 1, rate: float = 0.1, **settings) -> nn.Module:
    """Train the network on `two_colours` and return it; `settings` are fields of TrainingRun."""
    settings = {"seed": 3, "device": CPU} | settings
    for _ in fit(net, two_colours(), config, TrainingRun(epochs, rate, **settings)):
        pass
    return net


def weights(net: nn.Module) -> torch.Tensor:
    """Return all weights and buffers of a network as one vector."""
    return torch.cat([tensor.flatten().double() for tensor in net.state_dict().values()])
