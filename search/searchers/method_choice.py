"""Which method the next trial takes: the one most likely to be best on this network and data, per second of a trial.

Accuracies of different methods are compared at equal cost. Over log cost, accuracy follows a curve that all methods
share, and every method differs from it by an offset and a slope of its own; a Bayesian linear model gives their
posterior. A method's share of the proposals is its probability of being the most accurate at the cost of the next
trial, divided by the time that a trial with it takes there: of two methods that are equally accurate, the one that
takes five times as long is proposed a fifth as often. The next trial takes the method that is furthest behind its
share. Pending trials count, so that parallel workers do not all take the same method, and the choice is not random.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.searchers.observation import Observation, arcsine_sqrt

EXPLORED = 0.1  # share of the proposals that is spread evenly over all methods, whatever their accuracy
# Difference of accuracy on the scale of `arcsine_sqrt`: 0.24 points around 98.6%, 0.8 around 80%, 1 around 50%. Methods
# within this difference of the best count as equally good, and their time decides.
INDIFFERENT = 0.01
# Times are compared in powers of two, and times below this count as equal: other load on the machine must not change
# the trials of a search.
LEAST_SECONDS = 5.0
POSTERIOR_SAMPLES = 2000  # from which the probabilities of being best are estimated
METHOD_STD = 2.0  # prior deviation of the offsets and slopes of methods, relative to the noise
CURVE_STD = 1e3  # the same of the common curve, which is unknown before any trial
PRIOR_TRIALS, PRIOR_NOISE_STD = 3.0, 0.05  # prior of the noise: the number of trials that it counts as, its deviation


def choose_method(methods: Sequence[str], tried: Sequence[Observation], fraction: float, seed: int) -> str:
    """Return the method for a trial at a fraction of the scaled budget; of equals the first.

    Args:
        methods: to choose among; trials with other methods count for the common curve only.
        tried: trials so far, pending ones too.
        seed: of the posterior samples.
    """
    shares = method_shares(methods, tried, fraction, seed)
    counts = Counter(trial.method for trial in tried)
    total = 1 + sum(counts[name] for name in methods)
    return max(methods, key=lambda name: shares[name] * total - counts[name])


def method_shares(methods: Sequence[str], tried: Sequence[Observation], fraction: float, seed: int) -> dict[str, float]:
    """Return every method's share of the proposals at a fraction of the scaled budget; the shares add up to 1.

    A failed trial counts as one with the worst accuracy of all.
    """
    proposals = [Observation(name, fraction) for name in methods]
    every = [*methods, *sorted({trial.method for trial in tried} - set(methods))]
    ended = [trial for trial in tried if trial.accuracy is not None or trial.failed]
    worst = min((trial.accuracy for trial in ended if trial.accuracy is not None), default=0.0)
    values = [arcsine_sqrt(worst if trial.accuracy is None else trial.accuracy) for trial in ended]
    accuracy = _MethodModel(every, ended, values)
    accuracy.add_pending([trial for trial in tried if trial.accuracy is None and not trial.failed])
    probabilities = accuracy.probabilities_of_best(proposals, INDIFFERENT, np.random.default_rng(seed))
    timed = [trial for trial in ended if trial.seconds and not trial.failed]
    seconds = _MethodModel(every, timed, [math.log(max(LEAST_SECONDS, trial.seconds or 0.0)) for trial in timed])
    means = seconds.means(proposals)
    weights = probabilities * 2.0 ** -np.round((means - means.min()) / math.log(2))
    shares = (1 - EXPLORED) * weights / weights.sum() + EXPLORED / len(methods)
    return dict(zip(methods, shares.tolist(), strict=True))


class _MethodModel:
    """Values over log cost: a common parabola, and for every method an offset and a slope with a narrow prior.

    Bayesian linear regression with a conjugate, normal-inverse-gamma prior.

    Args:
        methods: the names of all methods of the trials.
        tried: the trials that are fitted.
        values: their values, one for every trial.
    """

    def __init__(self, methods: Sequence[str], tried: Sequence[Observation], values: Sequence[float]) -> None:
        self._methods = {name: index for index, name in enumerate(methods)}
        self._logs = [math.log(trial.fraction) for trial in tried] or [0.0]
        rows, y = self._rows(tried), np.array(values, dtype=np.float64)
        precision = np.full(3 + 2 * len(methods), METHOD_STD**-2)
        precision[:3] = CURVE_STD**-2
        self._precision = np.diag(precision) + rows.T @ rows
        self._mean = np.linalg.solve(self._precision, rows.T @ y)
        residual = float(y @ y - self._mean @ self._precision @ self._mean)
        self._degrees_of_freedom = PRIOR_TRIALS + len(y)
        self._variance = (PRIOR_TRIALS * PRIOR_NOISE_STD**2 + max(0.0, residual)) / self._degrees_of_freedom

    def add_pending(self, pending: Sequence[Observation]) -> None:
        """Count pending trials as if they had the expected value: deviations become smaller, means stay."""
        rows = self._rows(pending)
        self._precision = self._precision + rows.T @ rows

    def means(self, at: Sequence[Observation]) -> NDArray[np.float64]:
        """Return the expected values of trials, shape (trials,)."""
        return np.asarray(self._rows(at) @ self._mean)

    def probabilities_of_best(
        self, at: Sequence[Observation], margin: float, random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the probability of every trial to be within `margin` of their highest value, shape (trials,)."""
        rows = self._rows(at)
        cholesky = np.linalg.cholesky(self._precision)
        deviations = np.linalg.solve(cholesky.T, random.standard_normal((len(self._mean), POSTERIOR_SAMPLES)))
        chi_square = random.chisquare(self._degrees_of_freedom, POSTERIOR_SAMPLES)
        scale = np.sqrt(self._variance * self._degrees_of_freedom / chi_square)
        values = rows @ (self._mean[:, None] + deviations * scale)
        return np.asarray((values >= values.max(0) - margin).mean(1))

    def _rows(self, tried: Sequence[Observation]) -> NDArray[np.float64]:
        """Return the features of trials, shape (trials, 3 + 2 * methods); x is log cost, scaled to about [-1, 1]."""
        low, high = min(self._logs), max(self._logs)
        rows = np.zeros((len(tried), 3 + 2 * len(self._methods)))
        for row, trial in zip(rows, tried, strict=True):
            x = (2 * math.log(trial.fraction) - low - high) / max(high - low, 1.0)
            own = 3 + 2 * self._methods[trial.method]
            row[:3] = 1.0, x, x * x
            row[own : own + 2] = 1.0, x
        return rows
