"""Discriminant Information in closed form. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

DI is how much of the energy of a target a ridge rule explains from a layer's features:

    DI = tr((S + rho I)^-1 S_B) = ||Y||^2 - min_W (||Y - X W||^2 + rho ||W||^2)

with centred features X (samples x features), centred targets Y (samples x targets), S = X'X and S_B = X'Y Y'X. With
label codes as targets it measures how well the classes can be told apart. It never falls when features are added,
so what it loses without a channel scores that channel.

Everything here is float64: the updates of an elimination lose digits in float32.

Where this differs from the authors' code: they back-propagate tr(YY'A), A = (XX' + rho I)^-1, to masks on the
flattened maps of single batches (`flattened_scores` is that score in closed form) and remove channels by one-shot
sorting; here channels may also be eliminated one by one with exact leave-one-out drops, labels may be scaled to unit
columns, and the target may be anything linear in the features, such as what the next layer computes from them.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.base import PruningError


def label_codes(labels: Tensor, classes: int, unit: bool = True) -> Tensor:
    """Return centred one-hot codes of shape (samples, classes), float64.

    Args:
        labels: class indices, shape (samples,).
        classes: how many there are; one without samples keeps a zero column.
        unit: divide each class's column by the square root of its count before centring, so that classes of any
            size weigh the same and 0 <= DI <= classes - 1.
    """
    codes = torch.nn.functional.one_hot(labels, classes).double()
    if unit:
        codes = codes / codes.sum(dim=0).clamp_min(1).sqrt()
    return codes - codes.mean(dim=0)


class MomentAccumulator:
    """Second moments of samples of C features in K classes, gathered batch by batch without keeping the samples.

    Sums are taken about the mean of the first batch: raw sums of features far from zero cancel badly. Each batch is
    multiplied in its own precision and added in float64.
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
        self._gram += (shifted.T @ shifted).double().cpu()
        self._sums += (onehot.T @ shifted).double().cpu()
        self._counts += onehot.sum(dim=0).double().cpu()

    def finish(self) -> "Moments":
        """Return the centred moments.

        Raises:
            PruningError: fewer than two classes among the samples.
        """
        if self._shift is None or int((self._counts > 0).sum()) < 2:
            raise PruningError(
                "the calibration images hold fewer than two classes, which discriminant information cannot tell "
                "apart; raise the number of images or mix the classes"
            )
        total, samples = self._sums.sum(dim=0), self._counts.sum()
        scatter = self._gram - torch.outer(total, total) / samples
        cross = (self._sums - self._counts[:, None] * total / samples).T
        mean = total / samples + self._shift.double().cpu()
        return Moments(scatter, cross.contiguous(), self._counts, mean)


@dataclass(frozen=True)
class Moments:
    """Centred second moments of a layer's features.

    Attributes:
        scatter: S = X'X, shape (C, C).
        cross: X'Y with one-hot labels, shape (C, K).
        counts: samples per class, shape (K,).
        mean: of each feature, shape (C,).
    """

    scatter: Tensor
    cross: Tensor
    counts: Tensor
    mean: Tensor

    def between(self, unit: bool = True) -> Tensor:
        """Return S_B = X'Y Y'X of shape (C, C), with the label scaling of `label_codes`; empty classes add nothing."""
        targets = self.cross / self.counts.clamp_min(1).sqrt() if unit else self.cross
        return targets @ targets.T

    def power(self) -> Tensor:
        """Return E[x^2] of each feature, uncentred. Shape (C,)."""
        return self.scatter.diagonal().clamp_min(0) / self.counts.sum() + self.mean.square()

    def standardised(self) -> "Moments":
        """Return the moments of the same features scaled to unit length; constant features become zero."""
        scale = _live_scale(self.scatter)
        scatter = self.scatter * torch.outer(scale, scale)
        return Moments(scatter, self.cross * scale[:, None], self.counts, self.mean * scale)

    def take(self, features: Tensor) -> "Moments":
        """Return the moments of some of the features."""
        return Moments(self.scatter[features][:, features], self.cross[features], self.counts, self.mean[features])


def _live_scale(scatter: Tensor) -> Tensor:
    """Return 1 / sqrt(diagonal) where a feature varies beyond rounding, else 0. Shape (C,)."""
    variance = scatter.diagonal().clamp_min(0)
    alive = variance > 1e-12 * variance.max()
    return torch.where(alive, variance.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), torch.zeros_like(variance))


def ridge_for(scatter: Tensor, relative: float) -> float:
    """Return rho = relative * mean of the scatter's diagonal (1 where all features are constant)."""
    return relative * float(scatter.diagonal().mean()) or 1.0


def ridge_inverse(scatter: Tensor, ridge: float) -> Tensor:
    """Return (S + rho I)^-1, shape (C, C)."""
    eye = torch.eye(len(scatter), dtype=scatter.dtype)
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge * eye))
    return inverse


COMPACT_BELOW = 0.75  # share of rows alive: copying at every removal would cost more than the updates


class RidgeInformation:
    """The ridge solution for features with scatter S and between-target scatter S_B, and what channels are worth.

    Holds G = (S + rho I)^-1 and V = G S_B G (which is WW' for the ridge weights W, whatever the number of targets).
    Removing channel j with g = G[:, j], q = G_jj costs O(C^2): G falls by gg'/q, V becomes P V P' with
    P = I - g e_j'/q. Indices keep their meaning while channels are removed.

    Args:
        scatter: S, shape (C, C).
        between: S_B = X'Y Y'X, shape (C, C).
        ridge: rho > 0, on the scale of S.
    """

    def __init__(self, scatter: Tensor, between: Tensor, ridge: float) -> None:
        self._inverse = ridge_inverse(scatter, ridge)
        self._outer = self._inverse @ between @ self._inverse
        self._ridge = ridge
        self._channels = len(scatter)
        self._rows = torch.arange(len(scatter))  # which channel each row is, ascending
        self._alive = torch.ones(len(scatter), dtype=torch.bool)  # of the rows
        self.information = float((self._inverse * between).sum())

    def drops(self) -> Tensor:
        """Return what DI would lose without each channel, exactly; infinite for removed ones. Shape (C,)."""
        return self._by_channel(self._outer.diagonal() / self._inverse.diagonal())

    def differential(self) -> Tensor:
        """Return dDI/dm_c = 2 rho ||W_c||^2 of a mask m = 1 on each channel; infinite for removed ones."""
        return self._by_channel(2 * self._ridge * self._outer.diagonal())

    def drop_of(self, channels: Tensor) -> float:
        """Return what DI would lose without a set of channels (none removed before), exactly: tr(G_gg^-1 V_gg)."""
        rows = torch.nonzero(torch.isin(self._rows, channels)).flatten()
        block = self._inverse[rows][:, rows]
        return float(torch.linalg.solve(block, self._outer[rows][:, rows]).diagonal().sum())

    def remove(self, channel: int) -> float:
        """Remove a channel and return what DI loses."""
        row = int(torch.searchsorted(self._rows, channel))
        inverse, outer = self._inverse, self._outer
        pivot, energy = float(inverse[row, row]), float(outer[row, row])
        step = inverse[row] / pivot
        across = outer[row] - (energy / 2) * step
        inverse.addr_(step, step, alpha=-pivot)
        outer.addr_(step, across, alpha=-1.0).addr_(across, step, alpha=-1.0)
        self.information -= energy / pivot
        self._forget(torch.tensor([row]))
        return energy / pivot

    def remove_all(self, channels: Tensor) -> None:
        """Remove several channels at once: one pass over the matrices instead of one for each."""
        rows = torch.searchsorted(self._rows, channels.sort().values)
        inverse, outer = self._inverse[rows], self._outer[rows]
        step = torch.linalg.solve(inverse[:, rows], inverse)
        energies = outer[:, rows]
        self.information -= float(torch.linalg.solve(inverse[:, rows], energies).diagonal().sum())
        across = outer - (energies / 2) @ step
        self._inverse.addmm_(inverse.T, step, alpha=-1.0)
        self._outer.addmm_(step.T, across, alpha=-1.0).addmm_(across.T, step, alpha=-1.0)
        self._forget(rows)

    def among(self, channels: Tensor) -> "RidgeInformation":
        """Return a small copy in which only these channels can be removed; their drops are those of the whole."""
        rows = torch.searchsorted(self._rows, channels.sort().values)
        small = copy.copy(self)
        small._inverse, small._outer = self._inverse[rows][:, rows], self._outer[rows][:, rows]
        small._rows, small._alive = self._rows[rows], self._alive[rows]
        return small

    def _forget(self, rows: Tensor) -> None:
        """Mark rows as removed; drop them all from time to time. Their entries are zero up to rounding."""
        self._alive[rows] = False
        if int(self._alive.sum()) >= COMPACT_BELOW * len(self._alive):
            return
        kept = torch.nonzero(self._alive).flatten()
        self._inverse, self._outer = self._inverse[kept][:, kept], self._outer[kept][:, kept]
        self._rows, self._alive = self._rows[kept], self._alive[kept]

    def _by_channel(self, values: Tensor) -> Tensor:
        spread = torch.full((self._channels,), torch.inf, dtype=torch.float64)
        spread[self._rows] = values.clamp_min(0).where(self._alive, torch.inf)
        return spread


def flattened_scores(maps: Tensor, codes: Tensor, ridge: float) -> Tensor:
    """Return the authors' score of each channel of whole feature maps: -dL/dm_c of L = tr(YY'A), at m = 1.

    With T = A Y Y'A (samples x samples) it is 2 * sum over positions p of x_cp' T x_cp, at a price that does not
    depend on the number of classes.

    Args:
        maps: shape (N, C, positions), any float precision; centred here.
        codes: centred label codes, shape (N, K), float64.
        ridge: rho, relative to the mean of the Gram matrix's diagonal.
    """
    samples, channels, _ = maps.shape
    centred = (maps - maps.mean(dim=0)).reshape(samples, -1)
    gram = (centred @ centred.T).double().cpu()
    rho = ridge_for(gram, ridge)
    factor = torch.linalg.cholesky(gram + rho * torch.eye(samples, dtype=torch.float64))
    solved = torch.cholesky_solve(codes, factor)
    kernel = rho * (solved @ solved.T)  # times rho: free of the scale of the maps, so that batches can be added
    products = (centred * (kernel.to(centred) @ centred)).reshape(samples, channels, -1)
    return 2 * products.sum(dim=(0, 2)).double().cpu()
