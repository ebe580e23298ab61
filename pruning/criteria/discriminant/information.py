"""Discriminant Information in closed form. Hou & Kung, arXiv 2005.13796 (ICPR 2020).

DI is how much of the energy of a target a ridge rule explains from a layer's features:

    DI = tr((S + rho I)^-1 S_B) = ||Y||^2 - min_W (||Y - X W||^2 + rho ||W||^2)

with centred features X (samples x features), centred targets Y (samples x targets), S = X'X and S_B = X'Y Y'X. With
label codes as targets it measures how well the classes can be told apart. DI never falls when features are added, so
the DI that is lost without a channel scores that channel.

Everything here is float64: the updates of an elimination lose digits in float32.

Where this differs from the authors' code: they score the flattened maps of single batches (see
`pruning.calibration.flattened_maps`) and remove channels by one-shot sorting; here channels may also be eliminated one
by one with exact leave-one-out drops, labels may be scaled to unit columns, and the target may be anything linear in
the features, such as the outputs of the next layer.
"""

import copy

import torch
from torch import Tensor

# Matrices are copied without their removed rows once fewer than this share is left: copying at every removal would
# take longer than the updates.
COMPACT_BELOW = 0.75


def ridge_inverse(scatter: Tensor, ridge: float) -> Tensor:
    """Return (S + rho I)^-1, shape (C, C)."""
    eye = torch.eye(len(scatter), dtype=scatter.dtype)
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge * eye))
    return inverse


class RidgeInformation:
    """Discriminant Information of a set of channels, and how it falls as channels are removed.

    The object holds G = (S + rho I)^-1 and V = G S_B G, which is WW' of the ridge weights W for any number of targets.
    Removing channel j with g = G[:, j] and q = G_jj takes O(C^2): G becomes G - gg'/q, and V becomes P V P' with
    P = I - g e_j'/q. Channels keep their indices while others are removed.

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
        self._rows = torch.arange(len(scatter))  # channel of each row of the matrices, ascending
        self._alive = torch.ones(len(scatter), dtype=torch.bool)  # whether the channel of each row remains
        self.information = float((self._inverse * between).sum())

    def drops(self) -> Tensor:
        """Return the exact DI lost by removing each channel alone; infinite for removed channels. Shape (C,)."""
        return self._by_channel(self._outer.diagonal() / self._inverse.diagonal())

    def differential(self) -> Tensor:
        """Return dDI/dm_c = 2 rho ||W_c||^2 of a mask m = 1 on each channel; infinite for removed channels."""
        return self._by_channel(2 * self._ridge * self._outer.diagonal())

    def drop_of(self, channels: Tensor) -> float:
        """Return the exact DI lost by removing a set of channels that all remain: tr(G_gg^-1 V_gg)."""
        rows = torch.nonzero(torch.isin(self._rows, channels)).flatten()
        block = self._inverse[rows][:, rows]
        return float(torch.linalg.solve(block, self._outer[rows][:, rows]).diagonal().sum())

    def remove(self, channel: int) -> float:
        """Remove a channel and return the DI lost."""
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
        """Remove several channels in one pass over the matrices instead of one pass per channel."""
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
        """Return a small copy in which only the given channels can be removed; their drops are as in the original."""
        rows = torch.searchsorted(self._rows, channels.sort().values)
        small = copy.copy(self)
        small._inverse, small._outer = self._inverse[rows][:, rows], self._outer[rows][:, rows]
        small._rows, small._alive = self._rows[rows], self._alive[rows]
        return small

    def _forget(self, rows: Tensor) -> None:
        """Mark rows as removed, and copy the matrices without removed rows, whose entries are zero up to rounding."""
        self._alive[rows] = False
        if int(self._alive.sum()) >= COMPACT_BELOW * len(self._alive):
            return
        kept = torch.nonzero(self._alive).flatten()
        self._inverse, self._outer = self._inverse[kept][:, kept], self._outer[kept][:, kept]
        self._rows, self._alive = self._rows[kept], self._alive[kept]

    def _by_channel(self, values: Tensor) -> Tensor:
        by_channel = torch.full((self._channels,), torch.inf, dtype=torch.float64)
        by_channel[self._rows] = values.clamp_min(0).where(self._alive, torch.inf)
        return by_channel
