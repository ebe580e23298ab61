"""MultiObjectiveASHA: which paused trials continue training, by non-dominated rank, then by their share of the front.

Asynchronous successive halving (Li et al., arXiv 1810.05934), with trials in a Pareto order in place of a sorted list:
of the trials that have come to a rung, the better half goes on. Ranks come from non-dominated sorting in accuracy and
cost, so a cheap narrow net is never behind for being less accurate than a wide one. Within a rank, the area that a net
alone dominates decides; the area is over log cost, in which fronts are to be even, and the cheapest and the most
accurate net of a rank come first, as both ends of a front do in NSGA-II.

Every decision is a function of the results so far, so a search that was stopped decides as it would have.
"""

import itertools
import logging
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pruning.base import METHODS
from pruning.traits import pausable
from runners.trial import TrainingSegment, Trial, TrialResult
from search.problem import Problem
from search.results.pareto import LATENCY, may_enter, non_dominated_ranks
from search.results.rank_correlation import audit_rungs, first_rung
from search.schedulers.segments import NOT_CONTINUED
from search.storage.history import History

KEPT = 2  # one in so many trials of a rung is promoted
# Trials besides the baselines that are trained to the end whatever their rungs say: the uniform starts, which are
# spread over the budget as the baselines are. With six baselines they are enough to judge a rung by.
CALIBRATION_TRIALS = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """A trial that pauses at rungs.

    Attributes:
        cost: of its network, in FLOPs or seconds; above 0.
        rungs: (epochs, accuracy) after each of its training segments.
        exempt: it is trained to the last rung, whatever its rank.
        paused: it can be promoted: none of its segments has failed.
    """

    number: int
    cost: float
    rungs: tuple[tuple[int, float], ...]
    exempt: bool = False
    paused: bool = True

    @property
    def trained(self) -> int:
        """Epochs so far."""
        return self.rungs[-1][0]

    def accuracy_at(self, epochs: int) -> float:
        """Return the accuracy of its best network when it first had so many epochs or more."""
        best = -math.inf
        for reached, accuracy in self.rungs:
            best = max(best, accuracy)
            if reached >= epochs:
                break
        return best


@dataclass(frozen=True)
class Promotion:
    """A trial that continues training until it has had `epochs` epochs in all.

    Attributes:
        completes: whether its final training ends with them.
    """

    number: int
    epochs: int
    completes: bool = False


class MultiObjectiveASHA:
    """Decides which paused trials continue training.

    Args:
        problem: its rungs, the last of which is the whole training; without rungs every trial is trained at once. A
            network outside its budgets is not promoted.
        cost: cost of a network, by which rungs judge beside its accuracy.
        results: found by an earlier process.
    """

    def __init__(
        self, problem: Problem, cost: Callable[[TrialResult], float], results: Sequence[TrialResult] = ()
    ) -> None:
        self._rungs, self._budgets, self._cost = problem.rungs, problem.budgets, cost
        self._cost_changes = problem.axis == LATENCY  # it is predicted, and the predictor learns
        self._first = 0  # index of the lowest rung that judges
        # What was made of the results so far; a search of thousands of trials cannot make it anew at every decision.
        self._ended: list[TrialResult] = []
        self._contenders: dict[int, tuple[TrialResult, Contender | None]] = {}
        self._orders: dict[int, tuple[list[Contender], list[Contender]]] = {}  # by epochs: as given, and as ordered
        self.observe(results)

    def observe(self, results: Sequence[TrialResult]) -> None:
        """Skip the lowest rungs as long as they do not rank networks as the end of training does."""
        if not self._rungs:
            return
        ended = [result for result in results if result.rungs and result.rungs[-1][0] >= self._rungs[-1]]
        if len(ended) == len(self._ended) and all(map(operator.is_, ended, self._ended)):
            return
        self._ended = ended
        audits = audit_rungs(ended, self._rungs)
        first, before = first_rung(audits), self._first
        self._first = first
        if first > before:
            blind = audits[first - 1]
            _log.warning(
                "%d epochs do not rank networks as the end of training does (rank correlation %.2f over %d trials): "
                "from now on trials are first judged after %d",
                blind.epochs,
                blind.correlation,
                blind.trials,
                self._rungs[first],
            )
        elif first < before:
            _log.warning("trials are judged again after %d epochs, which rank networks well enough", self._rungs[first])

    def first_segment(self, trial: Trial) -> TrainingSegment | None:
        """Return the first training segment of a candidate; None when it is trained at once."""
        if not self._rungs or not pausable(METHODS[trial.method], trial.settings):
            return None
        return TrainingSegment(self._rungs[0 if trial.baseline else self._first])

    def promotion(self, history: History, pending: Mapping[int, Trial], *, final: bool) -> Promotion | None:
        """Return which trial is promoted; None when none is.

        Args:
            pending: trials that workers have, by number.
            final: no new candidate is left, so members of the front are trained to the end.
        """
        if not self._rungs:
            return None
        contenders = self._contending(history.results, pending)
        found = promotion(contenders, self._rungs, self._first, pending, self._ordered)
        if found is None and final:
            front = [member.trial.number for member in history.front if not member.intermediate_index]
            found = final_promotion(contenders, self._rungs, front, pending)
        return found

    def _contending(self, results: Sequence[TrialResult], pending: Mapping[int, Trial]) -> list[Contender]:
        """Return the contenders in the order of their numbers, of an unchanged result the same object as before."""
        baselines = [result.trial for result in results if result.trial.baseline]
        others = itertools.islice((result.trial for result in results if not result.trial.baseline), CALIBRATION_TRIALS)
        exempt = exempt_trials([*baselines, *others, *pending.values()])
        found = []
        for result in results:
            number = result.trial.number
            known, contender = self._contenders.get(number, (None, None))
            if known is not result:
                contender = self._contender(result)
            if contender is not None:
                if contender.exempt != (number in exempt):
                    contender = replace(contender, exempt=number in exempt)
                if self._cost_changes and contender.cost != (cost := self._cost(result)):
                    contender = replace(contender, cost=cost)
                found.append(contender)
            self._contenders[number] = result, contender
        return found

    def _contender(self, result: TrialResult) -> Contender | None:
        """Return a trial as a contender; None where it does not pause at rungs, or its network may not be promoted."""
        if not result.rungs or result.final_epochs or not may_enter(result, self._budgets):
            return None
        paused = NOT_CONTINUED not in result.note
        return Contender(result.trial.number, self._cost(result), result.rungs, paused=paused)

    def _ordered(self, contenders: Sequence[Contender], epochs: int) -> list[Contender]:
        """Return trials best first, as `ordered` does, which is asked where one of them has changed."""
        known, found = self._orders.get(epochs, ([], []))
        if len(known) != len(contenders) or not all(map(operator.is_, known, contenders)):
            found = ordered(contenders, epochs)
            self._orders[epochs] = list(contenders), found
        return found


def exempt_trials(trials: Iterable[Trial]) -> frozenset[int]:
    """Return the numbers of the trials that are trained to the end, for comparison and to judge the rungs by."""
    baselines = {trial.number: trial.baseline for trial in trials}
    others = sorted(number for number, baseline in baselines.items() if not baseline)
    return frozenset(baselines) - frozenset(others[CALIBRATION_TRIALS:])


def promotion(
    contenders: Sequence[Contender],
    rungs: Sequence[int],
    first: int,
    running: Collection[int] = (),
    order: Callable[[Sequence[Contender], int], Sequence[Contender]] | None = None,
) -> Promotion | None:
    """Return the trial that is promoted before a new candidate begins; None when none is.

    Exempt trials come first, then trials under the first rung that judges, then the better half of each rung, from the
    highest down. Of equals the lower number.

    Args:
        rungs: epochs, rising; the last is the whole training.
        first: index of the lowest rung that judges.
        running: numbers of the trials that workers have.
        order: of contenders at a rung; None takes `ordered`.
    """
    for contender in sorted(contenders, key=lambda contender: contender.number):
        if not contender.paused or contender.trained >= rungs[-1] or contender.number in running:
            continue
        if contender.exempt or contender.trained < rungs[first]:
            ahead = rungs if contender.exempt else rungs[first:]
            return Promotion(contender.number, next(epochs for epochs in ahead if epochs > contender.trained))
    for rung in reversed(range(first, len(rungs) - 1)):
        here = [contender for contender in contenders if contender.trained >= rungs[rung]]
        for contender in (order or ordered)(here, rungs[rung])[: len(here) // KEPT]:
            if contender.paused and contender.trained < rungs[rung + 1] and contender.number not in running:
                return Promotion(contender.number, rungs[rung + 1])
    return None


def final_promotion(
    contenders: Sequence[Contender], rungs: Sequence[int], front: Sequence[int], running: Collection[int] = ()
) -> Promotion | None:
    """Return the next member of the front that is not trained to the end, so that the front shows finished networks.

    Args:
        front: numbers of the trials on it, in the order of their promotion.
        running: numbers of the trials that workers have.
    """
    by_number = {contender.number: contender for contender in contenders}
    for number in front:
        contender = by_number.get(number)
        if contender is None or number in running:
            continue
        if contender.paused and contender.trained < rungs[-1]:
            return Promotion(number, next(epochs for epochs in rungs if epochs > contender.trained))
    return None


def expected_epochs(rungs: Sequence[int], trials: int, exempt: int) -> float:
    """Return about how many epochs of training a search with rungs takes.

    Args:
        rungs: epochs, the last the whole training.
        exempt: number of trials that go to the last rung: for comparison, or because they end on the front.
    """
    lengths = [after - before for before, after in zip((0, *rungs), rungs, strict=False)]
    return sum(length * count for length, count in zip(lengths, expected(rungs, trials, exempt), strict=True))


def expected(rungs: Sequence[int], trials: int, exempt: int) -> list[float]:
    """Return about how many trials come to each rung."""
    return [max(min(exempt, trials), trials / KEPT**level) for level in range(len(rungs))]


def ordered(contenders: Sequence[Contender], epochs: int) -> list[Contender]:
    """Return trials best first, as they stood after so many epochs."""
    accuracy = {contender.number: contender.accuracy_at(epochs) for contender in contenders}
    known = sorted(contenders, key=lambda contender: contender.number)
    found: list[Contender] = []
    for rank in non_dominated_ranks(known, lambda contender: (contender.cost, accuracy[contender.number])):
        # The area over log cost that a trial alone dominates: infinite at both ends of the rank, 0 for equal trials.
        area = {contender.number: math.inf for contender in rank}
        for cheaper, contender, dearer in zip(rank, rank[1:], rank[2:], strict=False):
            gained = accuracy[contender.number] - accuracy[cheaper.number]
            area[contender.number] = math.log(dearer.cost / contender.cost) * gained
        found += sorted(rank, key=lambda contender: (-area[contender.number], contender.number))
    return found
