"""What a resumed search takes from its folder, may change, and may not."""

import dataclasses
from pathlib import Path

import pytest

from configs.loading import RUN_FILE, check_resumed, effective_yaml, parse_flags
from configs.schema import RunConfig
from runners.config import DataConfig, TrainConfig
from spaces.errors import ConfigError
from spaces.space import SpaceConfig

STORED = RunConfig(
    budget=("50%",),
    model="resnet20",
    trials=12,
    seed=3,
    method="l2,di",
    space=SpaceConfig(floor=0.2),
    data=DataConfig(name="cluttered_digits"),
    train=TrainConfig(epochs=4),
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / RUN_FILE).write_text(effective_yaml(STORED))
    return str(tmp_path)


def test_without_other_flags_the_settings_are_those_of_the_folder(folder: str) -> None:
    config = parse_flags(["--resume", folder])
    assert config == dataclasses.replace(STORED, resume=folder)
    check_resumed(config)


def test_flags_on_top_change_what_makes_no_trial_another(folder: str) -> None:
    flags = "--budget 20% --trials 30 --sampler random --lowest-fraction 0.1 --runner local --device cpu --data-dir x"
    config = parse_flags(["--resume", folder, *flags.split(), "--tracking-uri", "http://server"])
    check_resumed(config)
    assert (config.budget, config.trials, config.sampler) == (("20%",), 30, "random")
    assert (config.seed, config.train.epochs) == (3, 4)


@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [
        ("--model", "resnet32", "resnet20"),
        ("--weights", "net.pt", ""),
        ("--data", "digits", "cluttered_digits"),
        ("--image-size", "16", 0),
        ("--floor", "0.5", 0.2),
        ("--skip", "layer1.*", ()),
        ("--seed", "4", 3),
        ("--objective", "accuracy,latency", "accuracy,flops"),
        ("--epochs", "5", 4),
        ("--precision", "float32", "auto"),
        ("--method", "csgd", "l2,di"),
        ("--rungs", "none", "auto"),
        ("--screen", "4", "auto"),
        ("--storage", "sqlite:///other.db", ""),
    ],
)
def test_another_model_data_space_or_training_is_refused_with_both_values(
    folder: str, flag: str, value: str, before: object
) -> None:
    with pytest.raises(ConfigError, match="cannot go on with other settings") as caught:
        check_resumed(parse_flags(["--resume", folder, flag, value]))
    assert f"{flag} is {before!r} there and " in str(caught.value)
    assert value in str(caught.value)


def test_every_setting_that_differs_is_named(folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_resumed(parse_flags(["--resume", folder, "--seed", "4", "--epochs", "5"]))
    assert "--seed is 3 there and 4 here, --epochs is 4 there and 5 here" in str(caught.value)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml; give the run folder"):
        parse_flags(["--resume", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        check_resumed(dataclasses.replace(STORED, resume=str(tmp_path / "gone")))


def test_another_folder_to_write_to_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="leave --out away"):
        parse_flags(["--resume", folder, "--out", "elsewhere"])
