"""Study: ask and tell over an Optuna study with two objectives, validation accuracy up and FLOPs or latency down.

The stored Optuna study is the record of a search: every told result is written with its trial, as JSON without
weights, and a study opened on an existing storage goes on from there.

The sampler works on a copy of the record in memory, and a trial enters the record once, whole, when it has ended:
stored parameter by parameter, a candidate with 20 groups takes 25 commits, up to a second on a busy disk, and a
killed process would leave trials that run for ever.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from runners.trial import EpochReport, Trial, TrialResult
from search.results.pareto import ParetoFront
from search.results.serialization import trial_result_from_dict
from search.schedulers.ladder import Ladder
from search.schedulers.segments import after_first, joined
from search.searchers.asking import Asking
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import Starts
from search.searchers.samplers import SAMPLERS, check_sampler
from search.searchers.sampling import Handle
from search.searchers.study_settings import StudySettings
from search.storage.acceptance import checked, lightened
from search.storage.checkpoints import Archive, InMemory
from search.storage.history import Known
from search.storage.pending import GivenOut
from search.storage.study_storage import Record, StudyError
from spaces.budget import Budget
from spaces.space import SearchSpace

__all__ = ["SAMPLERS", "Study", "StudyError", "StudySettings", "check_sampler"]

_logger = logging.getLogger(__name__)

Listener = Callable[[TrialResult, "Study"], None]


class Study:
    """Where trials come from and where results go (implements `runners.AskTell`).

    Args:
        space: of the network.
        budgets: that every candidate must meet; relative ones are taken of the dense network.
        listeners: called with (result, study) after each finished trial, and each leg of one.
        archive: keeps the weights of each result before it is recorded.

    Raises:
        UnknownNameError: sampler or method.
        StudyError: trials below one, or a storage that cannot be used or holds another search.
    """

    def __init__(
        self,
        settings: StudySettings,
        space: SearchSpace,
        budgets: Sequence[Budget],
        listeners: Sequence[Listener] = (),
        archive: Archive | None = None,
    ) -> None:
        check_sampler(settings.sampler)
        if settings.trials < 1:
            raise StudyError(f"trials {settings.trials} leaves nothing to do; give at least 1")
        self.budgets = tuple(budget.resolve(space.dense_cost) for budget in budgets)
        self.listeners, self._archive = list(listeners), archive or InMemory()
        self.climbing: list[Callable[[int, int], None]] = []  # called with (number, epochs) when a trial goes on
        self._candidates = CandidateSpace(settings, space, self.budgets)
        limits: dict[str, object] = {budget.quantity: budget.limit for budget in self.budgets}
        if targets := [target.limit for target in self._candidates.targets]:
            limits["targets"] = targets
        identity = {"widths": dict(space.full), "methods": list(settings.methods), "budgets": limits}
        self._known = Known(self.budgets, settings.axis)
        self._given_out = GivenOut[Handle]()
        self._ladder = Ladder(settings.rungs, self.budgets, settings.cost)
        self._asking = Asking(settings, self._candidates, self._known, self._ladder, self._given_out)
        self._sampling = self._asking.sampling
        self._record = Record(settings, identity) if settings.storage else None  # quietly, once there is a sampling
        self._exhausted = False
        earlier = self._read_back()
        # New budgets have control arms of their own, and these are tried even when no trial is left: one, or one at
        # each target.
        left = max(1, len(settings.targets), settings.trials - earlier) if earlier else settings.trials
        self.settings = replace(settings, trials=earlier + left) if earlier else settings
        self._starts = Starts(self._candidates)
        self._asking.planned = self._starts.baselines(left) + self._starts.warm_starts(left)
        for text in self._starts.left_out(left, resumed=earlier > 0):
            _logger.warning("%s", text)
        self._sampling.start(len(self._asking.planned), self.settings.trials)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """Every finished trial, failed ones too, in the order of their numbers."""
        return self._known.results

    @property
    def targets(self) -> tuple[Budget, ...]:
        """Absolute, the largest first; none unless asked for."""
        return self._candidates.targets

    @property
    def front(self) -> ParetoFront:
        """The non-dominated networks inside the budgets so far."""
        return self._known.front

    def best_at(self, target: Budget) -> TrialResult | None:
        """Return the most accurate network inside all budgets and this one; None when there is none."""
        return self._known.best_at(target)

    @property
    def repeats(self) -> int:
        """How many proposals repeated an earlier candidate and were answered from its result."""
        return self._asking.repeats

    @property
    def remaining(self) -> int:
        """How many trials are still to be given out."""
        return self.settings.trials - len(self._known.numbers | self._given_out.running.keys())

    @property
    def unfinished(self) -> bool:
        """Whether there is more to give out by what is known now, new trials or legs of known ones."""
        return (self.remaining > 0 and not self._exhausted) or self._ladder.next(
            self._known, self._given_out.trials, completing=True
        ) is not None

    def ask(self) -> Trial | None:
        """Return a trial that goes on to its next rung, else a candidate not tried yet.

        None when all trials are given out or the space is exhausted, and all that shall go on has gone on; while some
        run, others may yet go on when these are told.
        """
        if (trial := self._next_leg(completing=False)) is not None:
            return trial
        if self.remaining > 0 and not self._exhausted and (trial := self._next_candidate()) is not None:
            return trial
        return self._next_leg(completing=True)

    def _next_leg(self, *, completing: bool) -> Trial | None:
        trial = self._ladder.next_leg(self._known, self._given_out.trials, self._archive, completing=completing)
        if trial is not None and trial.segment is not None:
            self._given_out.running[trial.number] = (None, trial)
            for listener in self.climbing:
                listener(trial.number, trial.segment.end)
        return trial

    def _next_candidate(self) -> Trial | None:
        trial = self._asking.next()
        if trial is None:
            found, wanted = len(self.results), self.settings.trials
            _logger.warning("no candidate left that was not tried: %d trials instead of %d", found, wanted)
            self._exhausted = True
        return trial

    def rivals(self, trial: Trial, count: int) -> list[Trial]:
        """Return up to so many candidates that a trial is compared with before any of them is trained.

        They have its number, method and budget fraction; `settle` says which of them is the trial. None where the
        trial was planned, goes on from weights, or its method has nothing to compare before the training.
        """
        return self._asking.rivals(trial, count)

    def is_screenable(self, trial: Trial) -> bool:
        """Whether rivals of a trial could be compared with it: it is new, proposed, and cut before any training."""
        return self._asking.is_screenable(trial)

    def settle(self, chosen: Trial) -> None:
        """Go on with this one of a trial and its rivals; the others are neither tried nor proposed again."""
        for handle in self._given_out.settle(chosen):
            self._sampling.end(handle, None)

    def report(self, report: EpochReport) -> bool:
        """Take an intermediate report; a trial whose accuracy is no number any more need not go on."""
        return math.isfinite(report.accuracy)

    def tell(self, result: TrialResult) -> None:
        """Record a finished trial, or another leg of one.

        A result without a finite accuracy, or over a budget, is recorded as failed with that reason. Networks that its
        trial passed may be over a budget: they are recorded without weights and are on no front.

        Raises:
            StudyError: the trial is not running in this study.
        """
        number = result.trial.number
        if number not in self._given_out.running:
            raise StudyError(f"trial {number} is not running; it was never asked for, or is told already")
        handle, trial = self._given_out.running[number]
        earlier = self._known.of(number) if handle is None else None
        result = checked(result, self.budgets)
        if earlier is not None and trial.segment is not None:
            result = joined(earlier, result, trial.segment)
        else:
            result = after_first(result, trial.segment)
        result = self._archive.keep(lightened(result, self.budgets))
        del self._given_out.running[number]
        self._write(self._sampling.tell(handle, result))
        self._known.keep(result)
        if earlier is not None and earlier.path != result.path:
            self._archive.drop(earlier)
        for listener in self.listeners:
            listener(result, self)

    def timed(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Note the latency of a network; a good one lets it on the front, where its other budgets hold."""

        def noted(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(readings)) if network.label == label else network

        if self._record is not None:
            self._record.note_latency(label, readings)
        self._known.keep(self._known.of(int(label.partition(".")[0])).map_networks(noted))

    def learn_sensitivities(self, sensitivities: Mapping[str, float]) -> None:
        """Start from what narrowing each group alone was measured to cost, and let the sampler use it."""
        self._candidates.sensitivities = sensitivities
        self._asking.planned += self._starts.sensitive_starts(self.remaining)

    def pin(self, name: str, digest: str) -> None:
        """Note in the record what every result rests on; raises StudyError when its results rest on another."""
        if self._record is not None:
            self._record.pin(name, digest)

    def pinned(self, name: str) -> str | None:
        """Return the digest that the record notes under this name."""
        return None if self._record is None else self._record.pinned(name)

    def revise(self, change: Callable[[TrialResult], TrialResult]) -> None:
        """Change every network known so far, e.g. mark what has lost its weights; the record stays as it is."""
        self._known.revise(change)

    def close(self) -> None:
        """Mark the trials that were asked for and not told as failed; they are no results."""
        for handle, _ in self._given_out.running.values():
            if handle is None:  # what its earlier legs gave is in the record
                continue
            handle.set_user_attr("reason", "interrupted")
            self._write(self._sampling.end(handle, None))
        self._given_out.running.clear()

    def _write(self, trial: FrozenTrial) -> None:
        if self._record is not None:
            self._record.add(trial)

    def _read_back(self) -> int:
        """Take up the record; return how many results were found under other budgets."""
        if self._record is None:
            return 0
        before, latencies, found = self._record.earlier, self._record.latencies, set[int]()

        def timed(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(latencies.get(network.label, ())))

        for index, frozen in enumerate(self._record.trials):
            data = frozen.user_attrs.get("result")
            result = None if data is None else trial_result_from_dict(data)
            if result is not None:
                self._known.keep(result.map_networks(timed))  # of several legs the last, which is the longest
                if index < before:
                    found.add(result.trial.number)
            self._sampling.take_up(frozen, result, earlier=index < before)
        return len(found)
