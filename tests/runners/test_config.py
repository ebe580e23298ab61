"""The settings of a training: which are refused, and which the dense network has."""

import math

import pytest

from runners.config import TrainConfig
from spaces.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_scheduler": "multistep"}, "without --milestones"),
        ({"lr_scheduler": "multistep", "milestones": (4, 3)}, "rising order"),
        ({"lr_scheduler": "multistep", "milestones": (0,)}, "above 0"),
        ({"warmup_epochs": 2.0}, "'one_cycle' has a warm-up of its own"),
    ],
)
def test_milestones_and_warm_up_that_do_not_fit_the_schedule_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr_scheduler": "step"},
        {"warmup_epochs": -1.0},
        {"lr_gamma": 0.0},
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
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value!r} and must be "):
        TrainConfig(**wrong)


def test_the_dense_net_has_a_schedule_of_its_own():
    config = TrainConfig(
        epochs=5, lr=0.01, lr_scheduler="cosine", warmup_epochs=1, dense_epochs=9, dense_lr=0.2,
        dense_lr_scheduler="multistep", dense_milestones=(3, 6), dense_warmup_epochs=2,
    )  # fmt: skip
    dense = config.for_dense()
    assert (dense.epochs, dense.lr, dense.lr_scheduler) == (9, 0.2, "multistep")
    assert (dense.milestones, dense.warmup_epochs) == ((3, 6), 2)
    assert TrainConfig(lr_scheduler="cosine", warmup_epochs=1).for_dense().lr_scheduler == "cosine"
    assert TrainConfig(lr_scheduler="cosine", warmup_epochs=1).for_dense().warmup_epochs == 0


def test_an_error_in_the_schedule_of_the_dense_net_says_so():
    with pytest.raises(ConfigError, match="^dense net: --lr-scheduler is 'multistep' without --milestones"):
        TrainConfig(lr_scheduler="multistep", milestones=(1,)).for_dense()
