"""Study: ask and tell over an Optuna study with two objectives, validation accuracy up and FLOPs or latency down.

The stored Optuna study is the record of a search: every told result is written with its trial, as JSON without
weights, and a study opened on an existing storage goes on from there.

The sampler works on a copy of the record in memory, and a trial enters the record once, whole, when it has ended:
stored parameter by parameter, a candidate with 20 groups takes 25 commits, up to a second on a busy disk, and a
killed process would leave trials that run for ever.
"""

import contextlib
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from runners.trial import EpochReport, Trial, TrialResult, TrialState, derive_seed
from search.archive import Archive, InMemory
from search.candidates import CandidateSpace, Planned
from search.known import Known
from search.ladder import Ladder
from search.legs import after_first, joined
from search.method_choice import Tried, choose_method
from search.pareto import ParetoFront, affordable, measured, point
from search.record import DIRECTIONS, FRACTION, Record, StudyError, continued, restated
from search.result import trial_result_from_dict, trial_result_to_dict
from search.samplers import BY_CHANCE, CLUSTERING, SAMPLERS, MethodSampler, SamplerOptions, check_sampler
from search.spread import TURN, widest_gap
from search.study_settings import StudySettings
from spaces.budget import Budget
from spaces.space import SearchSpace

__all__ = ["SAMPLERS", "Study", "StudyError", "StudySettings", "check_sampler"]

REPEATS = 100  # proposals in a row that may repeat earlier ones before random ones are taken, and as many of those
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
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its lines per trial would tear the progress bar
        limits: dict[str, object] = {budget.quantity: budget.limit for budget in self.budgets}
        if targets := [target.limit for target in self._candidates.targets]:
            limits["targets"] = targets
        identity = {"widths": dict(space.full), "methods": list(settings.methods), "budgets": limits}
        self._record = Record(settings, identity) if settings.storage else None
        self._study = optuna.create_study(directions=DIRECTIONS)
        self._known = Known(self.budgets, settings.axis)
        self._running: dict[int, tuple[optuna.Trial | None, Trial]] = {}  # None: another leg of a finished one
        self._stored: dict[int, FrozenTrial] = {}  # of finished trials, as their first leg was told
        self._ladder = Ladder(settings.rungs, self.budgets, settings.cost)
        self._repeats, self._exhausted = 0, False
        earlier = self._read_back()
        # New budgets have control arms of their own, and these are tried even when no trial is left: one, or one at
        # each target.
        left = max(1, len(settings.targets), settings.trials - earlier) if earlier else settings.trials
        self.settings = replace(settings, trials=earlier + left) if earlier else settings
        self._planned = self._candidates.control_arms(left) + self._candidates.warm_starts(left)
        if not earlier and (left_out := self._candidates.untried(left)):
            _logger.warning("%d trials leave none for %s; give more --trials", left, ", ".join(left_out))
        if unserved := ", ".join(str(target) for target in self._candidates.unserved(left)):
            _logger.warning("%d trials leave no uniform widths at target %s; give more --trials", left, unserved)
        seed = derive_seed(settings.seed, f"sampler:{len(self._study.get_trials(deepcopy=False))}")
        self._study.sampler, self._random = self._sampler(seed), RandomSampler(seed=seed)

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
        found = [each for each in self._known.inside() if each.cost is not None and target.allows(each.cost)]
        return max(found, key=lambda each: point(each)[1], default=None)

    @property
    def repeats(self) -> int:
        """How many proposals repeated an earlier candidate and were answered from its result."""
        return self._repeats

    @property
    def remaining(self) -> int:
        """How many trials are still to be given out."""
        return self.settings.trials - len(self._known.numbers | self._running.keys())

    @property
    def unfinished(self) -> bool:
        """Whether there is more to give out by what is known now, new trials or legs of known ones."""
        return (self.remaining > 0 and not self._exhausted) or self._ladder.next(
            self._known, self._given_out, completing=True
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
        trial = self._ladder.next_leg(self._known, self._given_out, self._archive, completing=completing)
        if trial is not None and trial.leg is not None:
            self._running[trial.number] = (None, trial)
            for listener in self.climbing:
                listener(trial.number, trial.leg.end)
        return trial

    @property
    def _given_out(self) -> dict[int, Trial]:
        return {number: trial for number, (_, trial) in self._running.items()}

    def _next_candidate(self) -> Trial | None:
        while self._planned:
            trial = self._propose(self._planned.pop(0))
            if trial is not None:
                return trial
        for turn in range(REPEATS):
            if (trial := self._propose(fraction=self._next_fraction(turn))) is not None:
                return trial
        with self._sampling_at_random():
            for turn in range(REPEATS):
                if (trial := self._propose(fraction=self._candidates.next_fraction(self._given, turn))) is not None:
                    return trial
        _logger.warning(
            "no candidate left that was not tried: %d trials instead of %d",
            len(self.results),
            self.settings.trials,
        )
        self._exhausted = True
        return None

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
        if number not in self._running:
            raise StudyError(f"trial {number} is not running; it was never asked for, or is told already")
        handle, trial = self._running[number]
        earlier = self._known.of(number) if handle is None else None
        result = self._checked(result)
        if earlier is not None and trial.leg is not None:
            result = joined(earlier, result, trial.leg)
        else:
            result = after_first(result, trial.leg)
        result = self._archive.keep(self._lightened(result))
        del self._running[number]
        self._write(self._told(handle, result))
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
        self._known.keep(self._known.of(int(label.partition(".")[0])).with_each(noted))

    def learn_sensitivities(self, sensitivities: Mapping[str, float]) -> None:
        """Start from what narrowing each group alone was measured to cost, and let the sampler use it."""
        self._candidates.sensitivities = sensitivities
        self._planned += self._candidates.sensitive_starts(self.remaining)

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
        for handle, _ in self._running.values():
            if handle is None:  # what its earlier legs gave is in the record
                continue
            handle.set_user_attr("reason", "interrupted")
            self._write(self._end(handle, None))
        self._running.clear()

    @property
    def _given(self) -> list[Trial]:
        """Every trial given out, running ones too."""
        begun = [trial for handle, trial in self._running.values() if handle is not None]
        return [*(each.trial for each in self.results), *begun]

    def _next_fraction(self, turn: int) -> float | None:
        """Return the budget fraction of the next trial; None leaves it to the sampler.

        Args:
            turn: how many proposals in a row have repeated earlier ones.
        """
        if self._candidates.targets:
            return self._candidates.next_fraction(self._given, turn)
        if not self.settings.even or self.settings.sampler not in CLUSTERING or turn >= TURN:
            return None
        known = [self._candidates.places(each.trial, each) for each in self._known.first.values()]
        begun = [self._candidates.places(trial) for handle, trial in self._running.values() if handle is not None]
        return widest_gap(itertools.chain(*known, *begun), self._candidates.lowest_fraction)

    def _propose(self, planned: Planned | None = None, fraction: float | None = None) -> Trial | None:
        """Return the next candidate, or None when it repeats an earlier one (which is told to the sampler).

        Args:
            fraction: that the sampler finds chosen already, among the trial's fixed parameters.
        """
        if planned is not None:
            self._study.enqueue_trial(dict(planned.parameters))
        elif fraction is not None:
            self._study.enqueue_trial({FRACTION: fraction})
        handle = self._study.ask()
        candidate = self._candidates.draw(handle, planned)
        number = max([-1, *self._known.numbers, *self._running]) + 1
        arm = planned.arm if planned else ""
        trial = Trial(
            number, candidate.method, candidate.goal, candidate.settings, arm=arm, training=candidate.training
        )
        key = trial.key()
        leg = self._ladder.begin(trial, self.results) if self._candidates.pausable(trial) else None
        trial = replace(trial, seed=derive_seed(self.settings.seed, key), leg=leg)
        if (known := self._known.like(key)) is not None:
            handle.set_user_attr("duplicate_of", known.trial.number)
            self._end(handle, known)
            self._repeats += 1
            return None
        for _, running in self._running.values():
            if running.key() == key:
                handle.set_user_attr("duplicate_of", running.number)
                self._end(handle, None)
                self._repeats += 1
                return None
        self._running[number] = (handle, trial)
        return trial

    def _sampler(self, seed: int) -> BaseSampler:
        settings = self.settings
        options = SamplerOptions(seed, len(self._planned), settings.trials, self._candidates)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group and multivariate TPE are, for years
            sampler = SAMPLERS[settings.sampler](options)
        return sampler if settings.sampler in BY_CHANCE else MethodSampler(sampler, self._choose_method)

    def _choose_method(self, fraction: float) -> str:
        """Return the method for the next trial, which may cost that fraction of the budget."""
        tried = self._tried()
        seed = derive_seed(self.settings.seed, f"method:{len(tried)}")
        return choose_method(self.settings.methods, tried, fraction, seed)

    def _tried(self) -> list[Tried]:
        """Return what was tried, each after its first leg, where all have had the same training."""
        tried = [self._candidates.tried(each.trial, each) for each in self._known.first.values()]
        return tried + [self._candidates.tried(trial) for handle, trial in self._running.values() if handle is not None]

    def _end(self, handle: optuna.Trial, result: TrialResult | None) -> FrozenTrial:
        """Tell the sampler the values of a result, or that there are none; never a number that is not finite."""
        if result is None or not measured(result):
            return self._study.tell(handle, state=OptunaState.FAIL)
        return self._study.tell(handle, [point(result)[1], float(self.settings.cost(result))])

    def _told(self, handle: optuna.Trial | None, result: TrialResult) -> FrozenTrial:
        """Tell the sampler a result with all that the record has of it; another leg is a trial of its own to it."""
        number = result.trial.number
        attributes: dict[str, Any] = {"result": trial_result_to_dict(result)}
        if result.trained is not None:
            attributes["epochs"] = result.trained
        if result.error:
            attributes["reason"] = result.error
        if handle is None:
            frozen = continued(self._stored[number], (point(result)[1], self.settings.cost(result)), attributes)
            self._study.add_trial(frozen)
            return frozen
        for name, value in attributes.items():
            handle.set_user_attr(name, value)
        frozen = self._end(handle, result)
        self._stored[number] = frozen
        return frozen

    def _write(self, trial: FrozenTrial) -> None:
        if self._record is not None:
            self._record.add(trial)

    def _checked(self, result: TrialResult) -> TrialResult:
        if result.state is TrialState.FAILED:
            return result if result.error else replace(result, error="failed without a reason")
        if not measured(result) or result.cost is None:
            error = f"accuracy {result.accuracy} is not finite" if result.cost else "no cost was measured"
            return replace(result, state=TrialState.FAILED, accuracy=None, error=error)
        for budget in self.budgets:
            if budget.quantity != "latency" and not budget.allows(result.cost):
                cost = getattr(result.cost, budget.quantity)
                error = f"the network has {cost:,} {budget.quantity}, over the budget of {budget}"
                return replace(result, state=TrialState.FAILED, error=error)
        return result

    def _lightened(self, result: TrialResult) -> TrialResult:
        """Drop the weights of networks over a budget: no front can have them, and each weighs as much as a result."""
        useful = {network.label for network in affordable([result], self.budgets)}  # timed or not
        return result.with_checkpoints({label: each for label, each in result.checkpoints.items() if label in useful})

    def _read_back(self) -> int:
        """Take up the record; return how many results were found under other budgets."""
        if self._record is None:
            return 0
        before, lowest = self._record.earlier, self._candidates.lowest_fraction
        latencies, found = self._record.latencies, set[int]()

        def timed(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(latencies.get(network.label, ())))

        for index, frozen in enumerate(self._record.trials):
            data = frozen.user_attrs.get("result")
            result = None if data is None else trial_result_from_dict(data)
            if result is not None:
                self._known.keep(result.with_each(timed))  # of several legs the last, which is the longest
                self._stored.setdefault(result.trial.number, frozen)
                if index < before:
                    found.add(result.trial.number)
            own = getattr(frozen.distributions.get(FRACTION), "low", lowest)
            if index >= before and own == lowest:
                self._study.add_trial(frozen)
            elif result is not None:
                again = restated(frozen, self._candidates.fraction(result.trial, result), lowest)
                if again is not None:
                    self._study.add_trial(again)
        return len(found)

    @contextlib.contextmanager
    def _sampling_at_random(self) -> Iterator[None]:
        sampler, self._study.sampler = self._study.sampler, self._random
        try:
            yield
        finally:
            self._study.sampler = sampler
