"""The damage of each channel of a group, from all batches in which some of its channels were hidden.

A model of damage that adds up is fitted by ridge regression. For a set A of k channels out of n,

    error(A) = m(k / n) * mean over A of share_j,

where share_j is the damage of channel j relative to that of the mean channel, and m(f) the mean error of random sets of
the fraction f: a power law, fitted to the fractions that were hidden. Only the normal equations are kept, so that any
number of batches takes the space of one matrix. Ding et al., ICML 2019 (arXiv 1905.04748), average the errors of one
half and forget them at its end; keeping them is an addition of this project.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DEPTHS = 8  # fractions of about 1/2, 1/4, ..., 1/256 of the alive channels are told apart
RIDGE = 0.02  # weight of the assumption that all channels do equal damage
SUMS = ("gram", "target", "pending", "pending_fractions", "random")


class Evidence:
    """The normal equations of a group; `state_dict` holds them.

    Args:
        width: number of channels of the group.
    """

    def __init__(self, width: int) -> None:
        self._gram = torch.zeros(width, width, dtype=torch.float64)
        self._target = torch.zeros(width, dtype=torch.float64)  # of sets before the last cut
        # Of sets since then, by depth; their errors are not divided by m(f) before it is known well.
        self._pending = torch.zeros(DEPTHS, width, dtype=torch.float64)
        self._pending_fractions = torch.zeros(DEPTHS, 2, dtype=torch.float64)  # sum of log f, number of sets
        self._random = torch.zeros(DEPTHS, 3, dtype=torch.float64)  # the same of random sets, and the sum of errors

    def add(self, hidden: Tensor, errors: Tensor, alive: int, random: bool) -> None:
        """Add sets of hidden channels and the relative output errors that they caused.

        Args:
            hidden: channels, int64, shape (sets, channels of a set).
            errors: shape (sets,); a set whose error is not finite is left out.
            alive: number of channels that were alive.
            random: whether every alive channel might have been drawn.
        """
        known = torch.isfinite(errors)
        hidden, errors = hidden[known], errors[known].double()
        sets, size = hidden.shape
        if not sets or not size:
            return
        rows = torch.zeros(sets, len(self._target), dtype=torch.float64).scatter_(1, hidden, 1 / size)
        fraction = size / alive
        depth = min(max(round(-math.log2(fraction)), 1), DEPTHS) - 1
        self._gram += rows.T @ rows
        self._pending[depth] += errors @ rows
        logs = torch.tensor([sets * math.log(fraction), sets], dtype=torch.float64)
        self._pending_fractions[depth] += logs
        if random:
            self._random[depth] += torch.cat([logs, errors.sum().view(1)])

    def shares(self, alive: Tensor) -> Tensor:
        """Return the damage of every channel relative to the mean of the alive ones; ones before any evidence.

        Args:
            alive: bool, shape (width,).

        Returns:
            Shape (width,), float64; noise can make a share negative.
        """
        shares = self._solved()
        return shares / self._mean(shares, alive)

    def damage(self, fraction: float) -> float:
        """Return m(f), the mean relative output error of hiding a random fraction of the alive channels.

        Without random sets since the last cut it is the fraction itself.
        """
        factor, power = self._law()
        return factor * float(fraction**power)

    def restart(self, alive: Tensor) -> None:
        """Forget how damage grows with the number of hidden channels, and keep what is known of the channels left.

        Args:
            alive: the channels that a cut has left; bool, shape (width,).
        """
        mean = self._mean(self._solved(), alive)
        self._target = (self._target + self._relative()) / mean
        for sums in (self._pending, self._pending_fractions, self._random):
            sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the normal equations."""
        return {name: getattr(self, f"_{name}").clone() for name in SUMS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore sums that `state_dict` returned."""
        for name in SUMS:
            setattr(self, f"_{name}", state[name].clone())

    def _solved(self) -> Tensor:
        ones = torch.ones_like(self._target)
        system = self._gram + RIDGE * torch.eye(len(ones), dtype=torch.float64)
        shares: Tensor = ones + torch.linalg.solve(system, self._target + self._relative() - self._gram @ ones)
        return shares

    def _mean(self, shares: Tensor, alive: Tensor) -> float:
        mean = float(shares[alive].mean()) if alive.any() else 0.0
        return mean if mean > 0 else 1.0

    def _relative(self) -> Tensor:
        """Return the right-hand side of the sets since the last cut, with errors relative to those of random sets."""
        total = torch.zeros_like(self._target)
        for sums, (log_fractions, sets) in zip(self._pending, self._pending_fractions.tolist(), strict=True):
            if sets:
                expected = self.damage(math.exp(log_fractions / sets))
                total += sums / max(expected, torch.finfo(torch.float64).tiny)
        return total

    def _law(self) -> tuple[float, float]:
        """Return c and p of m(f) = c * f^p: least squares in log-log over the depths, weighted by the random sets.

        Of a single depth the power is 1.
        """
        logs, sets, errors = self._random[(self._random[:, 1] > 0) & (self._random[:, 2] > 0)].unbind(1)
        if not len(sets):
            return 1.0, 1.0
        x, y, weight = logs / sets, (errors / sets).log(), sets / sets.sum()
        x_mean, y_mean = weight @ x, weight @ y
        spread = float(weight @ (x - x_mean).square())
        power = float(weight @ ((x - x_mean) * (y - y_mean))) / spread if spread > 0 else 1.0
        return math.exp(float(y_mean - power * x_mean)), power
