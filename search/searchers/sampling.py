"""What chooses for a study: the sampler over its trials in memory, the method of a trial, its place on the range."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from runners.trial import Trial, TrialResult, derive_seed
from search.results.pareto import measured, objectives
from search.results.serialization import trial_result_to_dict
from search.searchers.candidate_space import CandidateSpace
from search.searchers.cost_coverage import TURN, widest_gap
from search.searchers.method_choice import Tried, choose_method
from search.searchers.samplers import BY_CHANCE, CLUSTERING, SAMPLERS, MethodSampler, SamplerOptions
from search.searchers.study_settings import StudySettings
from search.storage.history import Known
from search.storage.study_storage import DIRECTIONS, FRACTION, continued, restated

Handle = optuna.Trial  # what a trial is told to the sampler by


class Sampling:
    """Asks the sampler and tells it.

    Args:
        settings: of the study.
        candidates: what is sampled.
        known: results so far.
        begun: gives the trials that run for the first time.

    Attributes:
        study: in memory, with a sampler once `start` was called.
        stored: number of a finished trial -> what the sampler was told after its first leg.
    """

    def __init__(
        self, settings: StudySettings, candidates: CandidateSpace, known: Known, begun: Callable[[], Sequence[Trial]]
    ) -> None:
        self._settings, self._candidates, self._known, self._begun = settings, candidates, known, begun
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its lines per trial would tear the progress bar
        self.study = optuna.create_study(directions=DIRECTIONS)
        self.stored: dict[int, FrozenTrial] = {}

    def start(self, planned: int, trials: int) -> None:
        """Make the sampler, which goes on from the trials that are there.

        Args:
            planned: candidates that come before the sampler's.
            trials: of the whole search.
        """
        seed = derive_seed(self._settings.seed, f"sampler:{len(self.study.get_trials(deepcopy=False))}")
        options = SamplerOptions(seed, planned, trials, self._candidates)
        name = self._settings.sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group and multivariate TPE are, for years
            sampler: BaseSampler = SAMPLERS[name](options)
        self.study.sampler = sampler if name in BY_CHANCE else MethodSampler(sampler, self._choose_method)
        self._random = RandomSampler(seed=seed)

    def next_fraction(self, turn: int) -> float | None:
        """Return the budget fraction of the next trial; None leaves it to the sampler.

        Args:
            turn: how many proposals in a row have repeated earlier ones.
        """
        if self._candidates.targets:
            return self.next_target(turn)
        if not self._settings.even or self._settings.sampler not in CLUSTERING or turn >= TURN:
            return None
        known = [self._candidates.places(each.trial, each) for each in self._known.first.values()]
        begun = [self._candidates.places(trial) for trial in self._begun()]
        return widest_gap(itertools.chain(*known, *begun), self._candidates.lowest_fraction)

    def next_target(self, turn: int) -> float | None:
        """Return the target of the next trial as a fraction; None without targets, see `next_fraction`."""
        return self._candidates.next_fraction([*(each.trial for each in self._known.results), *self._begun()], turn)

    def ask(self, given: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Begin a trial, for which these parameters are chosen already."""
        if given is not None:
            self.study.enqueue_trial(dict(given))
        return self.study.ask()

    def repeat(self, handle: optuna.Trial, number: int, known: TrialResult | None) -> None:
        """Tell the sampler that it has proposed an earlier trial again, and its result where it has one."""
        handle.set_user_attr("duplicate_of", number)
        self.end(handle, known)

    def end(self, handle: optuna.Trial, result: TrialResult | None) -> FrozenTrial:
        """Tell the sampler the values of a result, or that there are none; never a number that is not finite."""
        if result is None or not measured(result):
            return self.study.tell(handle, state=OptunaState.FAIL)
        return self.study.tell(handle, [objectives(result)[1], float(self._settings.cost(result))])

    def tell(self, handle: optuna.Trial | None, result: TrialResult) -> FrozenTrial:
        """Tell the sampler a result with all that the record has of it; another leg is a trial of its own to it.

        Args:
            handle: of the trial; None after another leg.
        """
        number = result.trial.number
        attributes: dict[str, Any] = {"result": trial_result_to_dict(result)}
        if result.trained is not None:
            attributes["epochs"] = result.trained
        if result.error:
            attributes["reason"] = result.error
        if handle is None:
            values = (objectives(result)[1], self._settings.cost(result))
            frozen = continued(self.stored[number], values, attributes)
            self.study.add_trial(frozen)
            return frozen
        for name, value in attributes.items():
            handle.set_user_attr(name, value)
        frozen = self.end(handle, result)
        self.stored[number] = frozen
        return frozen

    def take_up(self, frozen: FrozenTrial, result: TrialResult | None, *, earlier: bool) -> None:
        """Take a trial from the record; one of other budgets as these would have had it, or not at all.

        Args:
            frozen: as it was told, or as another leg of one.
            result: that it holds; None where it ended without.
            earlier: the budgets were others.
        """
        lowest = self._candidates.lowest_fraction
        own = getattr(frozen.distributions.get(FRACTION), "low", lowest)
        if result is not None:
            self.stored.setdefault(result.trial.number, frozen)
        if not earlier and own == lowest:
            self.study.add_trial(frozen)
        elif result is not None:
            again = restated(frozen, self._candidates.fraction(result.trial, result), lowest)
            if again is not None:
                self.study.add_trial(again)

    @contextlib.contextmanager
    def at_random(self) -> Iterator[None]:
        """Propose by chance meanwhile."""
        sampler, self.study.sampler = self.study.sampler, self._random
        try:
            yield
        finally:
            self.study.sampler = sampler

    def _choose_method(self, fraction: float) -> str:
        """Return the method for the next trial, which may cost that fraction of the budget."""
        tried = self._tried()
        seed = derive_seed(self._settings.seed, f"method:{len(tried)}")
        return choose_method(self._settings.methods, tried, fraction, seed)

    def _tried(self) -> list[Tried]:
        """Return what was tried, each after its first leg, where all have had the same training."""
        tried = [self._candidates.tried(each.trial, each) for each in self._known.first.values()]
        return tried + [self._candidates.tried(trial) for trial in self._begun()]
