"""Tiny nets, and a context with training images in memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import NO_ACTION, TRIAL_RATES, Action, Distillation, Rates, TrainingPlan


class TinyResidual(nn.Module):
    """A stem, one residual block and a linear head, on 3x8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return self.head(functional.relu(x + y).mean(dim=(2, 3)))


@dataclass
class TinyContext:
    """Training images in memory; counts how often calibration images are asked for."""

    seed: int = 0
    epochs: int = 1
    learning_rate: float = 0.01
    dense_learning_rate: float = 0.05
    steps_per_epoch: int = 1
    prepared: Any = None
    classes: int = 3
    shape: tuple[int, int, int] = (3, 8, 8)
    calibrations: int = 0
    latency: float = 1.25  # what every latency ratio is
    device: torch.device = torch.device("cpu")
    classifies: bool = True

    def __post_init__(self) -> None:
        self.timed: list[tuple[nn.Module, nn.Module]] = []
        generator = torch.Generator().manual_seed(7)
        self.labels = torch.arange(48) % self.classes
        centres = torch.randn(self.classes, *self.shape, generator=generator)
        self.images = centres[self.labels] + torch.randn(48, *self.shape, generator=generator)

    def calibration_batches(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.calibrations += 1
        if images:
            yield from zip(self.images[:images].split(16), self.labels[:images].split(16), strict=True)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    @torch.no_grad()
    def probe_accuracy(self, net: nn.Module, images: int) -> float:
        return float((net.eval()(self.images[:images]).argmax(dim=1) == self.labels[:images]).double().mean())

    @torch.no_grad()
    def reestimate_batchnorm(self, net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        net.train()(self.images)
        net.eval()

    def latency_ratio(self, net: nn.Module, dense: nn.Module) -> float:
        self.timed.append((net, dense))
        return self.latency

    def plan(self, epochs: int) -> TrainingPlan:
        return TrainingPlan((0.01,) * epochs, 0.0, False, 0.0)

    def integrated_learning_rate(self, epochs: float, span: tuple[float, float] = (0.0, 1.0)) -> float:
        return self.learning_rate * math.ceil(epochs)

    def fit(
        self,
        net: nn.Module,
        epochs: float,
        action: Action = NO_ACTION,
        *,
        rates: Rates = TRIAL_RATES,
        distillation: Distillation | None = None,
    ) -> Iterator[int]:
        optimiser = torch.optim.SGD(net.parameters(), lr=rates.constant or rates.peak or self.learning_rate)
        for epoch in range(math.ceil(epochs)):
            net.train()
            optimiser.zero_grad()
            logits = net(self.images)
            loss = functional.cross_entropy(logits, self.labels)
            if distillation is not None:
                with torch.no_grad():
                    target = distillation.teacher.eval()(self.images).log_softmax(1)
                apart = functional.kl_div(logits.log_softmax(1), target, reduction="batchmean", log_target=True)
                loss = (1 - distillation.weight) * loss + distillation.weight * apart
            loss.backward()
            if action.hook is not None:
                action.hook(net, epoch)
            optimiser.step()
            changed = action.reshape(net, {}) if action.reshape is not None else None
            if changed is not None:
                net = changed[0]
                optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
            yield epoch + 1


@pytest.fixture
def tiny_residual() -> nn.Module:
    torch.manual_seed(0)
    return TinyResidual().eval()


@pytest.fixture
def tiny_context() -> Callable[..., TinyContext]:
    return TinyContext
