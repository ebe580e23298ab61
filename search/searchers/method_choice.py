"""Which method the next trial takes: the one that seems to pay on this network and data, for the time it takes.

Accuracies of different methods are compared at equal cost. Over log cost, accuracy follows a curve that all methods
share, and each method lies above or below it by an offset and a slope of its own; a Bayesian linear model says how
surely. A method's share of the proposals is its chance to be the most accurate at the cost in question, per second
that a trial with it takes there: of two methods that are equally good, the one that takes five times as long is
proposed a fifth as often. The next trial goes to the method that is furthest behind its share, running trials counted,
so that workers side by side do not all take the same one and no draw of luck is in it.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.searchers.observation import Observation, arcsine_sqrt

EXPLORED = 0.1  # share of the proposals that is spread evenly over all methods
# Of accuracy, on the scale of `arcsine_sqrt`: 0.24 points around 98.6%, 0.8 around 80%, 1 around 50%. Methods this
# close to the best count as equally good, and their time decides.
INDIFFERENT = 0.01
# Times are compared in powers of two, and below this not at all: what else the machine does must not change a search.
LEAST_SECONDS = 5.0
DRAWS = 2000  # from the posterior, for the chances to be best
SPREAD_OF_METHODS = 2.0  # of offsets and slopes among methods, relative to what trials of one method scatter by
VAGUE = 1e3  # the same of the common curve: nothing is known of it
PRIOR_TRIALS, PRIOR_SCATTER = 3.0, 0.05  # the scatter before anything is seen, and how many trials that is worth


def choose_method(methods: Sequence[str], tried: Sequence[Observation], share: float, seed: int) -> str:
    """Return the method for a trial at `share` of the scaled budget; of equals the first.

    Args:
        methods: to choose among; trials with others count for the common curve only.
        tried: trials so far, running ones too.
        seed: of the draws that the chances are estimated with.
    """
    wanted = method_shares(methods, tried, share, seed)
    counts = Counter(each.method for each in tried)
    total = 1 + sum(counts[name] for name in methods)
    return max(methods, key=lambda name: wanted[name] * total - counts[name])


def method_shares(methods: Sequence[str], tried: Sequence[Observation], share: float, seed: int) -> dict[str, float]:
    """Return the share of the proposals that each method deserves at a cost; they add up to 1."""
    every = [*methods, *sorted({each.method for each in tried} - set(methods))]
    measured = [each for each in tried if each.accuracy is not None or each.failed]
    worst = min((each.accuracy for each in measured if each.accuracy is not None), default=0.0)
    accuracy = _Model(every, measured, [arcsine_sqrt(worst if e.accuracy is None else e.accuracy) for e in measured])
    accuracy.expect([each for each in tried if each.accuracy is None and not each.failed])
    chances = accuracy.chances(methods, share, INDIFFERENT, np.random.default_rng(seed))
    timed = [each for each in measured if each.seconds and not each.failed]
    seconds = _Model(every, timed, [math.log(max(LEAST_SECONDS, each.seconds or 0.0)) for each in timed])
    means = seconds.means(methods, share)
    deserved = chances * 2.0 ** -np.round((means - means.min()) / math.log(2))
    shares = (1 - EXPLORED) * deserved / deserved.sum() + EXPLORED / len(methods)
    return dict(zip(methods, shares.tolist(), strict=True))


class _Model:
    """Values over log cost: a common parabola, and per method an offset and a slope that are small a priori.

    Conjugate Bayesian linear regression (normal-inverse-gamma) of `values` of the trials `tried`.
    """

    def __init__(self, methods: Sequence[str], tried: Sequence[Observation], values: Sequence[float]) -> None:
        self._methods = {name: index for index, name in enumerate(methods)}
        self._logs = [math.log(each.fraction) for each in tried] or [0.0]
        rows, y = self._rows(tried), np.array(values, dtype=np.float64)
        precision = np.full(3 + 2 * len(methods), SPREAD_OF_METHODS**-2)
        precision[:3] = VAGUE**-2
        self._precision = np.diag(precision) + rows.T @ rows
        self._mean = np.linalg.solve(self._precision, rows.T @ y)
        rest = float(y @ y - self._mean @ self._precision @ self._mean)
        self._freedom = PRIOR_TRIALS + len(y)
        self._variance = (PRIOR_TRIALS * PRIOR_SCATTER**2 + max(0.0, rest)) / self._freedom

    def expect(self, running: Sequence[Observation]) -> None:
        """Count trials that run as if they gave what is expected of them: it makes surer, and changes no mean."""
        rows = self._rows(running)
        self._precision = self._precision + rows.T @ rows

    def means(self, methods: Sequence[str], share: float) -> NDArray[np.float64]:
        """Return the expected value of each method at a share of the budget, shape (methods,)."""
        return np.asarray(self._at(methods, share) @ self._mean)

    def chances(
        self, methods: Sequence[str], share: float, margin: float, random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return each method's chance to have the highest value, or one within `margin` of it, shape (methods,)."""
        networks = self._at(methods, share)
        half = np.linalg.cholesky(self._precision)
        noise = np.linalg.solve(half.T, random.standard_normal((len(self._mean), DRAWS)))
        scale = np.sqrt(self._variance * self._freedom / random.chisquare(self._freedom, DRAWS))
        values = networks @ (self._mean[:, None] + noise * scale)
        return np.asarray((values >= values.max(0) - margin).mean(1))

    def _at(self, methods: Sequence[str], share: float) -> NDArray[np.float64]:
        return self._rows([Observation(name, share) for name in methods])

    def _rows(self, tried: Sequence[Observation]) -> NDArray[np.float64]:
        """Return what the model sees of trials, shape (trials, 3 + 2 * methods); x is log cost, brought to [-1, 1]."""
        low, high = min(self._logs), max(self._logs)
        rows = np.zeros((len(tried), 3 + 2 * len(self._methods)))
        for row, each in zip(rows, tried, strict=True):
            x = (2 * math.log(each.fraction) - low - high) / max(high - low, 1.0)
            own = 3 + 2 * self._methods[each.method]
            row[:3] = 1.0, x, x * x
            row[own : own + 2] = 1.0, x
        return rows
