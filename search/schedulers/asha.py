"""MultiObjectiveASHA: which paused trials continue training, by non-dominated rank, then by their share of the front.

Asynchronous successive halving (Li et al., arXiv 1810.05934), with trials in a Pareto order in place of a sorted list:
of the trials that have come to a rung, the better half goes on. Ranks come from non-dominated sorting in accuracy and
cost, so a cheap narrow net is never behind for being less accurate than a wide one. Within a rank, the area that a net
alone dominates decides; the area is over log cost, in which fronts are to be even, and the cheapest and the most
accurate net of a rank come first, as both ends of a front do in NSGA-II.

Every decision is a function of the results so far, so a search that was stopped decides as it would have.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pruning.base import METHODS
from pruning.traits import pausable
from runners.trial import TrainingSegment, Trial, TrialResult
from search.problem import Problem
from search.results.pareto import may_enter, non_dominated
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
        paused: it can be promoted: no worker has it, and none of its segments has failed.
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
        self._first = 0  # index of the lowest rung that judges
        self.observe(results)

    def observe(self, results: Sequence[TrialResult]) -> None:
        """Skip the lowest rungs as long as they do not rank networks as the end of training does."""
        audits = audit_rungs(results, self._rungs)
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
        results = history.results
        exempt = exempt_trials([*(result.trial for result in results), *pending.values()])
        contenders = [
            Contender(
                number,
                self._cost(result),
                result.rungs,
                exempt=number in exempt,
                paused=number not in pending and NOT_CONTINUED not in result.note,
            )
            for result in results
            if result.rungs and not result.final_epochs and may_enter(result, self._budgets)
            for number in [result.trial.number]
        ]
        found = promotion(contenders, self._rungs, self._first)
        if found is None and final:
            front = [member.trial.number for member in history.front if not member.intermediate_index]
            found = final_promotion(contenders, self._rungs, front)
        return found


def exempt_trials(trials: Iterable[Trial]) -> frozenset[int]:
    """Return the numbers of the trials that are trained to the end, for comparison and to judge the rungs by."""
    baselines = {trial.number: trial.baseline for trial in trials}
    others = sorted(number for number, baseline in baselines.items() if not baseline)
    return frozenset(baselines) - frozenset(others[CALIBRATION_TRIALS:])


def promotion(contenders: Sequence[Contender], rungs: Sequence[int], first: int) -> Promotion | None:
    """Return the trial that is promoted before a new candidate begins; None when none is.

    Exempt trials come first, then trials under the first rung that judges, then the better half of each rung, from the
    highest down. Of equals the lower number.

    Args:
        rungs: epochs, rising; the last is the whole training.
        first: index of the lowest rung that judges.
    """
    for contender in sorted(contenders, key=lambda contender: contender.number):
        if not contender.paused or contender.trained >= rungs[-1]:
            continue
        if contender.exempt or contender.trained < rungs[first]:
            ahead = rungs if contender.exempt else rungs[first:]
            return Promotion(contender.number, next(epochs for epochs in ahead if epochs > contender.trained))
    for rung in reversed(range(first, len(rungs) - 1)):
        here = [contender for contender in contenders if contender.trained >= rungs[rung]]
        for contender in ordered(here, rungs[rung])[: len(here) // KEPT]:
            if contender.paused and contender.trained < rungs[rung + 1]:
                return Promotion(contender.number, rungs[rung + 1])
    return None


def final_promotion(contenders: Sequence[Contender], rungs: Sequence[int], front: Sequence[int]) -> Promotion | None:
    """Return the next member of the front that is not trained to the end, so that the front shows finished networks.

    Args:
        front: numbers of the trials on it, in the order of their promotion.
    """
    by_number = {contender.number: contender for contender in contenders}
    for number in front:
        contender = by_number.get(number)
        if contender is not None and contender.paused and contender.trained < rungs[-1]:
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
    left = sorted(contenders, key=lambda contender: contender.number)
    found: list[Contender] = []
    while left:
        rank = non_dominated(left, lambda contender: (contender.cost, accuracy[contender.number]), keep_equal=True)
        # The area over log cost that a trial alone dominates: infinite at both ends of the rank, 0 for equal trials.
        area = {contender.number: math.inf for contender in rank}
        for cheaper, contender, dearer in zip(rank, rank[1:], rank[2:], strict=False):
            gained = accuracy[contender.number] - accuracy[cheaper.number]
            area[contender.number] = math.log(dearer.cost / contender.cost) * gained
        found += sorted(rank, key=lambda contender: (-area[contender.number], contender.number))
        left = [contender for contender in left if contender.number not in area]
    return found
