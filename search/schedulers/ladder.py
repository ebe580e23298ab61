"""Ladder: the rungs of one search, applied to what it knows: who goes on, and from which rung on trials are judged."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from runners.trial import TrainingSegment, Trial, TrialResult
from search.results.pareto import may_enter
from search.results.rank_correlation import audit, first_rung
from search.results.result import UNIFORM
from search.schedulers.asha import Promotion, completion, promotion
from search.schedulers.segments import climbers, ended
from search.storage.checkpoints import Archive
from search.storage.history import Known
from spaces.budget import Budget
from spaces.errors import WeightsError

# Trials besides the control arms that are trained to the end whatever their rungs say: the warm starts, which are
# spread over the budget as the arms are. With six arms they are enough to judge a rung by.
PIONEERS = 3
_log = logging.getLogger(__name__)


class Ladder:
    """Chooses the next leg of a search.

    Args:
        rungs: epochs, the last of which is the whole training; none has every trial trained at once.
        budgets: absolute; a network outside of them goes no further.
        cost: of a network, by which the rungs judge beside its accuracy.
    """

    def __init__(self, rungs: Sequence[int], budgets: Sequence[Budget], cost: Callable[[TrialResult], float]) -> None:
        self.rungs, self._budgets, self._cost, self._first = tuple(rungs), tuple(budgets), cost, 0

    def begin(self, trial: Trial, results: Iterable[TrialResult]) -> TrainingSegment | None:
        """Return the first leg of a candidate; None when it is trained at once."""
        if not self.rungs:
            return None
        return TrainingSegment(self.rungs[0 if trial.baseline == UNIFORM else self._lowest(results)])

    def next_leg(
        self, known: Known, running: Mapping[int, Trial], archive: Archive, *, completing: bool
    ) -> Trial | None:
        """Return the trial that goes on, with the leg that it is given; None when none does.

        A trial whose weights are gone cannot go on; it keeps its result, with the reason.
        """
        while (found := self.next(known, running, completing=completing)) is not None:
            earlier = known.of(found.number)
            try:
                start = archive.read(earlier)
            except WeightsError as error:
                known.keep(ended(earlier, str(error)))
                continue
            trained = earlier.rungs[-1][0]
            return replace(earlier.trial, segment=TrainingSegment(found.epochs - trained, trained, start))
        return None

    def next(self, known: Known, running: Mapping[int, Trial], *, completing: bool) -> Promotion | None:
        """Return which trial goes on, if one does.

        Args:
            running: by number, of those that a worker has.
            completing: there are no new candidates, so that front members are trained to the end.
        """
        if not self.rungs:
            return None
        results = known.results
        through = _through([*(each.trial for each in results), *running.values()])
        hopeful = [each for each in results if each.rungs and may_enter(each, self._budgets)]
        standing = climbers(hopeful, self._cost, running.keys(), through)
        found = promotion(standing, self.rungs, self._lowest(results))
        if found is None and completing:
            own = [member.trial.number for member in known.front if not member.intermediate_index]
            found = completion(standing, self.rungs, own)
        return found

    def _lowest(self, results: Iterable[TrialResult]) -> int:
        """Return the first rung that judges; say so when it is another than before."""
        audits = audit(results, self.rungs)
        first = first_rung(audits)
        if first > self._first:
            blind = audits[first - 1]
            _log.warning(
                "%d epochs do not rank networks as the end of training does (rank correlation %.2f over %d trials): "
                "from now on trials are first judged after %d",
                blind.epochs,
                blind.correlation,
                blind.trials,
                self.rungs[first],
            )
        elif first < self._first:
            _log.warning("trials are judged again after %d epochs, which rank networks well enough", self.rungs[first])
        self._first = first
        return first


def _through(trials: Iterable[Trial]) -> frozenset[int]:
    """Return the numbers of the trials that are trained to the end, for comparison and for the audit."""
    is_baseline = {trial.number: trial.baseline == UNIFORM for trial in trials}
    others = sorted(number for number, baseline in is_baseline.items() if not baseline)
    return frozenset([*(number for number, baseline in is_baseline.items() if baseline), *others[:PIONEERS]])
