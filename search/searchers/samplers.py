"""Samplers by name; they choose all parameters of a trial but its method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from typing_extensions import override

from search.searchers.candidate_space import CandidateSpace
from search.searchers.parameters import BUDGET_FRACTION, METHOD
from search.searchers.structured_sampler import StructuredSampler


@dataclass(frozen=True)
class SamplerOptions:
    """What a sampler is made from.

    Attributes:
        startup: number of trials before the sampler's model is used.
        trials: number of trials of the whole search.
        sensitivities: group -> loss from narrowing it alone to half; None where they were not measured.
    """

    seed: int
    startup: int
    trials: int
    candidates: CandidateSpace
    sensitivities: Mapping[str, float] | None = None


# The structured sampler takes about 0.03 s a proposal over 37 groups and 0.1 s over 120.
# TPE models the parameters of each method apart (group) and spreads the proposals of parallel workers (constant liar).
# GP and NSGA-II model only parameters that every trial has; see candidate_space.FLAT_SAMPLERS. A GP takes about 0.4 s a
# proposal over 20 groups, TPE 0.01 s.
SAMPLERS: dict[str, Callable[[SamplerOptions], BaseSampler]] = {
    "structured": lambda options: StructuredSampler(
        options.candidates, options.startup, options.seed, options.sensitivities
    ),
    "tpe": lambda options: TPESampler(
        multivariate=True, group=True, constant_liar=True, n_startup_trials=options.startup, seed=options.seed
    ),
    "nsga2": lambda options: NSGAIISampler(population_size=max(4, min(50, options.trials // 4)), seed=options.seed),
    "gp": lambda options: GPSampler(n_startup_trials=options.startup, seed=options.seed),
    "random": lambda options: RandomSampler(seed=options.seed),
}
# Samplers that are sent to the largest gap in log cost: left to themselves they go where the hypervolume is, which is
# not log; of 48 trials, TPE put 5 into the cheaper half of the range.
CLUSTERING = ("tpe", "nsga2", "gp")
BY_CHANCE = ("random",)  # samplers that choose the method too: a random search learns nothing


class MethodSampler(BaseSampler):
    """Takes the method from `choose`, all other parameters from another sampler.

    The method is a parameter like the others in the study; only the sampler does not choose it.

    Args:
        inner: chooses everything else.
        choose: budget fraction of the trial, drawn before its method -> method.
    """

    def __init__(self, inner: BaseSampler, choose: Callable[[float], str]) -> None:
        self._inner, self._choose = inner, choose

    @override
    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    @override
    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self._inner.sample_relative(study, trial, search_space)
        return {name: value for name, value in drawn.items() if name != METHOD}

    @override
    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name == METHOD and isinstance(param_distribution, CategoricalDistribution):
            return self._choose(trial.params[BUDGET_FRACTION])
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    @override
    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    @override
    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: OptunaState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)
