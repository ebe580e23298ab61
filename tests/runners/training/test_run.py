"""Which options of a training are refused."""

import math

import pytest
from tiny_training import tiny_net, train

from runners.base import schedule_problem
from runners.config import TrainConfig
from runners.training.run import TrainingError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "steps"}, "without milestones"),
        ({"schedule": "steps", "milestones": (4, 3)}, "rising order"),
        ({"schedule": "steps", "milestones": (0,)}, "above 0"),
        ({"warm_up_epochs": 2.0}, "'one_cycle' has a climb of its own"),
    ],
)
def test_what_a_schedule_does_not_have_is_refused(settings, words):
    assert words in schedule_problem(TrainConfig(**settings))
    with pytest.raises(TrainingError, match=words):
        train(tiny_net(), config=TrainConfig(**settings))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"schedule": "step"},
        {"warm_up_epochs": -1.0},
        {"milestone_factor": 0.0},
        {"mixup": -0.2},
        {"clip_grad_norm": math.inf},
        {"precision": "int8"},
        {"distill_weight": 1.5},
        {"label_smoothing": 1.0},
        {"momentum": 1.0},
        {"weight_decay": math.nan},
        {"bias_lr_mult": 0.0},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(TrainingError, match=f"{name} is {value!r}"):
        train(tiny_net(), config=TrainConfig(**wrong))


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(TrainingError, match="learning_rate is 0"):
        train(tiny_net(), rate=0)
