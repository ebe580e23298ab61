"""Whether the accuracy before training tells the end of it, of the trials that were compared by it."""

from collections.abc import Iterable, Sequence

import numpy as np

from runners.trial import TrialResult, TrialState
from search.results.pareto import measured, objectives
from search.results.rank_correlation import BANDS, RungAudit, ranked_within

SCREENED = "screened"  # in the note of a trial: how many candidates it is the best of before training
SCREENED_ACCURACY = "screened_accuracy"  # and its accuracy then
UNSCREENED = "screening_off"  # in the note of a trial that would have been compared, had that not misled before
# A lower rank correlation over so many trials ends the screening. Only winners of pools are trained to the end, among
# whom a proxy ranks worse than among all: of searches with 24 trials, each the best of 4, one that ranks all candidates
# with 0.76 came under 0.1 over 8 trials in 20%.
USEFUL, JUDGED_FROM = 0.0, 16


def audit_screening(results: Iterable[TrialResult], rungs: Sequence[int]) -> RungAudit | None:
    """Judge the accuracy before training by the trials that were trained to the end; None where nothing was compared.

    Bands are those of the rungs. Within them a trial is ranked among those of its method, as candidates were; control
    arms and methods that are not compared are left out.

    Args:
        rungs: epochs, the last of which is the whole training; none where trials are trained at once.
    """
    known = list(results)
    methods = {each.trial.method for each in known if SCREENED in each.note}
    if not methods:
        return None
    ended = [each for each in known if _ended(each, rungs)]
    ended.sort(key=lambda each: (objectives(each)[0], each.trial.number))
    bands = [list(each) for each in np.array_split(np.arange(len(ended)), BANDS) if len(each)]

    def compared(index: int) -> str:
        """Return the method of a trial, or nothing where it was not compared."""
        each = ended[index]
        began = bool(each.curve) and each.curve[0].epoch == 0
        return each.trial.method if began and not each.trial.baseline and each.trial.method in methods else ""

    before = [each.curve[0].accuracy if compared(index) else 0.0 for index, each in enumerate(ended)]
    groups = [[[index for index in band if compared(index) == method] for method in sorted(methods)] for band in bands]
    return ranked_within(0, ended, bands, before, groups)


def misleads(audit: RungAudit) -> bool:
    """Whether candidates are better not compared before training."""
    return audit.trials >= JUDGED_FROM and audit.correlation is not None and audit.correlation < USEFUL


def switched_off(results: Iterable[TrialResult]) -> bool:
    """Whether screening was switched off in the search that these are of."""
    return any(UNSCREENED in each.note for each in results)


def _ended(result: TrialResult, rungs: Sequence[int]) -> bool:
    """Whether a trial was trained to the end."""
    if not measured(result):
        return False
    if rungs:
        return {epochs for epochs, _ in result.rungs} >= set(rungs)
    return result.state is TrialState.COMPLETE
