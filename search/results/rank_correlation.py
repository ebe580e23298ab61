"""Proxy audit: how well the accuracy at a rung tells the accuracy that a trial comes to in the end.

Computed from the run itself: some trials are trained to the end whatever their rungs say (control arms, the first few
others), and those that were promoted join them. Rank correlations are within bands of cost: over the whole range every
rung would look good, because dear nets are more accurate than cheap ones before and after.

Promoted trials were chosen for their accuracy at the rungs, which narrows the range and lowers their correlation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.trial import TrialResult
from search.results.pareto import measured, objectives

BANDS = 3
LEAST = 4  # trials under which a correlation says nothing
LEAST_TO_JUDGE = 8  # over all bands, before a rung is judged by it
TRUSTED = 0.4  # a lower correlation is no ground to end a trial: at 0.4 two nets in three are in the right order


@dataclass(frozen=True)
class Band:
    """One third of the trials, by cost.

    Attributes:
        flops: lowest and highest.
        correlation: Spearman's; None with under 4 trials, or where all are equally good.
    """

    flops: tuple[int, int]
    trials: int
    correlation: float | None


@dataclass(frozen=True)
class RungAudit:
    """How a rung does as a proxy.

    Attributes:
        epochs: of the rung.
        trials: that have come to the end.
        correlation: of ranks within bands, all bands together; None with under 4 trials.
    """

    epochs: int
    trials: int
    correlation: float | None
    bands: tuple[Band, ...]


def audit(results: Iterable[TrialResult], rungs: Sequence[int]) -> tuple[RungAudit, ...]:
    """Judge every rung but the last by the trials that have come to the last.

    Args:
        rungs: epochs, rising; the last is the whole training.
    """
    if not rungs:
        return ()
    ended = [each for each in results if measured(each) and {epochs for epochs, _ in each.rungs} >= set(rungs)]
    ended.sort(key=lambda each: (objectives(each)[0], each.trial.number))
    bands = [list(each) for each in np.array_split(np.arange(len(ended)), BANDS) if len(each)]
    return tuple(_rung(ended, bands, epochs) for epochs in rungs[:-1])


def first_rung(audits: Sequence[RungAudit]) -> int:
    """Return the index of the first rung at which trials are judged.

    It is the first that is trusted, or not known well enough to be mistrusted. Where none is, it is the one that agrees
    best with the end. Then not even a good part of the training tells the end, so the ends themselves differ by chance:
    LeNet-5 on digits, 98% at any width, gave 0.00, -0.06 and -0.26 after 1, 2 and 4 of 8 epochs.
    """
    for index, each in enumerate(audits):
        if each.trials < LEAST_TO_JUDGE or each.correlation is None or each.correlation >= TRUSTED:
            return index
    known = [each.correlation or 0.0 for each in audits]
    return known.index(max(known)) if known else 0


def ranked_within(
    epochs: int,
    ended: Sequence[TrialResult],
    bands: Sequence[Sequence[int]],
    before: Sequence[float],
    groups: Sequence[Sequence[Sequence[int]]],
) -> RungAudit:
    """Judge accuracies by the end of training, by rank within groups of trials.

    Args:
        epochs: after which trials had those accuracies.
        ended: trials that were trained to the end, cheapest first.
        bands: of cost, indices into `ended`.
        before: the accuracy of each after `epochs`.
        groups: of each band, those within which trials are ranked; a trial in none does not count.
    """
    after = [objectives(each)[1] for each in ended]
    shown, lefts, rights = [], [np.zeros(0)], [np.zeros(0)]
    for band, own in zip(bands, groups, strict=True):
        left = np.concatenate([np.zeros(0), *(_ranks([before[i] for i in group]) for group in own)])
        right = np.concatenate([np.zeros(0), *(_ranks([after[i] for i in group]) for group in own)])
        span = _flops(ended[band[0]]), _flops(ended[band[-1]])
        shown.append(Band(span, len(left), _correlation(left, right, len(left))))
        lefts.append(left)
        rights.append(right)
    every = np.concatenate(lefts), np.concatenate(rights)
    return RungAudit(epochs, len(every[0]), _correlation(*every, len(every[0])), tuple(shown))


def _flops(result: TrialResult) -> int:
    return int(objectives(result)[0])


def _rung(ended: Sequence[TrialResult], bands: Sequence[Sequence[int]], epochs: int) -> RungAudit:
    before = [max(accuracy for reached, accuracy in each.rungs if reached <= epochs) for each in ended]
    return ranked_within(epochs, ended, bands, before, [[band] for band in bands])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Return ranks about their mean, equal values sharing theirs."""
    if not values:
        return np.zeros(0)
    from scipy.stats import rankdata  # takes half a second, which the command line's help must not wait for

    ranks = np.asarray(rankdata(values), dtype=np.float64)
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred


def _correlation(left: NDArray[np.float64], right: NDArray[np.float64], count: int) -> float | None:
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if count >= LEAST and scale > 0 else None
