"""StructuredSampler, the default: fraction and widths by `search.searchers.acquisition`, everything else by TPE."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from typing_extensions import override

from search.searchers.acquisition import MOST, Acquisition
from search.searchers.candidate_space import CandidateSpace
from search.searchers.observation import Observation
from search.searchers.parameters import (
    BUDGET_FRACTION,
    MAX_LOG2_PROPORTION,
    METHOD,
    WIDTH,
    proportion,
    width_parameter,
)
from search.searchers.structure import structure_of
from search.storage.study_storage import RESULT
from spaces.projection import Relaxation

# User attributes of trials
DUPLICATE = "duplicate_of"  # number of the earlier trial that a proposal repeats
EPOCHS = "epochs"  # of training that a trial had


class StructuredSampler(TPESampler):
    """Proposes the budget fraction and all widths together, by a model of accuracy over the network's structure.

    A trial whose fraction is fixed beforehand gets widths at that fraction; a trial whose widths are fixed is left
    alone. A network is known by its widths, so trials of any sampler, and of methods that find widths themselves, are
    learned from.

    Args:
        startup: number of trials before TPE's model is used for the settings of methods.
        sensitivities: group -> loss from narrowing it alone to half; None where they were not measured.
    """

    def __init__(
        self, candidates: CandidateSpace, startup: int, seed: int, sensitivities: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=startup, seed=seed)
        space = candidates.problem.space
        self._candidates = candidates
        self._study: optuna.Study | None = None  # that `_observed` and `_ended` are about
        self._observed: dict[tuple[int, OptunaState, float], Observation | None] = {}
        self._ended: set[int] = set()  # numbers of the trials whose parameters are in the next two
        self._parameters: set[frozenset[str]] = set()  # names of all parameters of a trial
        self._inferred: dict[str, BaseDistribution] = {}  # what TPE makes of them
        self._longest = 1.0  # epochs that a trial of the search had
        self._groups = [group.name for group in space.variable]
        self._full = np.array([group.width for group in space.variable], dtype=np.float64)
        self._relaxation = Relaxation(space.variable, space.cost_model, candidates.latency_use)
        self._acquisition = Acquisition(
            structure_of(space, sensitivities),
            self._relaxation,
            candidates.limits_at,
            candidates.lowest_fraction,
            candidates.methods,
            MAX_LOG2_PROPORTION,
            np.random.default_rng(seed),
        )

    @override
    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._follow(study)
        ended = study.get_trials(deepcopy=False, states=(OptunaState.COMPLETE,))
        new = {frozenset(other.distributions) for other in ended if other.number not in self._ended}
        # TPE groups parameters by the trials that have them, and looks at every trial each time. Trials with the same
        # parameters as earlier ones change nothing.
        if not new <= self._parameters or not self._parameters:
            self._inferred = super().infer_relative_search_space(study, trial)
        self._parameters |= new
        self._ended.update(other.number for other in ended)
        fraction = FloatDistribution(self._candidates.lowest_fraction, 1.0, log=True)
        own: dict[str, BaseDistribution] = {WIDTH + name: FloatDistribution(0.0, 1.0) for name in self._groups}
        return {**self._inferred, BUDGET_FRACTION: fraction, **own}

    @override
    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        given = trial.system_attrs.get("fixed_params", {})
        if any(name.startswith(WIDTH) for name in given):
            return {}
        trials = study.get_trials(deepcopy=False)
        drawn = self._settings(study, trial, search_space, few=len(trials) <= MOST)
        self._longest = max([self._longest, *(other.user_attrs.get(EPOCHS, 1) for other in trials)])
        observed = [found for other in trials if (found := self._remembered(other)) is not None]
        if not any(observation.accuracy is not None for observation in observed):
            return drawn
        repeated = itertools.takewhile(lambda other: DUPLICATE in other.user_attrs, reversed(trials[: trial.number]))
        proposal = self._acquisition.propose(observed, given.get(BUDGET_FRACTION), len(list(repeated)))
        widths = {
            WIDTH + name: width_parameter(log2)
            for name, log2 in zip(self._groups, proposal.proportions.tolist(), strict=True)
        }
        low = self._candidates.lowest_fraction
        return {**drawn, BUDGET_FRACTION: min(1.0, max(low, proposal.fraction)), **widths}

    def _settings(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution], *, few: bool
    ) -> dict[str, Any]:
        """Let TPE choose every parameter but the fraction and the widths.

        TPE models widths too, which takes half of a proposal over 38 groups and 250 trials. With few trials it may, and
        draws from its random numbers what earlier versions drew; with more it is asked for what is used alone.
        """
        others = [name for name in search_space if name != BUDGET_FRACTION and not name.startswith(WIDTH)]
        asked = search_space
        if not few:
            given = trial.system_attrs.get("fixed_params", {})
            asked = {name: search_space[name] for name in others if name != METHOD and name not in given}
        drawn = super().sample_relative(study, trial, asked) if others and asked else {}
        return {name: value for name, value in drawn.items() if name in others}

    def _follow(self, study: optuna.Study) -> None:
        """Forget what was known of the trials of another study: they may have the same numbers."""
        if study is not self._study:
            self._study = study
            self._observed.clear()
            self._ended.clear()

    def _remembered(self, trial: FrozenTrial) -> Observation | None:
        """Return the observation of a trial, made once for every state of it and length of the full training.

        A running trial has all its parameters before the next one is asked for. Where latency is predicted, the
        network of its parameters changes as the prediction does.
        """
        if trial.state is OptunaState.RUNNING and self._candidates.latency_use is not None:
            return self._observe(trial)
        key = trial.number, trial.state, self._longest
        if key not in self._observed:
            observation = self._observe(trial)
            if observation is None and trial.state is OptunaState.RUNNING:
                return None
            self._observed[key] = observation
        return self._observed[key]

    def _observe(self, trial: FrozenTrial) -> Observation | None:
        """Return the network of a trial; None where there is none to learn from, or it repeats another's."""
        if DUPLICATE in trial.user_attrs:
            return None
        result = trial.user_attrs.get(RESULT)
        if trial.state is OptunaState.COMPLETE and result is not None and result["widths"] is not None:
            widths = [result["widths"].get(name, width) for name, width in zip(self._groups, self._full, strict=True)]
            log2_ratios = np.log2(np.array(widths, dtype=np.float64) / self._full)
            return Observation(
                result["trial"]["method"],
                self._candidates.share(result["cost"]),
                trial.values[0],
                log2_ratios=tuple(log2_ratios),
                training=trial.user_attrs.get(EPOCHS, self._longest) / self._longest,
            )
        if trial.state is OptunaState.RUNNING and all(WIDTH + name in trial.params for name in self._groups):
            fraction = trial.params[BUDGET_FRACTION]
            proportions = np.array([[math.log2(proportion(trial.params[WIDTH + name])) for name in self._groups]])
            log2_ratios = self._relaxation.fit(proportions, np.array([self._candidates.limits_at(fraction)]))[0]
            return Observation(trial.params.get(METHOD, ""), fraction, log2_ratios=tuple(log2_ratios))
        return None
