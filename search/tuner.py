"""Tuner: hands trials to a runner and records their results; maximizes validation accuracy and minimizes cost.

`ask` reads top to bottom in the order in which the parts of a search are consulted: measurement queue, stopping
criterion, screening, promotion of paused trials, the searcher, final training.
"""

import contextlib
import logging
import math
from dataclasses import dataclass, field, replace

from typing_extensions import override

from runners.base import AskTell
from runners.trial import EpochReport, Teaching, TrainingSegment, Trial, TrialResult, derive_seed
from search.callbacks import Progress, SearchCallback
from search.interrupts import Interrupts
from search.latency.queue import MeasurementQueue
from search.schedulers.asha import MultiObjectiveASHA, Promotion
from search.schedulers.final_training import FinalTraining, Heir
from search.schedulers.parents import parent_for
from search.schedulers.screening import Screening, Start
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


@dataclass(eq=False, kw_only=True)
class Tuner(AskTell):
    """Hands out trials and takes their results.

    Attributes:
        scheduler: promotes trials that pause at rungs.
        screening: compares candidates before any training.
        final_training: trains the best networks on once the search has no trial left.
        stop: once it returns True, no trial begins, and running ones end at their next report, with the network that
            they have by then. The first trial, a baseline, is exempt: without it there would be neither a front
            nor anything to compare with.
        search_stop: once it returns True, no trial of the search begins but for those that are being compared before
            training; then the final training does.
        queue: measures latency between trials; None for a search that needs no latency.
        storage: outlives the process; None keeps the search in memory.
        checkpoints: keeps the weights of a result before the result is recorded.
        stopped: whether `stop` has kept trials from beginning, or has cut them short.
    """

    history: History
    pending: PendingTrials
    searcher: OptunaSearcher
    scheduler: MultiObjectiveASHA
    screening: Screening
    final_training: FinalTraining
    stop: StoppingCriterion = lambda: False
    search_stop: StoppingCriterion = lambda: False
    queue: MeasurementQueue | None = None
    storage: StudyStorage | None = None
    checkpoints: CheckpointStore = CheckpointStore()
    interrupts: Interrupts = field(default_factory=Interrupts)
    callback: SearchCallback = field(default_factory=SearchCallback)
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Start without running trials."""
        self._running = 0  # trials that workers have; parts of a screening pool share a number
        self._first: int | None = None  # number of the trial that is exempt from `stop`
        self._has_begun = bool(self.history.results)  # an earlier process has had the first trial
        self._exhausted = False  # the searcher finds no new candidate

    @property
    def total(self) -> int:
        """Number of trials of the search at its end, those of an earlier process included."""
        return self.searcher.counts.total

    @property
    def remaining(self) -> int:
        """Number of new trials that are still to be handed out."""
        numbers = self.history.numbers
        new = sum(1 for number, trial in self.pending.trials.items() if not trial.final and number not in numbers)
        return self.total - len(self.history.searched) - new

    @property
    def unfinished(self) -> bool:
        """Whether trials are left to hand out: new candidates, or further training segments of paused trials."""
        return self.searching or self._final_step() is not None

    @property
    def searching(self) -> bool:
        """Whether trials of the search itself are left to hand out."""
        return (
            self.screening.active
            or (self.remaining > 0 and not self._exhausted)
            or self._promotion(final=True) is not None
        )

    @override
    def ask(self) -> Trial | None:
        self.interrupts.check()
        if self.queue is not None:
            if self.queue.holds_back(self._running):
                return None
            if not self._running:
                self.queue.measure()
        trial = self._next()
        if trial is None and self.queue is not None and not self._running:
            self.queue.measure(last=True)
            trial = self._next()  # a network that has now entered the front may be trained to the end
        self._running += trial is not None
        return trial

    @override
    def report(self, report: EpochReport) -> bool:
        self.interrupts.check()
        if self.stop() and report.trial != self._first:
            self.stopped = True
            return False
        return math.isfinite(report.accuracy)

    @override
    def tell(self, result: TrialResult) -> None:
        """Record a result; raises StudyError when its trial is not running in this search."""
        self._running -= 1
        if self.queue is not None:
            self.queue.observe_result()
        if self.screening.compares(result.trial.number):
            winner = self.screening.tell(result)
            for loser in self.pending.select(winner) if winner is not None else ():
                self.searcher.discard(loser)
        else:
            self._record(self.screening.annotate(result))
        self.interrupts.check()

    def measure_remaining(self) -> None:
        """Measure the latency of networks that an earlier process has left unmeasured."""
        if self.queue is not None:
            self.queue.measure(last=True)

    def close(self) -> None:
        """Store pending trials as failed; they get no result."""
        for number, trial in list(self.pending.trials.items()):
            # Of a promoted trial the earlier segments are stored; one of the final training is made again.
            if not self.pending.is_promoted(number) and not trial.final:
                frozen = self.searcher.discard(trial, "interrupted")
                if self.storage is not None:
                    with contextlib.suppress(OSError):  # on a full disk they go missing, and nothing is lost with them
                        self.storage.add(frozen)
            self.pending.end(number)

    def _next(self) -> Trial | None:
        if self._has_begun and self.stop():
            self.stopped = self.stopped or self.unfinished
            return None
        if self._has_begun and self.search_stop():
            self.stopped = self.stopped or self.searching
            # What is being compared has begun: it is trained, because final training waits for all trials to end.
            return self.screening.next_winner() or self.screening.next_part() or self._train_finally()
        trial = (
            self.screening.next_winner()
            or self.screening.next_part()
            or self._promote(final=False)
            or self._new_candidate()
            or self._promote(final=True)
            or self._train_finally()
        )
        if trial is not None and not self._has_begun:
            self._has_begun, self._first = True, trial.number
        return trial

    def _promote(self, *, final: bool) -> Trial | None:
        """Return the trial that goes on with another training segment; None when none does.

        A trial whose weights are lost cannot go on; it keeps its result, with the reason in the note.
        """
        while (found := self._promotion(final=final)) is not None:
            if (trial := self._go_on(found, final=False)) is not None:
                return trial
        return None

    def _promotion(self, *, final: bool) -> Promotion | None:
        final = final and not self.final_training.epochs  # which trains members of the front to an end of its own
        return self.scheduler.promotion(self.history, self.pending.trials, final=final)

    def _go_on(self, promotion: Promotion, *, final: bool) -> Trial | None:
        """Return the trial that goes on from its own weights; None when they are lost, which its note then says."""
        earlier, trained = self.history.result(promotion.number), self.history.result(promotion.number).trained or 0
        try:
            start = self.checkpoints.read(earlier)
        except WeightsError as error:
            self.history.add(end_trial(earlier, str(error)))
            return None
        teaching = self._teaching(promotion.number) if final else None
        segment = TrainingSegment(promotion.epochs - trained, trained, start, final, teaching, promotion.completes)
        trial = replace(earlier.trial, segment=segment)
        self.pending.begin(trial)
        self.callback.on_promotion(promotion.number, promotion.epochs)
        return trial

    def _train_finally(self) -> Trial | None:
        """Return a network that is trained on after the search, or cut from one that was; None when there is none."""
        while (step := self._final_step()) is not None:
            trial = self._inherit(step) if isinstance(step, Heir) else self._go_on(step, final=True)
            if trial is not None:
                return trial
        return None

    def _final_step(self) -> Promotion | Heir | None:
        """Return the next step of the final training; None as long as trials of the search run."""
        running = self.pending.trials.values()
        if any(not (trial.final or (trial.segment is not None and trial.segment.final)) for trial in running):
            return None
        return self.final_training.next_step(self.history.results, {trial.key() for trial in running})

    def _inherit(self, heir: Heir) -> Trial | None:
        """Return a new trial that is cut from a finished network; None when the weights of that are lost."""
        try:
            start = self.checkpoints.read(heir.parent)
        except WeightsError as error:
            self.history.add(end_trial(heir.parent, str(error)))
            return None
        config = self.history.problem.config
        number = 1 + max([self.history.last_number, *self.pending.trials])
        seed = derive_seed(config.seed, heir.trial.key())
        segment = TrainingSegment(heir.epochs, 0, start, True, self._teaching(), heir.completes)
        trial = replace(heir.trial, number=number, seed=seed, segment=segment)
        self.pending.begin(trial)
        self.callback.on_phase(f"trial {number} {trial.method} is cut from the finished network {trial.parent}")
        return trial

    def _teaching(self, number: int | None = None) -> Teaching | None:
        """Return the distillation of a segment of final training; from the dense network if weights are lost.

        Args:
            number: of the trial that goes on; None for a new one.
        """
        found = self.final_training.teacher(self.history.results, number)
        if found is None:
            return None
        weight, teacher = found
        if teacher is None or not weight:
            return Teaching(weight)
        try:
            return Teaching(weight, teacher.label, self.checkpoints.read(teacher))
        except WeightsError as error:
            _log.warning("network %s cannot be the teacher of others: %s", teacher.label, error)
            return Teaching(weight)

    def _new_candidate(self) -> Trial | None:
        """Return a candidate that was not tried yet, to be trained, or to be screened with similar ones."""
        if self.remaining <= 0 or self._exhausted:
            return None
        trial = self.searcher.suggest()
        if trial is None:
            found, wanted = len(self.history.results), self.total
            _log.warning("no candidate left that was not tried: %d trials instead of %d", found, wanted)
            self._exhausted = True
            return None
        trial = replace(trial, segment=self.scheduler.first_segment(trial))
        self.pending.begin(trial)
        if not self.searcher.is_screenable(trial):
            return trial
        others = self.searcher.suggest_similar(trial, self.screening.others_wanted)
        if not others:
            self.screening.skip(trial)
            return trial
        others = [replace(other, segment=self.scheduler.first_segment(other)) for other in others]
        self.pending.screen(trial.number, others)
        self.screening.open(trial, others, self._start_of(trial))
        return self.screening.next_part()

    def _start_of(self, trial: Trial) -> Start | None:
        """Return the trained network that a candidate may be cut from instead of the dense one; None without one."""
        widths = trial.goal.widths
        if widths is None or not self.history.problem.config.inherit:
            return None
        parent = parent_for(widths, self.history.results, self.final_training.cost)
        if parent is None:
            return None
        try:
            return Start(parent, self.checkpoints.read(parent))
        except WeightsError as error:
            self.history.add(end_trial(parent, str(error)))
            return None

    def _record(self, result: TrialResult) -> None:
        """Record the result of a trial, or of another training segment of one: weights, study, history, in this order.

        A result without a finite accuracy, or over a budget, is recorded as failed with that reason. Intermediate
        networks of the trial may be over a budget: they are recorded without weights and are on no front.
        """
        number = result.trial.number
        if number not in self.pending.trials:
            raise StudyError(f"trial {number} is not running; it was never asked for, or is told already")
        earlier = self.history.result(number) if self.pending.is_promoted(number) else None
        result = validate(result, self.history.problem.budgets)
        segment = self.pending.trials[number].segment
        if earlier is not None and segment is not None:
            result = merge(earlier, result, segment)
        else:
            result = first_result(result, segment)
        result = self.checkpoints.keep(drop_checkpoints(result, self.history.problem.budgets))
        self.pending.end(number)
        frozen = self.searcher.observe(result)
        if self.storage is not None:
            self.storage.add(frozen)
        self.history.add(result)
        if earlier is not None and earlier.path != result.path:
            self.checkpoints.drop(earlier)
        results = self.history.results
        self.scheduler.observe(results)
        self.screening.observe(results)
        finished = len(self.history.searched)
        # Before the final training has begun, the networks of the front tell which ones it will take.
        final_left = self.final_training.epochs_left(results if finished >= self.total else tuple(self.history.front))
        self.callback.on_trial_end(result, Progress(finished, self.total, self.history.front, final_left))
