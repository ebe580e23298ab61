import pytest

from pruning.settings import Setting
from runners.config import TrainConfig
from runners.search_training import parse_search_training
from spaces.errors import ConfigError

SET = TrainConfig(lr=0.008, distill_weight=0.2, epochs=4)


def test_without_a_range_it_lies_around_the_set_values() -> None:
    assert parse_search_training("lr, distill-weight,epochs", SET) == (
        Setting("lr", 0.008, 0.002, 0.032, log=True),
        Setting("distill_weight", 0.2, 0.0, 0.9),
        Setting("epochs", 4, 1, 4, log=True),
    )


def test_a_range_holds_as_given_and_the_default_is_the_nearest_to_what_is_set() -> None:
    rate, epochs = parse_search_training("lr=0.01:0.1,epochs=1:3", SET)
    assert (rate.low, rate.high, rate.default) == (0.01, 0.1, 0.01)
    assert (epochs.low, epochs.high, epochs.default) == (1, 3, 3)
    assert isinstance(epochs.default, int)


def test_an_empty_text_searches_nothing() -> None:
    assert parse_search_training("", SET) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("momentum", "knows no 'momentum'; known: lr, distill-weight, epochs"),
        (",", "names no setting"),
        ("lr,lr", "names lr twice"),
        ("lr=0.1", "lr=0.1 is not NAME=LOW:HIGH, as in lr=0.002:0.05"),
        ("lr=a:b", "is not NAME=LOW:HIGH"),
        ("lr=0:0.1", "goes from 0 to 0.1, and both must be from 1e-9 to 1e9"),
        ("lr=0.1:nan", "is not NAME=LOW:HIGH"),
        ("distill-weight=0:1.5", "both must be in [0, 1]"),
        ("epochs=0:4", "both must be whole numbers from 1"),
        ("epochs=1:2.5", "both must be whole numbers from 1"),
        ("epochs=1:inf", "is not NAME=LOW:HIGH"),
        ("epochs=3:2", "nothing to search from 3 to 2; give LOW:HIGH"),
    ],
)
def test_what_cannot_be_searched_is_told_with_value_and_way_out(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_search_training(text, SET)
    assert words in str(caught.value)


def test_one_epoch_leaves_none_to_search() -> None:
    with pytest.raises(ConfigError, match="nothing to search from 1 to 1; raise --epochs or give a range"):
        parse_search_training("epochs", TrainConfig(epochs=1))
