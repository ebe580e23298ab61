"""What accuracy to expect of widths: a Bayesian linear model in which every group has a curve of its own.

The level of accuracy is a smooth function of log cost plus a parabola in the kept octaves of every group. A group's
parabola is a common one, plus a share of those of the structural coordinates (`search.searchers.structure`), plus a
small one of its own. So a handful of trials teach what a tilt over the stages or a wider stream is worth, and single
groups are told apart only as evidence adds up. How much the three parts count, and how much trials scatter, is chosen
by marginal likelihood; the posterior is exact.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from search.searchers.structure import Floats, Structure

KNOTS = np.linspace(-1.0, 1.0, 7)  # of the bumps over log cost, which is scaled to [-1, 1]
BUMP = 0.5  # their width
POWERS = 2  # a curve is a parabola
COMMON = 2.0  # prior deviations, in units of how much the levels of all trials differ
METHOD = 0.3
TRAINING = 1.0
SHIFT = 0.5  # of a curve from one end of the budgets to their middle, relative to the curve
STRUCTURAL, SINGLE, NOISE_STD = (0.3, 1.0, 3.0), (0.3, 1.0, 3.0), (0.02, 0.06, 0.2)  # grid of the deviations
LEAST_SPREAD = 0.02  # of levels: what differs by less is scatter


@dataclass(frozen=True)
class Networks:
    """Networks that the model is asked of, or told of.

    Attributes:
        kept: log2 of width / dense width, shape (n, groups).
        cost: log cost scaled to [-1, 1], shape (n,).
        method: index of the method of each, shape (n,).
        training: log2 of the share of the full training that each had, shape (n,).
    """

    log2_ratios: Floats
    cost: Floats
    method: NDArray[np.int64]
    training: Floats

    def __len__(self) -> int:
        """Count the networks."""
        return len(self.cost)

    def concatenate(self, other: "Networks") -> "Networks":
        """Return these and others after them."""
        return Networks(
            np.concatenate([self.log2_ratios, other.log2_ratios]),
            np.concatenate([self.cost, other.cost]),
            np.concatenate([self.method, other.method]),
            np.concatenate([self.training, other.training]),
        )


class Surrogate:
    """Posterior over the level of accuracy of any widths.

    Args:
        structure: the coordinates that groups share.
        methods: how many there are.
        networks: networks that were measured, at least one.
        levels: of their accuracy, shape (n,).
        pending: networks that are being tried: counted as if they gave what is expected of them.
    """

    def __init__(
        self, structure: Structure, methods: int, networks: Networks, levels: Floats, pending: Networks | None = None
    ) -> None:
        self._structure, self._methods = structure, methods
        self._middle = float(levels.mean())
        self._unit = max(float(levels.std()), LEAST_SPREAD)
        y = (levels - self._middle) / self._unit
        parts = self._parts(networks)
        self._scales, self._noise_std = self._likeliest(parts, y)
        features = np.concatenate(parts, axis=1)
        self._prior = np.concatenate([np.full(p.shape[1], s) for p, s in zip(parts, self._scales, strict=True)])
        self._set_posterior(features, y)
        if pending is not None and len(pending):
            more = np.concatenate(self._parts(pending), axis=1)
            self._set_posterior(np.concatenate([features, more]), np.concatenate([y, more @ self.mean]))

    def predict(self, networks: Networks) -> tuple[Floats, Floats]:
        """Return the mean and the standard deviation of the levels, without what measurements scatter by."""
        features = np.concatenate(self._parts(networks), axis=1)
        spread = solve_triangular(self._cholesky, (features * self._prior).T, lower=True)
        deviation = np.sqrt((spread**2).sum(axis=0)) * self._unit
        return features @ self.mean * self._unit + self._middle, deviation

    def posterior_samples(self, count: int, random: np.random.Generator) -> Floats:
        """Return weights that the posterior holds possible, shape (count, features)."""
        noise = solve_triangular(self._cholesky.T, random.standard_normal((len(self.mean), count)))
        return np.asarray(self.mean + (noise * self._prior[:, None]).T)

    def gradient(self, weights: Floats, networks: Networks) -> Floats:
        """Return by how much each level grows per octave of each group, shape (n, groups).

        Args:
            weights: of the features, a row per network or one for all.
        """
        groups = networks.log2_ratios.shape[1]
        size = POWERS * (1 + len(self._structure))
        start = 1 + len(KNOTS)
        shared = weights[:, start : start + size] + weights[:, start + size : start + 2 * size] * networks.cost[:, None]
        single = weights[:, start + 2 * size : start + 2 * size + POWERS * groups]
        rates = np.zeros_like(networks.log2_ratios)
        for power, rate in enumerate((np.ones_like(networks.log2_ratios), networks.log2_ratios / 2)):
            own = shared[:, power::POWERS]
            curve = own[:, :1] + own[:, 1:] @ self._structure.directions.T
            rates = rates + rate * (curve + single[:, power * groups : (power + 1) * groups]) / groups
        return np.asarray(rates * self._unit)

    def best_method(self, networks: Networks, among: int) -> int:
        """Return which of the first `among` methods has the highest mean over these networks."""
        means = [
            self.predict(
                Networks(networks.log2_ratios, networks.cost, np.full(len(networks), index), networks.training)
            )[0].mean()
            for index in range(among)
        ]
        return int(np.argmax(means))

    def _parts(self, networks: Networks) -> list[Floats]:
        """Return the features, in parts that have a prior deviation each."""
        groups = max(1, networks.log2_ratios.shape[1])
        powers = (networks.log2_ratios, networks.log2_ratios**2 / 4)
        directions = np.concatenate([np.ones((groups, 1)), self._structure.directions], axis=1)
        # Coordinate by coordinate, the powers of one side by side.
        shared = np.stack([each @ directions / groups for each in powers], axis=2).reshape(len(networks), -1)
        moved = shared * networks.cost[:, None]
        methods = np.eye(self._methods)[networks.method]
        return [
            np.ones((len(networks), 1)),
            np.exp(-(((networks.cost[:, None] - KNOTS) / BUMP) ** 2) / 2),
            shared[:, :POWERS],
            shared[:, POWERS:],
            moved[:, :POWERS],
            moved[:, POWERS:],
            np.concatenate(powers, axis=1) / groups,
            np.concatenate([methods, methods * networks.cost[:, None]], axis=1),
            networks.training[:, None],
        ]

    def _likeliest(self, parts: Sequence[Floats], y: Floats) -> tuple[tuple[float, ...], float]:
        grams = [part @ part.T for part in parts]
        best: tuple[float, tuple[float, ...], float] | None = None
        for structural, single in itertools.product(STRUCTURAL, SINGLE):
            if single > structural:
                continue
            scales = (
                COMMON, 1.0, COMMON, structural, COMMON * SHIFT, structural * SHIFT,
                single, METHOD, TRAINING,
            )  # fmt: skip
            covariance = np.asarray(sum(scale**2 * gram for scale, gram in zip(scales, grams, strict=True)))
            values, vectors = np.linalg.eigh(covariance)
            turned = (vectors.T @ y) ** 2
            for noise_std in NOISE_STD:
                total = np.maximum(values, 0.0) + noise_std**2
                fit = -0.5 * float((turned / total + np.log(total)).sum())
                if best is None or fit > best[0]:
                    best = fit, scales, noise_std
        assert best is not None
        return best[1], best[2]

    def _set_posterior(self, features: Floats, y: Floats) -> None:
        scaled = features * self._prior / self._noise_std
        self._cholesky = np.linalg.cholesky(scaled.T @ scaled + np.eye(scaled.shape[1]))
        towards = solve_triangular(self._cholesky, scaled.T @ (y / self._noise_std), lower=True)
        self.mean = self._prior * solve_triangular(self._cholesky.T, towards)
