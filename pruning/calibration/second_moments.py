"""Centred second moments of labelled features, accumulated batch by batch without keeping the samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import PruningError


class MomentAccumulator:
    """Accumulate the second moments of samples that have C features and one of K class labels.

    Sums are taken about the mean of the first batch, because raw sums of features far from zero lose digits when they
    are centred afterwards. Each batch is multiplied in its own precision and added in float64.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._shift: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features of shape (samples, C), labels of shape (samples,)."""
        if self._shift is None:
            self._shift = features.mean(dim=0)
            channels = features.shape[1]
            self._gram = torch.zeros(channels, channels, dtype=torch.float64)
            self._sums = torch.zeros(self._classes, channels, dtype=torch.float64)
            self._counts = torch.zeros(self._classes, dtype=torch.float64)
        shifted = features - self._shift
        onehot = torch.nn.functional.one_hot(labels, self._classes).to(shifted.dtype)
        self._gram += (shifted.T @ shifted).cpu().double()
        self._sums += (onehot.T @ shifted).cpu().double()
        self._counts += onehot.sum(dim=0).cpu().double()

    def finish(self) -> "Moments":
        """Return the centred moments.

        Raises:
            PruningError: there are no samples.
        """
        if self._shift is None:
            raise PruningError("there are no samples to take moments of; give calibration images")
        total, samples = self._sums.sum(dim=0), self._counts.sum()
        scatter = self._gram - torch.outer(total, total) / samples
        cross = (self._sums - self._counts[:, None] * total / samples).T
        mean = total / samples + self._shift.cpu().double()
        return Moments(scatter, cross.contiguous(), self._counts, mean)


@dataclass(frozen=True)
class Moments:
    """Centred second moments of a layer's features X with one-hot labels Y; float64 on the CPU.

    Attributes:
        scatter: S = X'X, shape (C, C).
        cross: X'Y, shape (C, K).
        counts: samples per class, shape (K,).
        mean: mean of each feature, shape (C,).
    """

    scatter: Tensor
    cross: Tensor
    counts: Tensor
    mean: Tensor

    def between(self, unit: bool = True) -> Tensor:
        """Return S_B = X'Y Y'X of shape (C, C).

        Args:
            unit: divide each class's column of Y by the square root of its count, as `label_codes` does; a class
                without samples adds nothing.

        Raises:
            PruningError: the samples belong to fewer than two classes.
        """
        if int((self.counts > 0).sum()) < 2:
            raise PruningError(
                "the calibration images hold fewer than two classes, which discriminant information cannot tell "
                "apart; raise the number of images or mix the classes"
            )
        targets = self.cross / self.counts.clamp_min(1).sqrt() if unit else self.cross
        return targets @ targets.T

    def power(self) -> Tensor:
        """Return E[x^2] of each feature, uncentred. Shape (C,)."""
        return self.scatter.diagonal().clamp_min(0) / self.counts.sum() + self.mean.square()

    def standardised(self) -> "Moments":
        """Return the moments of the same features scaled to unit length; constant features become zero."""
        scale = _unit_scale(self.scatter)
        scatter = self.scatter * torch.outer(scale, scale)
        return Moments(scatter, self.cross * scale[:, None], self.counts, self.mean * scale)

    def take(self, features: Tensor) -> "Moments":
        """Return the moments of a subset of the features, given by their indices."""
        return Moments(self.scatter[features][:, features], self.cross[features], self.counts, self.mean[features])


def _unit_scale(scatter: Tensor) -> Tensor:
    """Return 1 / sqrt(diagonal) where a feature varies by more than rounding errors, else 0. Shape (C,)."""
    variance = scatter.diagonal().clamp_min(0)
    varies = variance > 1e-12 * variance.max()
    return torch.where(varies, variance.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), torch.zeros_like(variance))


def ridge_for(scatter: Tensor, relative: float) -> float:
    """Return the ridge rho = relative * mean of the scatter's diagonal; 1 where all features are constant."""
    return relative * float(scatter.diagonal().mean()) or 1.0
