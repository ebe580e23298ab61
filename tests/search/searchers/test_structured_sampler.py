"""The default sampler in a whole search: better than chance, resumable, and bound by nothing it did not choose."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from search.searchers.study_settings import StudySettings
from search.searchers.width_parameters import octaves_of, proportion, width_parameter

from runners.simulated.runner import SaturatingAccuracy, SimulatedOutcome
from runners.trial import Trial, TrialResult, TrialState
from search.searchers.candidate_space import CandidateSpace
from search.searchers.structured_sampler import StructuredSampler
from search.tuner import Study
from spaces.budget import Budget
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

HALF = Budget.parse("50%")
FIXED = {"l2": {"allocation": "uniform"}}


def chain(groups: int = 16, width: int = 64) -> SearchSpace:
    names = [f"layer{i}" for i in range(groups)]
    flops, params = PolynomialBuilder(groups), PolynomialBuilder(groups)
    axes = [Form(3), *[Form(0, ((i, 1),)) for i in range(groups)], Form(10)]
    for index, (left, right) in enumerate(zip(axes, axes[1:], strict=False)):
        params.add(1, left, right)
        flops.add(64 if index < groups // 2 else 16, left, right)  # two stages
    model = CostModel(names, [width] * groups, flops.build(), params.build())
    members = tuple(ChannelGroup(name, width, 6, width, producers=(name,)) for name in names)
    return SearchSpace(members, (), model, {}, (3, 8, 8))


def settings_of(**changes: Any) -> StudySettings:
    return StudySettings(("l2",), FIXED, **{"trials": 24, "allocation": "search", **changes})


def result_of(trial: Trial, outcome: SimulatedOutcome) -> TrialResult:
    return TrialResult(trial, TrialState.COMPLETE, outcome.accuracy, outcome.cost, outcome.widths, seconds=1.0)


def searched(space: SearchSpace, settings: StudySettings) -> list[float]:
    """Return the hypervolume after every trial of a search in which groups saturate early or late, as they come."""
    rates = dict(zip(space.full, np.random.default_rng(settings.seed).uniform(4, 30, len(space.full)), strict=True))
    truth, study, volumes = SaturatingAccuracy(space, rates), Study(settings, space, (HALF,)), []
    while (trial := study.ask()) is not None:
        study.tell(result_of(trial, truth(trial)))
        volumes.append(study.front.hypervolume(space.dense_cost.flops))
    return volumes


@pytest.mark.parametrize("groups", [1, 16])
def test_it_gains_more_than_chance_on_every_seed(groups: int) -> None:
    space = chain(groups)
    for seed in (0, 1):
        ours, chance = (
            searched(space, settings_of(sampler=sampler, seed=seed)) for sampler in ("structured", "random")
        )
        assert len(ours) == len(chance)
        assert np.mean(ours) > np.mean(chance) if groups > 1 else np.mean(ours) > 0


@pytest.mark.parametrize("trials", [1, 3])
def test_few_trials_are_enough(trials: int) -> None:
    assert len(searched(chain(), settings_of(trials=trials))) == trials


def test_it_is_the_default() -> None:
    study = Study(settings_of(trials=3), chain(), (HALF,))
    assert isinstance(study._sampling.study.sampler._inner, StructuredSampler)  # type: ignore[attr-defined]


def test_parallel_asks_get_different_candidates_at_different_costs() -> None:
    space = chain()
    truth, study = SaturatingAccuracy(space), Study(settings_of(), space, (HALF,))
    for _ in range(8):
        trial = study.ask()
        assert trial is not None
        study.tell(result_of(trial, truth(trial)))
    side_by_side = [trial for _ in range(8) if (trial := study.ask()) is not None]
    assert len({trial.key() for trial in side_by_side}) == 8
    costs = [trial.goal.budgets[0].limit for trial in side_by_side]
    assert max(costs) > 2 * min(costs)


def test_trials_of_another_sampler_are_learned_from(tmp_path: Path) -> None:
    space, url = chain(), f"sqlite:///{tmp_path / 'study.db'}"
    before = searched(space, settings_of(sampler="random", storage=url))
    after = searched(space, settings_of(trials=32, storage=url))
    assert len(after) == 8
    assert after[-1] > before[-1]


@pytest.fixture
def sampler() -> StructuredSampler:
    space = chain()
    candidates = CandidateSpace(settings_of(), space, [HALF.resolve(space.dense_cost)])
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        return StructuredSampler(candidates, 1, 0)


@pytest.fixture
def optuna_study(sampler: StructuredSampler) -> optuna.Study:
    """A study with one trial told, of uniform widths."""
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
    assert {name for name in drawn if name.startswith("width.")} == {f"width.layer{i}" for i in range(16)}
    assert drawn["budget_fraction"] == pytest.approx(0.25)
    assert trial.suggest_float("budget_fraction", 0.03, 1.0, log=True) == 0.25


def test_planned_widths_are_left_alone(optuna_study: optuna.Study) -> None:
    optuna_study.enqueue_trial({"budget_fraction": 0.25, "width.layer0": 0.5})
    assert optuna_study.ask().relative_params == {}


def test_a_trial_of_fewer_epochs_counts_as_partly_trained(
    sampler: StructuredSampler, optuna_study: optuna.Study
) -> None:
    told = optuna_study.trials[0]
    whole = sampler._seen(told, 4)
    told.set_user_attr("epochs", 1)
    cut = sampler._seen(told, 4)
    assert whole is not None
    assert cut is not None
    assert (whole.training, cut.training) == (1.0, 0.25)
    assert cut.kept == whole.kept


def test_width_parameters_stand_for_octaves_and_back() -> None:
    for octaves in (-1.0, -0.3, 0.0, 0.05, 1.0):
        assert octaves_of(width_parameter(octaves)) == pytest.approx(octaves, abs=1e-9)
    assert (proportion(0.0), proportion(0.5), proportion(1.0)) == (0.5, 1.0, 2.0)
    assert width_parameter(3.0) == 1.0


def test_measured_sensitivities_give_two_starts_and_a_coordinate() -> None:
    space = chain()
    study = Study(settings_of(trials=12), space, (HALF,))
    study.learn_sensitivities({f"layer{i}": 8.0 if i == 3 else 1.0 for i in range(16)})
    truth, trials = SaturatingAccuracy(space), []
    while (trial := study.ask()) is not None:
        trials.append(trial)
        study.tell(result_of(trial, truth(trial)))
    uniform = [each for each in trials if each.baseline]
    starts = trials[len(uniform) : len(uniform) + 2]
    for start in starts:
        assert start.goal.widths is not None
        others = [start.goal.widths[f"layer{i}"] for i in (2, 4)]
        assert start.goal.widths["layer3"] > 1.5 * max(others)
    assert starts[0].goal.budgets == study.budgets
    assert len(trials) == 12
    structure = study._sampling.study.sampler._inner._proposer().structure  # type: ignore[attr-defined]
    assert "measured sensitivity" in structure.names


def test_too_few_trials_leave_no_sensitive_starts() -> None:
    study = Study(settings_of(trials=8), chain(), (HALF,))
    before = len(study._asking.planned)
    study.learn_sensitivities({f"layer{i}": 1.0 + i for i in range(16)})
    assert len(study._asking.planned) == before
