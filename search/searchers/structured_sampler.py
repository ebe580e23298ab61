"""The default sampler: budget fraction and widths by `search.searchers.acquisition`, everything else by TPE."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.searchers.acquisition import Proposer, Seen
from search.searchers.candidate_space import CandidateSpace
from search.searchers.structure import Relaxation, structure_of
from search.searchers.width_parameters import REACH, octaves_of, width_parameter
from search.storage.study_storage import FRACTION

WIDTH = "width."
DUPLICATE = "duplicate_of"  # noted with proposals that repeat an earlier one
EPOCHS = "epochs"  # of training that a trial had, noted with those that were stopped before the end


class StructuredSampler(TPESampler):
    """Proposes the budget fraction and all widths together, from what earlier trials say of the network's structure.

    A trial whose fraction is fixed beforehand is given widths at that fraction; one whose widths are fixed is left
    alone. A network is known by the widths it was given or found, so trials of any sampler and of methods that find
    widths themselves are learned from.
    """

    def __init__(self, candidates: CandidateSpace, startup: int, seed: int) -> None:
        super().__init__(multivariate=True, group=True, constant_liar=True, n_startup_trials=startup, seed=seed)
        self._candidates = candidates
        self._random = np.random.default_rng(seed)
        self._groups = [group.name for group in candidates.space.variable]
        self._full = np.array([group.width for group in candidates.space.variable], dtype=np.float64)
        self._relaxation = Relaxation(candidates.space, candidates.latency_use)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Add the fraction and the widths, which every trial may have, to what TPE has seen."""
        others = super().infer_relative_search_space(study, trial)
        own: dict[str, BaseDistribution] = {
            FRACTION: FloatDistribution(self._candidates.lowest_fraction, 1.0, log=True)
        }
        own |= {WIDTH + name: FloatDistribution(0.0, 1.0) for name in self._groups}
        return {**others, **own}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose fraction and widths; ask TPE for the settings of methods where there are any."""
        given = trial.system_attrs.get("fixed_params", {})
        if any(name.startswith(WIDTH) for name in given):
            return {}
        others = [name for name in search_space if name != FRACTION and not name.startswith(WIDTH)]
        drawn = super().sample_relative(study, trial, search_space) if others else {}
        drawn = {name: value for name, value in drawn.items() if name in others}
        trials = study.get_trials(deepcopy=False)
        longest = max([each.user_attrs.get(EPOCHS, 1) for each in trials], default=1)
        seen = [each for other in trials if (each := self._seen(other, longest)) is not None]
        if not any(each.accuracy is not None for each in seen):
            return drawn
        before = itertools.takewhile(lambda each: DUPLICATE in each.user_attrs, reversed(trials[: trial.number]))
        proposal = self._proposer().propose(seen, given.get(FRACTION), len(list(before)))
        widths = {
            WIDTH + name: width_parameter(octaves)
            for name, octaves in zip(self._groups, proposal.shares.tolist(), strict=True)
        }
        low = self._candidates.lowest_fraction
        return {**drawn, FRACTION: min(1.0, max(low, proposal.fraction)), **widths}

    def _proposer(self) -> Proposer:
        candidates = self._candidates
        return Proposer(
            structure_of(candidates.space, candidates.sensitivities),
            self._relaxation,
            candidates.limits_at,
            candidates.lowest_fraction,
            len(candidates.methods),
            REACH,
            self._random,
        )

    def _seen(self, trial: FrozenTrial, longest: float) -> Seen | None:
        """Return the network of a trial; None where there is none to learn from, or it repeats another's.

        Args:
            longest: epochs of the fully trained ones.
        """
        if DUPLICATE in trial.user_attrs:
            return None
        result = trial.user_attrs.get("result")
        if trial.state is OptunaState.COMPLETE and result is not None and result["widths"] is not None:
            kept = np.log2(self._widths(result["widths"]) / self._full)
            share = self._candidates.share(result["cost"])
            training = trial.user_attrs.get(EPOCHS, longest) / max(longest, 1)
            return Seen(tuple(kept), share, self._method(result["trial"]["method"]), trial.values[0], training)
        if trial.state is OptunaState.RUNNING and all(WIDTH + name in trial.params for name in self._groups):
            fraction = trial.params[FRACTION]
            shares = np.array([[octaves_of(trial.params[WIDTH + name]) for name in self._groups]])
            kept = self._relaxation.fit(shares, np.array([self._candidates.limits_at(fraction)]))[0]
            return Seen(tuple(kept), fraction, self._method(trial.params.get("method", "")))
        return None

    def _widths(self, widths: Mapping[str, int]) -> NDArray[np.float64]:
        named = zip(self._groups, self._full, strict=True)
        return np.array([widths.get(name, width) for name, width in named], dtype=np.float64)

    def _method(self, name: str) -> int:
        """Return the index of a method; the control, when it is none of the search's, comes after them."""
        methods: Sequence[str] = self._candidates.methods
        if not name and len(methods) == 1:
            return 0
        return methods.index(name) if name in methods else len(methods)
