"""The method of a trial is chosen apart from everything else."""

import optuna
import pytest
from optuna.samplers import RandomSampler

from configs import schema
from search.searchers.candidate_space import STRUCTURED_SAMPLERS
from search.searchers.samplers import BY_CHANCE, CLUSTERING, SAMPLERS, MethodSampler

METHODS = ("first", "second")


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize", "minimize"])


def test_the_config_knows_the_samplers() -> None:
    assert set(SAMPLERS) == set(schema.SAMPLERS)
    assert {*CLUSTERING, *STRUCTURED_SAMPLERS, *BY_CHANCE} == set(SAMPLERS)


def test_the_method_comes_from_the_choice_at_the_budget_fraction_and_the_rest_from_the_sampler(
    study: optuna.Study,
) -> None:
    fractions = []

    def choose(fraction: float) -> str:
        fractions.append(fraction)
        return "second"

    study.sampler = MethodSampler(RandomSampler(seed=3), choose)
    trial = study.ask()
    fraction = trial.suggest_float("budget_fraction", 0.1, 1.0, log=True)
    assert trial.suggest_categorical("method", METHODS) == "second"
    assert fractions == [fraction]

    study.sampler = RandomSampler(seed=3)
    assert study.ask().suggest_float("budget_fraction", 0.1, 1.0, log=True) == fraction


def test_a_method_that_is_given_is_not_chosen(study: optuna.Study) -> None:
    study.sampler = MethodSampler(RandomSampler(seed=3), lambda fraction: pytest.fail("chosen"))
    study.enqueue_trial({"budget_fraction": 0.5, "method": "first"})
    trial = study.ask()
    assert trial.suggest_float("budget_fraction", 0.1, 1.0, log=True) == 0.5
    assert trial.suggest_categorical("method", METHODS) == "first"
