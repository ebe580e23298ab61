"""Tuner: where trials come from and where results go, with two objectives, validation accuracy up and cost down.

`ask` reads top to bottom in the order in which the parts of a search are consulted: stopping criterion, measurement
queue, screening, promotion of paused trials, the searcher.
"""

import logging
import math
from dataclasses import dataclass, replace

from typing_extensions import override

from runners.base import AskTell
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult
from search.callbacks import Progress, SearchCallback
from search.interrupts import Interrupts
from search.latency.queue import MeasurementQueue
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.screening import Screening
from search.schedulers.segments import end_trial, first_result, merge
from search.schedulers.stopping import StoppingCriterion
from search.searchers.optuna_searcher import OptunaSearcher
from search.storage.checkpoints import CheckpointStore
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.storage.study_storage import StudyError, StudyStorage
from search.storage.validation import drop_checkpoints, validate
from spaces.errors import WeightsError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """Where a tuner keeps what it learns.

    Attributes:
        storage: outlives the process; None keeps the search in memory.
        checkpoints: keeps the weights of a result before it is recorded.
    """

    history: History
    pending: PendingTrials
    storage: StudyStorage | None = None
    checkpoints: CheckpointStore = CheckpointStore()


@dataclass(frozen=True)
class Schedulers:
    """What decides who is trained, and for how long.

    Attributes:
        promotion: of trials that pause at rungs.
        screening: of candidates before any training.
        stop: from when it holds there are no new trials, and running ones end at their next report, with the network
            that they have by then. The first trial, a uniform baseline, begins and ends whatever it says: without it
            there would be neither a front nor anything to compare with.
    """

    promotion: MultiObjectiveASHA
    screening: Screening
    stop: StoppingCriterion = lambda: False


class Tuner(AskTell):
    """Hands out trials and takes their results.

    Args:
        queue: measures latency between trials, where it counts.
        interrupts: tells of a Ctrl-C that was dropped.
        callback: is told of every promotion and every finished trial.
    """

    def __init__(
        self,
        records: Records,
        searcher: OptunaSearcher,
        schedulers: Schedulers,
        queue: MeasurementQueue | None = None,
        interrupts: Interrupts | None = None,
        callback: SearchCallback | None = None,
    ) -> None:
        self._history, self._pending = records.history, records.pending
        self._storage, self._checkpoints = records.storage, records.checkpoints
        self._searcher, self._scheduler, self._screening = searcher, schedulers.promotion, schedulers.screening
        self._stop, self._queue = schedulers.stop, queue
        self._interrupts, self._callback = interrupts or Interrupts(), callback or SearchCallback()
        self._running = 0  # trials that workers have; candidates of a screening pool share a number
        self._first: int | None = None  # number of the trial that no criterion stops
        self._has_begun = bool(records.history.results)  # an earlier process has had the first trial
        self._exhausted = self._stopped = False

    @property
    def total(self) -> int:
        """Number of trials of the search at its end, those of an earlier process included."""
        return self._searcher.counts.total

    @property
    def remaining(self) -> int:
        """Number of new trials that are still to be handed out."""
        return self.total - len(self._history.numbers | self._pending.trials.keys())

    @property
    def unfinished(self) -> bool:
        """Whether there is more to hand out by what is known now: candidates, or segments of paused trials."""
        return (
            self._screening.active
            or (self.remaining > 0 and not self._exhausted)
            or self._scheduler.promotion(self._history, self._pending.trials, final=True) is not None
        )

    @property
    def stopped(self) -> bool:
        """Whether the stopping criterion has kept or cut trials of the search."""
        return self._stopped

    @override
    def ask(self) -> Trial | None:
        self._interrupts.check()
        if self._queue is not None:
            if self._queue.holds_back(self._running):
                return None
            if not self._running:
                self._queue.measure()
        trial = self._next()
        if trial is None and self._queue is not None and not self._running:
            self._queue.measure(last=True)
            trial = self._next()  # a network that has now entered the front may be trained to the end
        self._running += trial is not None
        return trial

    @override
    def report(self, report: EpochReport) -> bool:
        self._interrupts.check()
        if self._stop() and report.trial != self._first:
            self._stopped = True
            return False
        return math.isfinite(report.accuracy)

    @override
    def tell(self, result: TrialResult) -> None:
        """Record a result; raises StudyError when its trial is not running in this search."""
        self._running -= 1
        if self._queue is not None:
            self._queue.observe_result()
        if self._screening.compares(result.trial.number):
            self._tell_candidate(result)
        else:
            self._record(self._screening.annotate(result))
        self._interrupts.check()

    def measure_remaining(self) -> None:
        """Measure the latency of networks that an earlier process has left unmeasured."""
        if self._queue is not None:
            self._queue.measure(last=True)

    def close(self) -> None:
        """Store the trials that were handed out and not told as failed; they are no results."""
        for number, trial in list(self._pending.trials.items()):
            if not self._pending.is_promoted(number):  # of a promoted trial the earlier segments are stored
                frozen = self._searcher.discard(trial, "interrupted")
                if self._storage is not None:
                    self._storage.add(frozen)
            self._pending.end(number)

    def _next(self) -> Trial | None:
        if self._has_begun and self._stop():
            self._stopped = self._stopped or self.unfinished
            return None
        trial = (
            self._screening.next_winner()
            or self._screening.next_candidate()
            or self._promote(final=False)
            or self._new_candidate()
            or self._promote(final=True)
        )
        if trial is not None and not self._has_begun:
            self._has_begun, self._first = True, trial.number
        return trial

    def _promote(self, *, final: bool) -> Trial | None:
        """Return the trial that goes on with another training segment; None when none does.

        A trial whose weights are lost cannot go on; it keeps its result, with the reason.
        """
        while (found := self._scheduler.promotion(self._history, self._pending.trials, final=final)) is not None:
            earlier = self._history.result(found.number)
            try:
                start = self._checkpoints.read(earlier)
            except WeightsError as error:
                self._history.add(end_trial(earlier, str(error)))
                continue
            trained = earlier.rungs[-1][0]
            trial = replace(earlier.trial, segment=TrainingSegment(found.epochs - trained, trained, start))
            self._pending.begin(trial)
            self._callback.on_promotion(found.number, found.epochs)
            return trial
        return None

    def _new_candidate(self) -> Trial | None:
        """Return a candidate that was not tried yet, to be trained, or to be screened with similar ones."""
        if self.remaining <= 0 or self._exhausted:
            return None
        trial = self._searcher.suggest()
        if trial is None:
            found, wanted = len(self._history.results), self.total
            _log.warning("no candidate left that was not tried: %d trials instead of %d", found, wanted)
            self._exhausted = True
            return None
        trial = replace(trial, segment=self._scheduler.first_segment(trial))
        self._pending.begin(trial)
        if not self._searcher.is_screenable(trial):
            return trial
        others = self._searcher.suggest_similar(trial, self._screening.others_wanted)
        if not others:
            self._screening.skip(trial)
            return trial
        others = [replace(other, segment=self._scheduler.first_segment(other)) for other in others]
        self._pending.screen(trial.number, others)
        self._screening.open(trial, others)
        return self._screening.next_candidate()

    def _tell_candidate(self, result: TrialResult) -> None:
        """Take the result of a candidate that is compared before training; the best of its pool becomes the trial."""
        winner = self._screening.tell(result)
        if winner is not None:
            for loser in self._pending.select(winner):
                self._searcher.discard(loser)

    def _record(self, result: TrialResult) -> None:
        """Record the result of a trial, or of another training segment of one: weights, study, history, in this order.

        A result without a finite accuracy, or over a budget, is recorded as failed with that reason. Intermediate
        networks of the trial may be over a budget: they are recorded without weights and are on no front.
        """
        number = result.trial.number
        if number not in self._pending.trials:
            raise StudyError(f"trial {number} is not running; it was never asked for, or is told already")
        promoted = self._pending.is_promoted(number)
        earlier = self._history.result(number) if promoted else None
        result = validate(result, self._history.problem.budgets)
        segment = self._pending.trials[number].segment
        if earlier is not None and segment is not None:
            result = merge(earlier, result, segment)
        else:
            result = first_result(result, segment)
        result = self._checkpoints.keep(drop_checkpoints(result, self._history.problem.budgets))
        self._pending.end(number)
        frozen = self._searcher.observe(result, promoted=promoted)
        if self._storage is not None:
            self._storage.add(frozen)
        self._history.add(result)
        if earlier is not None and earlier.path != result.path:
            self._checkpoints.drop(earlier)
        results = self._history.results
        self._scheduler.observe(results)
        self._screening.observe(results)
        self._callback.on_trial_end(result, Progress(len(results), self.total, self._history.front))
