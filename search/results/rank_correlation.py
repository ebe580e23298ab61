"""Rank correlation audits: how well a value early in training tells the accuracy at its end.

Two early values are audited from the results of the search itself: the accuracy at a rung, by which trials are
promoted, and the proxy before any training, by which candidates are screened. Trials that are trained to the end
whatever their rungs say (baselines and the calibration trials) count, and so do promoted ones. Ranks are compared
within bands of cost: over the whole range every rung would look good, because expensive networks are more accurate than
cheap ones at any time.

Promoted trials were selected by their accuracy at the rungs, which narrows the range and lowers the correlation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.trial import TrialResult, TrialState
from search.results.pareto import measured, objectives

BANDS = 3
LEAST = 4  # trials, under which a correlation says nothing
LEAST_TO_JUDGE = 8  # trials in all bands, before a rung is judged by its correlation
TRUSTED = 0.4  # a lower correlation is no ground to end a trial: at 0.4 two of three pairs of networks rank right

SCREENED = "screened"  # in the note of a trial: size of the screening pool that it is the best of
PROXY = "proxy"  # in the same note: its value before training (`runners.evaluation.proxy`)
UNSCREENED = "screening_off"  # in the note of a trial that was not screened because screening had misled before
# A lower rank correlation over so many trials ends the screening. Only winners of pools are trained to the end, and a
# proxy ranks winners worse than all candidates: one that ranks all with 0.76 came under 0.1 over 8 trials in 20% of the
# searches with 24 trials and pools of 4.
USEFUL, JUDGED_FROM = 0.0, 16


@dataclass(frozen=True)
class Band:
    """One third of the trials, by cost.

    Attributes:
        flops: lowest and highest.
        correlation: Spearman's; None with under `LEAST` trials, or where all are equally accurate.
    """

    flops: tuple[int, int]
    trials: int
    correlation: float | None


@dataclass(frozen=True)
class RungAudit:
    """How well the accuracy after some epochs, or the proxy before any training, ranks networks.

    Attributes:
        epochs: of the rung; 0 for the proxy.
        trials: number of trials that were trained to the end.
        correlation: of the ranks within bands, all bands together; None with under `LEAST` trials.
    """

    epochs: int
    trials: int
    correlation: float | None
    bands: tuple[Band, ...]


def audit_rungs(results: Iterable[TrialResult], rungs: Sequence[int]) -> tuple[RungAudit, ...]:
    """Judge every rung but the last by the trials that have reached the last.

    Args:
        rungs: epochs, rising; the last is the whole training.
    """
    if not rungs:
        return ()
    ended = _trained_to_end(results, rungs)
    audits = []
    for epochs in rungs[:-1]:
        early = [max(accuracy for reached, accuracy in result.rungs if reached <= epochs) for result in ended]
        audits.append(_audit(epochs, ended, early, ["all"] * len(ended)))
    return tuple(audits)


def first_rung(audits: Sequence[RungAudit]) -> int:
    """Return the index of the first rung at which trials are judged.

    It is the first rung that is trusted, or not known well enough to be mistrusted. Where there is none, it is the rung
    with the highest correlation. Then even a good part of the training does not tell the end: final accuracies differ
    by chance: LeNet-5 on digits, 98% at any width, gave 0.00, -0.06 and -0.26 after 1, 2 and 4 of 8 epochs.
    """
    for index, audit in enumerate(audits):
        if audit.trials < LEAST_TO_JUDGE or audit.correlation is None or audit.correlation >= TRUSTED:
            return index
    known = [audit.correlation or 0.0 for audit in audits]
    return known.index(max(known)) if known else 0


def audit_screening(results: Iterable[TrialResult], rungs: Sequence[int]) -> RungAudit | None:
    """Judge the proxy by the trials that were trained to the end; None where none was screened.

    Within a band of cost a trial is ranked among those of its method, as candidates of a pool are. Baselines and trials
    of methods that are not screened are left out of the ranks.

    Args:
        rungs: epochs, the last of which is the whole training; empty where trials are trained at once.
    """
    known = list(results)
    methods = {result.trial.method for result in known if SCREENED in result.note}
    if not methods:
        return None
    ended = _trained_to_end(known, rungs)

    def is_ranked(result: TrialResult) -> bool:
        return proxy(result) is not None and not result.trial.baseline and result.trial.method in methods

    early = [proxy(result) or 0.0 for result in ended]
    return _audit(0, ended, early, [result.trial.method if is_ranked(result) else "" for result in ended])


def proxy(result: TrialResult) -> float | None:
    """Return the proxy of a trial; None where its network was not measured before training."""
    return result.curve[0].proxy if result.curve else None


def misleads(audit: RungAudit) -> bool:
    """Return whether screening by this proxy does harm."""
    return audit.trials >= JUDGED_FROM and audit.correlation is not None and audit.correlation < USEFUL


def switched_off(results: Iterable[TrialResult]) -> bool:
    """Return whether the search of these results has ended its screening because it misled."""
    return any(UNSCREENED in result.note for result in results)


def _trained_to_end(results: Iterable[TrialResult], rungs: Sequence[int]) -> list[TrialResult]:
    """Return the measured trials that have had the whole training, cheapest first."""

    def has_ended(result: TrialResult) -> bool:
        if rungs:
            return {epochs for epochs, _ in result.searched_rungs} >= set(rungs)
        return result.state is TrialState.COMPLETE

    ended = [result for result in results if measured(result) and not result.trial.final and has_ended(result)]
    return sorted(ended, key=lambda result: (objectives(result)[0], result.trial.number))


def _audit(epochs: int, ended: Sequence[TrialResult], early: Sequence[float], groups: Sequence[str]) -> RungAudit:
    """Correlate early values with final accuracies, by rank within the groups of each band.

    Args:
        epochs: after which the trials had the early values.
        ended: trials that were trained to the end, cheapest first.
        early: a value of every trial of `ended`; higher is better.
        groups: name of the group of every trial; trials of the group "" do not count.
    """
    final = [result.searched_accuracy or 0.0 for result in ended]
    early_ranks, final_ranks = np.zeros(len(ended)), np.zeros(len(ended))
    bands: list[Band] = []
    counted: list[int] = []
    for band in filter(len, np.array_split(np.arange(len(ended)), BANDS)):
        own = [index for index in band if groups[index]]
        for group in {groups[index] for index in own}:
            members = [index for index in own if groups[index] == group]
            early_ranks[members] = _ranks([early[index] for index in members])
            final_ranks[members] = _ranks([final[index] for index in members])
        span = _flops(ended[band[0]]), _flops(ended[band[-1]])
        bands.append(Band(span, len(own), _correlation(early_ranks[own], final_ranks[own])))
        counted += own
    correlation = _correlation(early_ranks[counted], final_ranks[counted])
    return RungAudit(epochs, len(counted), correlation, tuple(bands))


def _flops(result: TrialResult) -> int:
    return int(objectives(result)[0])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Return ranks minus their mean; equal values share the mean of their ranks."""
    from scipy.stats import rankdata  # its import takes half a second, for which `--help` must not wait

    ranks = np.asarray(rankdata(values), dtype=np.float64)
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred


def _correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float | None:
    """Return the correlation of centred ranks; None for too few of them, or where one side does not vary."""
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if len(left) >= LEAST and scale > 0 else None
