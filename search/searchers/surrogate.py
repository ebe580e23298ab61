"""The surrogate: a Bayesian linear model that predicts the accuracy of widths from a curve for every group.

The arcsine of the root of the accuracy (`search.searchers.observation`) is modelled as a smooth function of log cost
plus a parabola in the log2 width ratio of every group. The parabola of a group is the sum of one that all groups share,
of those of the structural coordinates (`search.searchers.structure`) times the group's place along them, and of a small
one of its own. So a handful of trials show the effect of a tilt over the stages or of wider residual streams, and
single groups are told apart only as evidence adds up. The prior deviations of these parts and the standard deviation of
the noise are chosen by marginal likelihood over a grid; the posterior is exact.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from search.searchers.structure import Structure
from spaces.projection import Floats

CENTERS = np.linspace(-1.0, 1.0, 7)  # of the radial basis functions of log cost, which is scaled to [-1, 1]
LENGTH_SCALE = 0.5  # of these functions
POWERS = 2  # a curve is a parabola
# Prior deviations of the weights, in units of the standard deviation of the values of all trials
COMMON = 2.0  # of the parabola that all groups share
METHOD = 0.3  # of the offset of a method, and of its slope over log cost
TRAINING = 1.0  # of the slope over the log2 share of the training
SHIFT = 0.5  # of the change of a curve from the middle of the cost range to an end, relative to the curve
# Of these the most likely are taken: for the parabolas of coordinates, for those of single groups, for the noise.
STRUCTURAL, SINGLE, NOISE_STD = (0.3, 1.0, 3.0), (0.3, 1.0, 3.0), (0.02, 0.06, 0.2)
RANK_TOLERANCE = 1e-12  # share of the largest eigenvalue, under which one is rounding
MIN_STD = 0.02  # of the values: smaller differences are noise


@dataclass(frozen=True)
class Networks:
    """Networks as the model sees them.

    Attributes:
        log2_ratios: log2 of width / dense width, shape (n, groups).
        cost: log cost scaled to [-1, 1], shape (n,).
        method: index of the method, shape (n,).
        training: log2 of the share of the full training that the network has had, shape (n,).
    """

    log2_ratios: Floats
    cost: Floats
    method: NDArray[np.int64]
    training: Floats


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of a surrogate before it has seen a value, in units of that of all values.

    Attributes:
        parts: of the weights of each part of the features.
        noise: of the noise.
    """

    parts: tuple[float, ...]
    noise: float


class Surrogate:
    """Posterior over the accuracy of any widths, on the scale of `search.searchers.observation.arcsine_sqrt`.

    Args:
        structure: the coordinates that groups share.
        methods: number of methods.
        networks: the measured networks, at least one.
        values: their accuracies on that scale, shape (n,).
        pending: networks without an accuracy yet; they count as if they had the expected one.
        deviations: of the prior; None takes those that make the values most likely.

    Attributes:
        deviations: of the prior.
        mean: posterior mean of the weights of the features, shape (features,).
    """

    def __init__(
        self,
        structure: Structure,
        methods: int,
        networks: Networks,
        values: Floats,
        pending: Networks | None = None,
        deviations: Deviations | None = None,
    ) -> None:
        self._structure, self._methods = structure, methods
        self._offset = float(values.mean())
        self._unit = max(float(values.std()), MIN_STD)
        y = (values - self._offset) / self._unit
        parts = self._parts(networks)
        self.deviations = deviations or _maximum_likelihood(parts, y)
        features = np.concatenate(parts, axis=1)
        self._prior = np.repeat(self.deviations.parts, [part.shape[1] for part in parts])
        self._set_posterior(features, y)
        if pending is not None and len(pending.cost):
            more = np.concatenate(self._parts(pending), axis=1)
            self._set_posterior(np.concatenate([features, more]), np.concatenate([y, more @ self.mean]))

    def predict(self, networks: Networks) -> tuple[Floats, Floats]:
        """Return the mean and the standard deviation of the values without noise, shapes (n,)."""
        features = np.concatenate(self._parts(networks), axis=1)
        spread = solve_triangular(self._cholesky, (features * self._prior).T, lower=True)
        deviation = np.sqrt((spread**2).sum(axis=0)) * self._unit
        return features @ self.mean * self._unit + self._offset, deviation

    def posterior_samples(self, count: int, random: np.random.Generator) -> Floats:
        """Draw weights of the features from the posterior, shape (count, features)."""
        noise = solve_triangular(self._cholesky.T, random.standard_normal((len(self.mean), count)))
        return np.asarray(self.mean + (noise * self._prior[:, None]).T)

    def gradient(self, weights: Floats, networks: Networks) -> Floats:
        """Return the gradient of the values by the log2 width ratios, shape (n, groups).

        Args:
            weights: of the features, shape (n, features), or (1, features) for the same weights at every network.
        """
        groups = networks.log2_ratios.shape[1]
        size = POWERS * (1 + len(self._structure))
        start = 1 + len(CENTERS)
        shared = weights[:, start : start + size] + weights[:, start + size : start + 2 * size] * networks.cost[:, None]
        single = weights[:, start + 2 * size : start + 2 * size + POWERS * groups]
        gradient = np.zeros_like(networks.log2_ratios)
        for power, derivative in enumerate((np.ones_like(networks.log2_ratios), networks.log2_ratios / 2)):
            own = shared[:, power::POWERS]
            coefficients = own[:, :1] + own[:, 1:] @ self._structure.directions.T
            coefficients = coefficients + single[:, power * groups : (power + 1) * groups]
            gradient = gradient + derivative * coefficients / groups
        return np.asarray(gradient * self._unit)

    def best_method(self, networks: Networks, among: int) -> int:
        """Return the index of the method with the highest mean over these networks, among the first `among` methods."""
        means = [
            self.predict(replace(networks, method=np.full_like(networks.method, index)))[0].mean()
            for index in range(among)
        ]
        return int(np.argmax(means))

    def _parts(self, networks: Networks) -> list[Floats]:
        """Return the features, a part per prior deviation, each of shape (n, features of the part)."""
        groups = max(1, networks.log2_ratios.shape[1])
        powers = (networks.log2_ratios, networks.log2_ratios**2 / 4)
        directions = np.concatenate([np.ones((groups, 1)), self._structure.directions], axis=1)
        # Coordinate by coordinate; the powers of one coordinate stand side by side.
        shared = np.stack([power @ directions / groups for power in powers], axis=2).reshape(len(networks.cost), -1)
        shifted = shared * networks.cost[:, None]
        methods = np.eye(self._methods)[networks.method]
        return [
            np.ones((len(networks.cost), 1)),
            np.exp(-(((networks.cost[:, None] - CENTERS) / LENGTH_SCALE) ** 2) / 2),
            shared[:, :POWERS],
            shared[:, POWERS:],
            shifted[:, :POWERS],
            shifted[:, POWERS:],
            np.concatenate(powers, axis=1) / groups,
            np.concatenate([methods, methods * networks.cost[:, None]], axis=1),
            networks.training[:, None],
        ]

    def _set_posterior(self, features: Floats, y: Floats) -> None:
        """Condition the weights on values; the posterior covariance is kept as the Cholesky factor of its inverse."""
        scaled = features * self._prior / self.deviations.noise
        self._cholesky = np.linalg.cholesky(scaled.T @ scaled + np.eye(scaled.shape[1]))
        projected = solve_triangular(self._cholesky, scaled.T @ (y / self.deviations.noise), lower=True)
        self.mean = self._prior * solve_triangular(self._cholesky.T, projected)


def _maximum_likelihood(parts: Sequence[Floats], y: Floats) -> Deviations:
    """Return the deviations of the prior that make the values `y` most likely."""
    features = np.concatenate(parts, axis=1)
    sizes = [part.shape[1] for part in parts]
    # With more trials than features the same likelihood follows from the smaller matrix of the features.
    is_tall = len(y) > features.shape[1]
    grams = [part @ part.T for part in parts] if not is_tall else []
    inner, projected = (features.T @ features, features.T @ y) if is_tall else (features, y)
    best: tuple[float, Deviations] | None = None
    for structural, single in itertools.product(STRUCTURAL, SINGLE):
        if single > structural:
            continue
        scales = (
            COMMON, 1.0, COMMON, structural, COMMON * SHIFT, structural * SHIFT,
            single, METHOD, TRAINING,
        )  # fmt: skip
        if is_tall:
            values, rotated, rest = _tall_spectrum(inner, projected, np.repeat(scales, sizes), y)
        else:
            covariance = np.asarray(sum(scale**2 * gram for scale, gram in zip(scales, grams, strict=True)))
            values, vectors = np.linalg.eigh(covariance)
            rotated, rest = (vectors.T @ y) ** 2, 0.0
        others = len(y) - len(values)
        for noise_std in NOISE_STD:
            variances = np.maximum(values, 0.0) + noise_std**2
            log_likelihood = -0.5 * float((rotated / variances + np.log(variances)).sum())
            log_likelihood -= 0.5 * (rest / noise_std**2 + others * float(np.log(noise_std**2)))
            if best is None or log_likelihood > best[0]:
                best = log_likelihood, Deviations(scales, noise_std)
    assert best is not None
    return best[1]


def _tall_spectrum(inner: Floats, projected: Floats, scales: Floats, y: Floats) -> tuple[Floats, Floats, float]:
    """Return the spectrum of the covariance of values in as many dimensions as there are features.

    Args:
        inner: products of the features, shape (features, features).
        projected: products of the features and the values, shape (features,).
        scales: prior deviation of every feature.
        y: the values, shape (n,), n above the number of features.

    Returns:
        Eigenvalues above 0, the squares of the values along their vectors, and the sum of the squares of the rest.
    """
    values, vectors = np.linalg.eigh(scales[:, None] * inner * scales)
    is_spanned = values > RANK_TOLERANCE * values[-1]
    rotated = (vectors.T @ (scales * projected))[is_spanned] ** 2 / values[is_spanned]
    return values[is_spanned], rotated, max(0.0, float(y @ y - rotated.sum()))
