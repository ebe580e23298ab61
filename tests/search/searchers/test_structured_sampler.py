"""The default sampler in a whole search: better than chance, resumable, and bound by nothing it did not choose."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made_up_search import MadeUpSearch, problem_of, search_of
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from typing_extensions import override

from runners.simulated.runner import SaturatingAccuracy, SimulatedOutcome
from runners.trial import Trial, TrialResult, TrialState
from search.searchers import samplers
from search.searchers.candidate_space import CandidateSpace
from search.searchers.observation import Observation
from search.searchers.samplers import MethodSampler
from search.searchers.structured_sampler import StructuredSampler
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace


def chain(groups: int = 16, width: int = 64) -> SearchSpace:
    names = [f"layer{i}" for i in range(groups)]
    flops, params = PolynomialBuilder(groups), PolynomialBuilder(groups)
    axes = [Form(3), *[Form(0, ((i, 1),)) for i in range(groups)], Form(10)]
    for index, (left, right) in enumerate(zip(axes, axes[1:], strict=False)):
        params.add(1, left, right)
        flops.add(64 if index < groups // 2 else 16, left, right)  # two stages
    model = CostModel(names, [width] * groups, {"flops": flops.build(), "params": params.build()})
    members = tuple(ChannelGroup(name, width, 6, width, producers=(name,)) for name in names)
    return SearchSpace(members, (), model, {}, (3, 8, 8))


def searching(
    space: SearchSpace, *, url: str = "", sensitivities: Mapping[str, float] | None = None, **settings: Any
) -> MadeUpSearch:
    problem = problem_of(
        space, ["50%"], set=("l2.allocation=uniform",), **{"trials": 24, "allocation": "search", **settings}
    )
    return search_of(problem, url=url, sensitivities=sensitivities)


def result_of(trial: Trial, outcome: SimulatedOutcome) -> TrialResult:
    return TrialResult(trial, TrialState.COMPLETE, outcome.accuracy, outcome.cost, outcome.widths, seconds=1.0)


def finished(search: MadeUpSearch) -> list[float]:
    """Return the hypervolume after every trial of a search in which groups saturate early or late, as they come."""
    space, seed = search.problem.space, search.problem.config.seed
    rates = dict(zip(space.full, np.random.default_rng(seed).uniform(4, 30, len(space.full)), strict=True))
    truth, volumes = SaturatingAccuracy(space, rates), []
    while (trial := search.ask()) is not None:
        search.tell(result_of(trial, truth(trial)))
        volumes.append(search.front.hypervolume(space.dense_cost.flops))
    return volumes


@pytest.mark.parametrize("groups", [1, 16])
def test_it_gains_more_than_chance_on_every_seed(groups: int) -> None:
    space = chain(groups)
    for seed in (0, 1):
        ours, chance = (finished(searching(space, sampler=sampler, seed=seed)) for sampler in ("structured", "random"))
        assert len(ours) == len(chance)
        assert np.mean(ours) > np.mean(chance) if groups > 1 else np.mean(ours) > 0


@pytest.mark.parametrize("trials", [1, 3])
def test_few_trials_are_enough(trials: int) -> None:
    assert len(finished(searching(chain(), trials=trials))) == trials


def inner_sampler(search: MadeUpSearch) -> BaseSampler:
    sampler = search.searcher._study.sampler
    assert isinstance(sampler, MethodSampler)
    return sampler._inner


def test_it_is_the_default() -> None:
    assert isinstance(inner_sampler(searching(chain(), trials=3)), StructuredSampler)


def test_parallel_asks_get_different_candidates_at_different_costs() -> None:
    space = chain()
    truth, search = SaturatingAccuracy(space), searching(space)
    for _ in range(8):
        trial = search.ask()
        assert trial is not None
        search.tell(result_of(trial, truth(trial)))
    side_by_side = [trial for _ in range(8) if (trial := search.ask()) is not None]
    assert len({trial.key() for trial in side_by_side}) == 8
    costs = [trial.goal.budgets[0].limit for trial in side_by_side]
    assert max(costs) > 2 * min(costs)


def test_trials_of_another_sampler_are_learned_from(tmp_path: Path) -> None:
    space, url = chain(), f"sqlite:///{tmp_path / 'study.db'}"
    before = finished(searching(space, sampler="random", url=url))
    after = finished(searching(space, trials=32, url=url))
    assert len(after) == 8
    assert after[-1] > before[-1]


@pytest.fixture
def sampler() -> StructuredSampler:
    candidates = CandidateSpace(problem_of(chain(), ["50%"], set=("l2.allocation=uniform",), allocation="search"))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        return StructuredSampler(candidates, 1, 0)


@pytest.fixture
def optuna_study(sampler: StructuredSampler) -> optuna.Study:
    """Return a study in which one trial has ended."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    trial, space = made.ask(), chain()
    truth = SaturatingAccuracy(space)
    candidate = sampler._candidates.draw(trial)
    outcome = truth(Trial(0, "l2", candidate.goal))
    widths, cost = dict(outcome.widths), dataclasses.asdict(outcome.cost)
    trial.set_user_attr("result", {"trial": {"method": "l2"}, "widths": widths, "cost": cost})
    made.tell(trial, [outcome.accuracy, outcome.cost.flops])
    return made


def test_widths_are_proposed_at_a_fraction_that_is_fixed(optuna_study: optuna.Study) -> None:
    optuna_study.enqueue_trial({"budget_fraction": 0.25})
    trial = optuna_study.ask()
    drawn = trial.relative_params
    assert {name for name in drawn if name.startswith("relative_width.")} == {
        f"relative_width.layer{i}" for i in range(16)
    }
    assert drawn["budget_fraction"] == pytest.approx(0.25)
    assert trial.suggest_float("budget_fraction", 0.03, 1.0, log=True) == 0.25


def test_initial_widths_are_left_alone(optuna_study: optuna.Study) -> None:
    optuna_study.enqueue_trial({"budget_fraction": 0.25, "relative_width.layer0": 0.5})
    assert optuna_study.ask().relative_params == {}


def test_a_trial_of_fewer_epochs_counts_as_partly_trained(
    sampler: StructuredSampler, optuna_study: optuna.Study
) -> None:
    told, sampler._longest = optuna_study.trials[0], 4
    whole = sampler._observe(told)
    told.set_user_attr("epochs", 1)
    cut = sampler._observe(told)
    assert whole is not None
    assert cut is not None
    assert (whole.training, cut.training) == (1.0, 0.25)
    assert cut.log2_ratios == whole.log2_ratios


def test_measured_sensitivities_give_two_initial_points_and_a_coordinate() -> None:
    space = chain()
    sensitivities = {f"layer{i}": 8.0 if i == 3 else 1.0 for i in range(16)}
    search = searching(space, trials=12, sensitivities=sensitivities)
    truth, trials = SaturatingAccuracy(space), []
    while (trial := search.ask()) is not None:
        trials.append(trial)
        search.tell(result_of(trial, truth(trial)))
    uniform = [trial for trial in trials if trial.baseline]
    initial = trials[len(uniform) : len(uniform) + 2]
    for trial in initial:
        assert trial.goal.widths is not None
        others = [trial.goal.widths[f"layer{i}"] for i in (2, 4)]
        assert trial.goal.widths["layer3"] > 1.5 * max(others)
    assert initial[0].goal.budgets == search.problem.budgets
    assert len(trials) == 12
    sampler = inner_sampler(search)
    assert isinstance(sampler, StructuredSampler)
    assert "measured sensitivity" in sampler._acquisition.structure.names


def test_too_few_trials_leave_no_sensitive_initial_points() -> None:
    sensitivities = {f"layer{i}": 1.0 + i for i in range(16)}
    with_them, without = (searching(chain(), trials=8, sensitivities=known) for known in (sensitivities, None))
    assert len(with_them.searcher._initial) == len(without.searcher._initial)


class Forgetful(StructuredSampler):
    """Looks at every trial anew at every proposal."""

    @override
    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._parameters.clear()
        return super().infer_relative_search_space(study, trial)

    @override
    def _remembered(self, trial: optuna.trial.FrozenTrial) -> Observation | None:
        return self._observe(trial)


def test_what_it_remembers_changes_no_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run three at a time, of two methods, one with settings, over rungs, and some of them fail."""
    space, proposed = chain(4), []
    for kind in (StructuredSampler, Forgetful):
        monkeypatch.setattr(samplers, "StructuredSampler", kind)
        problem = problem_of(space, ["50%"], ("l2", "di"), trials=45, rungs=(1, 2), search_settings="di")
        search, running, keys, random = search_of(problem), list[Trial](), list[str](), np.random.default_rng(0)
        truth = SaturatingAccuracy(space, {name: 4.0 + index for index, name in enumerate(space.full)})
        while (trial := search.ask()) is not None or running:
            if trial is not None:
                keys.append(trial.key())
                running.append(trial)
            if len(running) == 3 or trial is None:
                ended = running.pop(random.integers(len(running)))
                result = result_of(ended, truth(ended))
                failed = dataclasses.replace(result, state=TrialState.FAILED, accuracy=None, error="made up")
                search.tell(failed if random.random() < 0.05 and not ended.segment else result)
        assert isinstance(inner_sampler(search), kind)
        proposed.append(keys)
    assert proposed[0] == proposed[1]
    assert len(proposed[0]) > 45
