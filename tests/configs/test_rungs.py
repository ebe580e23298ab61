import dataclasses

import pytest

from configs.rungs import parse_rungs, rungs_of
from configs.schema import ConfigError, RunConfig
from runners.base import TrainConfig


@pytest.mark.parametrize(
    ("text", "epochs", "trials", "rungs"),
    [
        ("auto", 1, 20, ()),
        ("auto", 0, 20, ()),
        ("auto", 2, 20, (1, 2)),
        ("auto", 8, 20, (1, 2, 4, 8)),
        ("auto", 10, 20, (1, 2, 4, 8, 10)),
        ("auto", 600, 2, ()),  # a recipe and its control arm
        ("none", 8, 20, ()),
        ("1,2", 8, 20, (1, 2, 8)),
        (" 3 , 8", 8, 20, (3, 8)),
        ("2", 8, 2, (2, 8)),
        ("8", 8, 20, ()),  # a single rung, which is the whole training
    ],
)
def test_rungs_end_with_the_whole_training(text: str, epochs: int, trials: int, rungs: tuple[int, ...]) -> None:
    assert parse_rungs(text, epochs, trials) == rungs


@pytest.mark.parametrize("text", ["2,1", "1,1", "0,2", "1,,2", "", "1.5", "-1", "one"])
def test_what_are_no_rising_epochs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be whole epochs from 1 in rising order, as in 1,2,4, or auto or none"):
        parse_rungs(text, 8, 20)


def test_a_rung_longer_than_the_training_is_refused_with_both() -> None:
    with pytest.raises(ConfigError, match="a rung after 9 epochs, longer than the training of --epochs 8; lower"):
        parse_rungs("1,9", 8, 20)


def test_epochs_that_are_searched_leave_no_rungs() -> None:
    config = RunConfig(train=TrainConfig(epochs=4), search_training="epochs")
    assert rungs_of(config) == ()
    assert rungs_of(dataclasses.replace(config, search_training="lr")) == (1, 2, 4)
    with pytest.raises(ConfigError, match="--rungs '1,2' says how long trials train, and --search-training epochs"):
        rungs_of(dataclasses.replace(config, rungs="1,2"))
