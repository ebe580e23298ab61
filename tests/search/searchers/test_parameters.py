"""What a width parameter stands for, and how settings are chosen."""

import math

import optuna
import pytest

from pruning.settings import Setting
from search.searchers.parameters import proportion, suggest_setting, width_parameter, with_present_names


def test_width_parameters_stand_for_proportions_and_back() -> None:
    for log2 in (-1.0, -0.3, 0.0, 0.05, 1.0):
        assert math.log2(proportion(width_parameter(log2))) == pytest.approx(log2, abs=1e-9)
    assert (proportion(0.0), proportion(0.5), proportion(1.0)) == (0.5, 1.0, 2.0)
    assert width_parameter(3.0) == 1.0


def test_width_parameters_of_an_earlier_version_are_read_by_their_new_name() -> None:
    uniform = optuna.distributions.FloatDistribution(0.0, 1.0)
    stored = optuna.trial.create_trial(
        values=[0.9, 100.0],
        params={"budget_fraction": 0.5, "width.conv1": 0.25},
        distributions={"budget_fraction": uniform, "width.conv1": uniform},
        user_attrs={"epochs": 3},
    )
    read = with_present_names(stored)
    assert read.params == {"budget_fraction": 0.5, "relative_width.conv1": 0.25}
    assert (read.values, read.user_attrs, read.state) == (stored.values, stored.user_attrs, stored.state)
    assert with_present_names(read) is read


def test_a_setting_is_chosen_as_its_type_and_bounds_say() -> None:
    trial = optuna.trial.FixedTrial({"m.way": "closed", "m.images": 64, "m.ridge": 0.1})
    assert suggest_setting(trial, "m.way", Setting("way", "greedy", choices=("greedy", "closed"))) == "closed"
    images = suggest_setting(trial, "m.images", Setting("images", 32, low=16, high=512))
    assert (images, type(images)) == (64, int)
    assert suggest_setting(trial, "m.ridge", Setting("ridge", 0.5, low=1e-3, high=1.0, log=True)) == 0.1
    distributions = trial.distributions
    assert distributions["m.images"] == optuna.distributions.IntDistribution(16, 512)
    assert distributions["m.ridge"] == optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)
