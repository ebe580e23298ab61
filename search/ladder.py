"""Ladder: the rungs of one search, applied to what it knows: who goes on, and from which rung on trials are judged."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from runners.trial import Leg, Trial, TrialResult
from search.legs import climbers
from search.pareto import ParetoFront
from search.proxy_audit import audit, first_rung
from search.result import UNIFORM_ARM
from search.stopping import Promotion, completion, promotion
from spaces.budget import Budget

# Trials besides the control arms that are trained to the end whatever their rungs say: the warm starts, which are
# spread over the budget as the arms are. With six arms they are enough to judge a rung by.
PIONEERS = 3
_log = logging.getLogger(__name__)


class Ladder:
    """Chooses the next leg of a search.

    Args:
        rungs: epochs, the last of which is the whole training; none has every trial trained at once.
        budgets: absolute; a network outside of them goes no further.
    """

    def __init__(self, rungs: Sequence[int], budgets: Sequence[Budget]) -> None:
        self.rungs, self._budgets, self._first = tuple(rungs), tuple(budgets), 0

    def begin(self, trial: Trial, results: Iterable[TrialResult]) -> Leg | None:
        """Return the first leg of a candidate; None when it is trained at once."""
        if not self.rungs:
            return None
        return Leg(self.rungs[0 if trial.arm == UNIFORM_ARM else self._lowest(results)])

    def next(
        self,
        results: Sequence[TrialResult],
        running: Mapping[int, Trial],
        front: ParetoFront,
        *,
        completing: bool,
    ) -> Promotion | None:
        """Return which trial goes on, if one does.

        Args:
            running: by number, of those that a worker has.
            completing: there are no new candidates, so that front members are trained to the end.
        """
        if not self.rungs:
            return None
        through = _through([*(each.trial for each in results), *running.values()])
        standing = climbers(results, self._budgets, running.keys(), through)
        found = promotion(standing, self.rungs, self._lowest(results))
        if found is None and completing:
            own = [member.trial.number for member in front if not member.waypoint]
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
    is_arm = {trial.number: trial.arm == UNIFORM_ARM for trial in trials}
    others = sorted(number for number, arm in is_arm.items() if not arm)
    return frozenset([*(number for number, arm in is_arm.items() if arm), *others[:PIONEERS]])
