"""Features of labelled samples, and their moments."""

import torch
from torch import Tensor

from pruning.calibration.second_moments import MomentAccumulator, Moments

SAMPLES, CHANNELS, CLASSES = 60, 7, 4


def features_and_labels(seed: int = 0, channels: int = CHANNELS, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    centres = torch.randn(CLASSES, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, channels, generator=generator, dtype=torch.float64)
    return centres[labels] + noise + 3.0, labels


def moments_of(features: Tensor, labels: Tensor) -> Moments:
    accumulator = MomentAccumulator(CLASSES)
    accumulator.add(features, labels)
    return accumulator.finish()
