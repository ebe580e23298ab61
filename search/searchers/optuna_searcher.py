"""OptunaSearcher: proposes the initial design first, then candidates of an Optuna sampler, each of them once.

The sampler works on a bounded study in memory, which takes the trials of an earlier process from the storage.
"""

import itertools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from runners.trial import Trial, TrialResult, derive_seed
from search.problem import BASELINES, Problem
from search.results.pareto import measured, objectives
from search.searchers.candidate_space import Candidate, CandidateSpace, InitialPoint
from search.searchers.cost_coverage import MAX_REPEATS, largest_gap
from search.searchers.initial_design import InitialDesign
from search.searchers.method_choice import choose_method
from search.searchers.neighbours import neighbour
from search.searchers.parameters import ALLOCATION, BUDGET_FRACTION, METHOD, WIDTH, with_present_names
from search.searchers.samplers import BY_CHANCE, CLUSTERING, SAMPLERS, MethodSampler, SamplerOptions
from search.searchers.structured_sampler import DUPLICATE, EPOCHS
from search.storage.bounded_study import BoundedStudy
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.storage.study_storage import StoredTrial, trial_attributes
from spaces.widths import Widths

_log = logging.getLogger(__name__)

REPEATS = 100  # proposals in a row that may repeat earlier ones; after them random ones, which may repeat as often
SIMILAR_REPEATS = 12  # the same for candidates of a screening pool: small spaces have few at one budget fraction
COMPARED = 500  # latest trials from which the next method is chosen
SAMPLED = 8  # of a screening pool, by the sampler; all others are neighbours, which take a hundredth of the time
_Proposed = tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]  # parameters of a trial, and where from


@dataclass(frozen=True)
class TrialCounts:
    """How many trials a search has.

    Attributes:
        total: number of trials at the end of the search, those of an earlier process under other budgets included.
        left: number of trials under the present budgets. Changed budgets get baselines of their own, at each target,
            even when no trial is left.
    """

    total: int
    left: int

    @classmethod
    def of(cls, problem: Problem, stored: Sequence[StoredTrial]) -> "TrialCounts":
        """Count the trials of a search that goes on from stored ones."""
        results = [trial.result for trial in stored if trial.earlier and trial.result is not None]
        earlier = len({result.trial.number for result in results if not result.trial.final})
        baselines = len(BASELINES) * max(1, len(problem.targets))
        left = max(baselines, problem.config.trials - earlier) if earlier else problem.config.trials
        return cls(earlier + left, left)


class OptunaSearcher:
    """Suggests candidates that were not tried yet, and observes their results.

    Args:
        stored: trials of an earlier process.
        sensitivities: group -> loss from narrowing it alone to half; None where they were not measured.
        even: whether samplers that cluster are told where on the budget range to go, so that the front comes out even
            in log cost. False leaves them as their library makes them, to compare them with each other.

    Attributes:
        repeats: number of proposals that repeated an earlier candidate and were answered from its result.

    Raises:
        UnknownNameError: no such sampler.
    """

    def __init__(
        self,
        candidates: CandidateSpace,
        history: History,
        pending: PendingTrials,
        stored: Sequence[StoredTrial] = (),
        *,
        sensitivities: Mapping[str, float] | None = None,
        even: bool = True,
    ) -> None:
        self._candidates, self._history, self._pending, self._even = candidates, history, pending, even
        self._config = candidates.problem.config
        self.counts = counts = TrialCounts.of(candidates.problem, stored)
        design = InitialDesign(candidates)
        self._initial = design.points(counts.left)
        startup = len(self._initial)
        self._initial += design.sensitive(counts.total - len(history.searched), sensitivities)
        for text in design.left_out(counts.left, resumed=counts.total > counts.left):
            _log.warning("%s", text)
        self._initial_numbers: set[int] = set()
        self._asked: dict[str, optuna.Trial] = {}  # by candidate key, of trials that run for the first time
        self._proposed: dict[int, _Proposed] = {}  # by number
        self._distributions: dict[BaseDistribution, BaseDistribution] = {}  # one object for all equal ones
        self.repeats = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its lines per trial would tear the progress bar
        self._bounded = BoundedStudy()
        restored = [found for trial in stored if (found := self._restored(trial)) is not None]
        self._bounded.restore(restored)
        seed = derive_seed(self._config.seed, f"sampler:{len(restored)}")
        self._random = RandomSampler(seed=seed)
        options = SamplerOptions(seed, startup, counts.total, candidates, sensitivities)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group and multivariate TPE are, for years
            sampler = SAMPLERS[self._config.sampler](options)
        by_chance = self._config.sampler in BY_CHANCE
        self._study.sampler = sampler if by_chance else MethodSampler(sampler, self._choose_method)
        self._sampler = self._study.sampler

    @property
    def _study(self) -> optuna.Study:
        return self._bounded.study

    def suggest(self) -> Trial | None:
        """Return the next candidate; None when even random proposals find none that was not tried."""
        while self._initial:
            trial = self._propose(self._initial.pop(0))
            if trial is not None:
                self._initial_numbers.add(trial.number)
                return trial
        for repeats in range(REPEATS):
            if (trial := self._propose(given=_at(self._next_fraction(repeats)))) is not None:
                return trial
        for repeats in range(REPEATS):
            if (trial := self._propose(given=_at(self._next_target(repeats)), at_random=True)) is not None:
                return trial
        return None

    def suggest_similar(self, trial: Trial, count: int) -> list[Trial]:
        """Return up to so many other candidates that differ from a pending trial in their widths alone.

        The sampler proposes the first ones, unless it is one by chance, which proposes all. The others are neighbours
        of the trial and of the network of the front that is nearest in cost, in turn.
        """
        parameters = self._asked[trial.candidate_key()].params
        shared = {name: value for name, value in parameters.items() if not name.startswith(WIDTH)}
        shared |= {METHOD: trial.method, ALLOCATION: "search"}
        origins = self._origins(trial, parameters[BUDGET_FRACTION])
        random = np.random.default_rng(trial.seed)
        groups = self._candidates.problem.space.variable
        found: list[Trial] = []
        repeats = 0
        while len(found) < count and repeats < SIMILAR_REPEATS:
            sampled = self._config.sampler in BY_CHANCE or len(found) + 1 < SAMPLED or not origins
            widths = {} if sampled else neighbour(origins[len(found) % len(origins)], groups, random)
            # All parameters of a neighbour are given, and not every sampler sees that and saves its time.
            other = self._propose(given={**shared, **widths}, similar_to=trial, at_random=not sampled)
            found += [] if other is None else [other]
            repeats = repeats + 1 if other is None else 0
        return found

    def _origins(self, trial: Trial, fraction: float) -> list[Widths]:
        """Return the widths whose neighbours are compared with a trial at this fraction of the scaled budget."""

        def distance(member: TrialResult) -> float:
            return abs(math.log(self._candidates.observe(member.trial, member).fraction / fraction))

        nearest = min(self._history.front, key=distance, default=None)
        known = (trial.goal.widths, nearest.widths if nearest is not None else None)
        return [widths for widths in known if widths is not None]

    def is_screenable(self, trial: Trial) -> bool:
        """Return whether a new trial can be screened: a sampler proposed it, and its method cuts before training."""
        return trial.number not in self._initial_numbers and self._candidates.screenable(trial)

    def observe(self, result: TrialResult) -> FrozenTrial:
        """Tell the sampler a result; return the trial as it is stored.

        To the sampler, a later training segment of a trial is a trial of its own.
        """
        number = result.trial.number
        attributes = trial_attributes(result)
        if result.trained is not None:
            attributes[EPOCHS] = result.trained
        if result.error:
            attributes["reason"] = result.error
        asked = self._asked.pop(result.trial.candidate_key(), None)
        if asked is None:
            params, distributions = self._proposed.get(number, ({}, {}))  # none of a trial that the final training made
            failed = not measured(result)
            frozen = optuna.trial.create_trial(
                state=OptunaState.FAIL if failed else OptunaState.COMPLETE,
                values=None if failed else [objectives(result)[1], self._candidates.objective_cost(result)],
                params=dict(params),
                distributions=dict(distributions),
                user_attrs=attributes,
            )
            if not result.final_epochs:  # what longer training has reached would mislead the sampler
                self._study.add_trial(frozen)
                self._bounded.shrink(self._asked.values())
            return frozen
        for name, value in attributes.items():
            asked.set_user_attr(name, value)
        frozen = self._end(asked, result)
        self._remember(number, frozen)
        self._bounded.shrink(self._asked.values())
        return frozen

    def discard(self, trial: Trial, reason: str = "") -> FrozenTrial:
        """Tell the sampler that a candidate will have no result; return the trial as it is stored."""
        asked = self._asked.pop(trial.candidate_key())
        if reason:
            asked.set_user_attr("reason", reason)
        return self._end(asked, None)

    def _propose(
        self,
        initial: InitialPoint | None = None,
        given: Mapping[str, Any] | None = None,
        similar_to: Trial | None = None,
        *,
        at_random: bool = False,
    ) -> Trial | None:
        """Return the next candidate, or None when it repeats an earlier one (which the sampler is told).

        Args:
            given: parameters that are not left to the sampler.
            similar_to: trial whose number the candidate gets.
            at_random: sample uniformly, instead of by the sampler of the search.
        """
        given = initial.parameters if initial is not None else given
        if given:
            self._study.enqueue_trial(dict(given))
        self._study.sampler = self._random if at_random else self._sampler
        asked = self._study.ask()
        drawn = self._candidates.draw(asked, initial, self._is_known)
        self._study.sampler = self._sampler
        next_number = max([self._history.last_number, *self._pending.trials]) + 1
        number = next_number if similar_to is None else similar_to.number
        baseline = initial.baseline if initial else ""
        trial = Trial(number, drawn.method, drawn.goal, drawn.settings, baseline=baseline, training=drawn.training)
        key = trial.key()
        trial = replace(trial, seed=derive_seed(self._config.seed, key))
        known = self._history.find(key)
        # Candidates that are similar to a trial are asked for, but not pending before all of them are found.
        unknown = number if key in self._asked else None
        earlier = known.trial.number if known is not None else self._pending.keys.get(key, unknown)
        if earlier is not None:
            asked.set_user_attr(DUPLICATE, earlier)
            self._end(asked, known)
            self.repeats += 1
            return None
        self._asked[key] = asked
        return trial

    def _is_known(self, candidate: Candidate) -> bool:
        """Return whether a candidate was tried, runs, or is in a screening pool."""
        key = Trial(0, candidate.method, candidate.goal, candidate.settings, training=candidate.training).key()
        return self._history.find(key) is not None or key in self._pending.keys or key in self._asked

    def _end(self, asked: optuna.Trial, result: TrialResult | None) -> FrozenTrial:
        """Tell the sampler the two values of a result, or that the trial failed; the values are always finite."""
        if result is None or not measured(result):
            return self._bounded.tell(asked, None)
        return self._bounded.tell(asked, [objectives(result)[1], float(self._candidates.objective_cost(result))])

    def _remember(self, number: int, frozen: FrozenTrial) -> None:
        """Keep what the sampler has proposed for a trial, which further training segments of it have in common."""
        shared = {name: self._distributions.setdefault(one, one) for name, one in frozen.distributions.items()}
        self._proposed.setdefault(number, (frozen.params, shared))

    def _next_fraction(self, repeats: int) -> float | None:
        """Return the budget fraction of the next trial; None leaves it to the sampler.

        Args:
            repeats: number of proposals in a row that have repeated earlier ones.
        """
        if self._candidates.problem.targets:
            return self._next_target(repeats)
        if not self._even or self._config.sampler not in CLUSTERING or repeats >= MAX_REPEATS:
            return None
        known = [self._candidates.places(result.trial, result) for result in self._history.first_results]
        new = [self._candidates.places(trial) for trial in self._pending.new]
        return largest_gap(itertools.chain(*known, *new), self._candidates.lowest_fraction)

    def _next_target(self, repeats: int) -> float | None:
        """Return the target of the next trial as a fraction; None without targets."""
        tried = [*(result.trial for result in self._history.searched), *self._pending.new]
        served = itertools.chain.from_iterable(self._candidates.aims(trial) for trial in tried)
        return self._candidates.cost_coverage.next_target(served, repeats)

    def _restored(self, stored: StoredTrial) -> FrozenTrial | None:
        """Return a stored trial for the study, rebased if it is one of other budgets; None where it is left out."""
        lowest = self._candidates.lowest_fraction
        frozen, result = with_present_names(stored.frozen), stored.result
        own = getattr(frozen.distributions.get(BUDGET_FRACTION), "low", lowest)
        if result is not None and (result.trial.final or result.final_epochs):
            return None  # a later segment of a trial that is restored, or none of the search
        if result is not None:
            self._remember(result.trial.number, frozen)
        if not stored.earlier and own == lowest:
            return frozen
        if result is None:
            return None
        return rebase(frozen, self._candidates.fraction(result.trial, result), lowest)

    def _choose_method(self, fraction: float) -> str:
        """Return the method for the next trial, which may cost that fraction of the budget; one with a new candidate.

        The latest trials are compared after their first training segment, where all have had the same training.
        """
        known, running = self._history.first_results, self._pending.new
        observations = [self._candidates.observe(result.trial, result) for result in known[-COMPARED:]]
        observations += [self._candidates.observe(trial) for trial in running]
        seed = derive_seed(self._config.seed, f"method:{len(known) + len(running)}")
        singles = {name: self._candidates.single(name, fraction) for name in self._candidates.methods}
        new = [name for name, single in singles.items() if single is None or not self._is_known(single)]
        return choose_method(new or self._candidates.methods, observations, fraction, seed)


def _at(fraction: float | None) -> dict[str, float]:
    """Return the parameters that hold a proposal at a fraction of the scaled budget; None leaves it to the sampler."""
    return {} if fraction is None else {BUDGET_FRACTION: fraction}


def rebase(trial: FrozenTrial, fraction: float, lowest: float) -> FrozenTrial | None:
    """Return a trial as if it had been proposed under the present budgets; None when these would not have allowed it.

    Args:
        fraction: share of the present scaled budget that the trial may cost.
        lowest: the least fraction that is proposed under the present budgets.
    """
    if not lowest <= fraction <= 1 or BUDGET_FRACTION not in trial.params:
        return None
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params={**trial.params, BUDGET_FRACTION: fraction},
        distributions={**trial.distributions, BUDGET_FRACTION: FloatDistribution(lowest, 1.0, log=True)},
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
    )
