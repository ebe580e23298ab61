"""Study: ask and tell over an Optuna study with two objectives, validation accuracy up and FLOPs or latency down.

The stored Optuna study is the record of a search: every told result is written with its trial, as JSON without
weights, and a study opened on an existing storage goes on from there.

The sampler works on a copy of the record in memory, and a trial enters the record once, whole, when it has ended:
stored parameter by parameter, a candidate with 20 groups takes 25 commits, up to a second on a busy disk, and a
killed process would leave trials that run for ever.
"""

import contextlib
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
from search.candidates import CandidateSpace, Planned, StudySettings
from search.method_choice import choose_method
from search.pareto import LATENCY, ParetoFront, affordable, inside, measured, point
from search.record import DIRECTIONS, FRACTION, Record, StudyError, restated
from search.result import trial_result_from_dict, trial_result_to_dict
from search.samplers import BY_CHANCE, SAMPLERS, MethodSampler, SamplerOptions, check_sampler
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
        listeners: called with (result, study) after each finished trial.
        archive: called with each result before it is recorded; returns it with its weights on disk.

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
        archive: Callable[[TrialResult], TrialResult] = lambda result: result,
    ) -> None:
        check_sampler(settings.sampler)
        if settings.trials < 1:
            raise StudyError(f"trials {settings.trials} leaves nothing to do; give at least 1")
        self.budgets = tuple(budget.resolve(space.dense_cost) for budget in budgets)
        self.listeners, self._archive = list(listeners), archive
        self._candidates = CandidateSpace(settings, space, self.budgets)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its lines per trial would tear the progress bar
        limits = {budget.quantity: budget.limit for budget in self.budgets}
        identity = {"widths": dict(space.full), "methods": list(settings.methods), "budgets": limits}
        self._record = Record(settings, identity) if settings.storage else None
        self._study = optuna.create_study(directions=DIRECTIONS)
        self._results: dict[int, TrialResult] = {}
        self._by_key: dict[str, TrialResult] = {}
        self._running: dict[int, tuple[optuna.Trial, Trial]] = {}
        self._repeats = 0
        self._axis = settings.axis
        self._front = ParetoFront(axis=self._axis)
        earlier = self._read_back()
        # New budgets have control arms of their own, and one of these is tried even when no trial is left.
        left = max(1, settings.trials - earlier)
        self.settings = replace(settings, trials=earlier + left) if earlier else settings
        self._planned = self._candidates.control_arms(left) + self._candidates.warm_starts(left)
        if not earlier and (left_out := self._candidates.untried(left)):
            _logger.warning("%d trials leave none for %s; give more --trials", left, ", ".join(left_out))
        seed = derive_seed(settings.seed, f"sampler:{len(self._study.get_trials(deepcopy=False))}")
        self._study.sampler, self._random = self._sampler(seed), RandomSampler(seed=seed)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        """Every finished trial, failed ones too, in the order of their numbers."""
        return tuple(self._results[number] for number in sorted(self._results))

    @property
    def front(self) -> ParetoFront:
        """The non-dominated networks inside the budgets so far."""
        return self._front

    @property
    def repeats(self) -> int:
        """How many proposals repeated an earlier candidate and were answered from its result."""
        return self._repeats

    @property
    def remaining(self) -> int:
        """How many trials are still to be given out."""
        return self.settings.trials - len(self._results) - len(self._running)

    def ask(self) -> Trial | None:
        """Return the next candidate not tried yet; None when all trials are given out or the space is exhausted."""
        if self.remaining <= 0:
            return None
        while self._planned:
            trial = self._propose(self._planned.pop(0))
            if trial is not None:
                return trial
        for _ in range(REPEATS):
            if (trial := self._propose()) is not None:
                return trial
        with self._sampling_at_random():
            for _ in range(REPEATS):
                if (trial := self._propose()) is not None:
                    return trial
        _logger.warning(
            "no candidate left that was not tried: %d trials instead of %d", len(self._results), self.settings.trials
        )
        return None

    def report(self, report: EpochReport) -> bool:
        """Take an intermediate report; a trial whose accuracy is no number any more need not go on."""
        return math.isfinite(report.accuracy)

    def tell(self, result: TrialResult) -> None:
        """Record a finished trial.

        A result without a finite accuracy, or over a budget, is recorded as failed with that reason. Networks that its
        trial passed may be over a budget: they are recorded without weights and are on no front.

        Raises:
            StudyError: the trial is not running in this study.
        """
        number = result.trial.number
        if number not in self._running:
            raise StudyError(f"trial {number} is not running; it was never asked for, or is told already")
        result = self._archive(self._lightened(self._checked(result)))
        handle, _ = self._running.pop(number)
        handle.set_user_attr("result", trial_result_to_dict(result))
        if result.error:
            handle.set_user_attr("reason", result.error)
        self._write(self._end(handle, result))
        self._keep(result)
        for listener in self.listeners:
            listener(result, self)

    def timed(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Note the latency of a network; a good one lets it on the front, where its other budgets hold."""
        number = int(label.partition(".")[0])

        def noted(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(readings)) if network.label == label else network

        if self._record is not None:
            self._record.note_latency(label, readings)
        self._keep(self._results[number].with_each(noted))

    def pin(self, name: str, digest: str) -> None:
        """Note in the record what every result rests on; raises StudyError when its results rest on another."""
        if self._record is not None:
            self._record.pin(name, digest)

    def pinned(self, name: str) -> str | None:
        """Return the digest that the record notes under this name."""
        return None if self._record is None else self._record.pinned(name)

    def revise(self, change: Callable[[TrialResult], TrialResult]) -> None:
        """Change every network known so far, e.g. mark what has lost its weights; the record stays as it is."""
        results, self._front = self.results, ParetoFront(axis=self._axis)
        for result in results:
            self._keep(result.with_each(change))

    def close(self) -> None:
        """Mark the trials that were asked for and not told as failed; they are no results."""
        for handle, _ in self._running.values():
            handle.set_user_attr("reason", "interrupted")
            self._write(self._end(handle, None))
        self._running.clear()

    def _propose(self, planned: Planned | None = None) -> Trial | None:
        """Return the next candidate, or None when it repeats an earlier one (which is told to the sampler)."""
        if planned is not None:
            self._study.enqueue_trial(dict(planned.parameters))
        handle = self._study.ask()
        candidate = self._candidates.draw(handle, planned)
        number = max([-1, *self._results, *self._running]) + 1
        arm = planned.arm if planned else ""
        trial = Trial(number, candidate.method, candidate.goal, candidate.settings, arm=arm)
        key = trial.key()
        trial = replace(trial, seed=derive_seed(self.settings.seed, key))
        if (known := self._by_key.get(key)) is not None:
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
        options = SamplerOptions(seed, len(self._planned), settings.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group and multivariate TPE are, for years
            sampler = SAMPLERS[settings.sampler](options)
        return sampler if settings.sampler in BY_CHANCE else MethodSampler(sampler, self._choose_method)

    def _choose_method(self, fraction: float) -> str:
        """Return the method for the next trial, which may cost that fraction of the budget."""
        tried = [self._candidates.tried(each.trial, each) for each in self._results.values()]
        tried += [self._candidates.tried(trial) for _, trial in self._running.values()]
        seed = derive_seed(self.settings.seed, f"method:{len(tried)}")
        return choose_method(self.settings.methods, tried, fraction, seed)

    def _end(self, handle: optuna.Trial, result: TrialResult | None) -> FrozenTrial:
        """Tell the sampler the values of a result, or that there are none; never a number that is not finite."""
        if result is None or not measured(result):
            return self._study.tell(handle, state=OptunaState.FAIL)
        flops, accuracy = point(result)
        guide = self.settings.guide if self._axis == LATENCY else None
        return self._study.tell(handle, [accuracy, float(flops) if guide is None else guide.told(result)])

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
        useful = {network.label for network in affordable([result], self.budgets)}  # none is timed yet
        return result.with_checkpoints({label: each for label, each in result.checkpoints.items() if label in useful})

    def _keep(self, result: TrialResult) -> None:
        self._results[result.trial.number] = result
        self._by_key[result.trial.key()] = result
        self._front = self._front.with_results(inside([result], self.budgets, self._axis))

    def _read_back(self) -> int:
        """Take up the record; return how many results were found under other budgets."""
        if self._record is None:
            return 0
        before, lowest, found = self._record.earlier, self._candidates.lowest_fraction, 0
        latencies = self._record.latencies

        def timed(network: TrialResult) -> TrialResult:
            return replace(network, latency=tuple(latencies.get(network.label, ())))

        for index, frozen in enumerate(self._record.trials):
            data = frozen.user_attrs.get("result")
            result = None if data is None else trial_result_from_dict(data)
            if result is not None:
                result = result.with_each(timed)
                self._keep(result)
                found += index < before
            own = getattr(frozen.distributions.get(FRACTION), "low", lowest)
            if index >= before and own == lowest:
                self._study.add_trial(frozen)
            elif result is not None:
                again = restated(frozen, self._candidates.fraction(result.trial, result), lowest)
                if again is not None:
                    self._study.add_trial(again)
        return found

    @contextlib.contextmanager
    def _sampling_at_random(self) -> Iterator[None]:
        sampler, self._study.sampler = self._study.sampler, self._random
        try:
            yield
        finally:
            self._study.sampler = sampler
