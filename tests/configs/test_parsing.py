import dataclasses
import math

import pytest

from configs.parsing import (
    AUTO_DISTILLATION,
    FinalDistillation,
    parse_duration,
    parse_fixed_settings,
    parse_rungs,
    parse_screen,
    parse_search_settings,
    parse_train_budget,
    parse_trial_timeout,
)
from configs.schema import RunConfig
from runners.config import TrainConfig
from spaces.errors import ConfigError, SlimfrontError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h 2m 3s", 3723), ("1.5H", 5400), ("0h0.5s", 0.5)],
)
def test_hours_minutes_and_seconds_are_read(text: str, seconds: float) -> None:
    assert parse_duration("--time-limit", text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "-5m", "30", "30m1h", "5m5m", "1d", "nan", "inf", "٣m", "9" * 400 + "h"]
)
def test_anything_else_is_refused_with_the_flag_and_examples(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_duration("--time-limit", text)
    assert str(error.value).startswith(f"--time-limit is {text!r} and must be a time above 0")
    assert str(error.value).endswith("such as 90s, 30m, 1h30m or 2h")


@pytest.mark.parametrize(
    ("text", "epochs", "trials", "rungs"),
    [
        ("auto", 1, 20, ()),
        ("auto", 0, 20, ()),
        ("auto", 2, 20, ()),
        ("auto", 3, 20, (1, 3)),
        ("auto", 8, 20, (2, 8)),
        ("auto", 10, 20, (1, 3, 10)),
        ("auto", 600, 2, ()),  # a recipe and its baseline
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
    assert config.rung_epochs == ()
    assert dataclasses.replace(config, search_training="lr").rung_epochs == (1, 4)
    with pytest.raises(ConfigError, match="--rungs '1,2' says how long trials train, and --search-training epochs"):
        dataclasses.replace(config, rungs="1,2")


@pytest.mark.parametrize(
    ("text", "epochs", "pool"), [("auto", 2, None), ("auto", 0, 1), ("none", 2, 1), ("1", 0, 1), (" 12 ", 2, 12)]
)
def test_the_size_of_screening_pools_is_a_number_or_left_to_the_images(
    text: str, epochs: int, pool: int | None
) -> None:
    assert RunConfig(screen=text, train=TrainConfig(epochs=epochs)).screening_pool == pool


@pytest.mark.parametrize("text", ["0", "x", "-1", "1.5", ""])
def test_what_is_no_number_of_candidates_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 1, as in 4"):
        parse_screen(text, 2)


def test_there_is_nothing_to_choose_for_where_nothing_is_trained() -> None:
    with pytest.raises(ConfigError, match="--screen '4' chooses what is trained, and with --epochs 0 nothing is"):
        parse_screen("4", 0)


def test_a_fixed_setting_is_split_into_method_name_and_value() -> None:
    texts = ["di.way=a=b", "di.ridge= 3 ", "l2.images=8"]  # the method of the baseline may be set too
    assert parse_fixed_settings(texts, ("di",)) == {"di": {"way": "a=b", "ridge": "3"}, "l2": {"images": "8"}}


def test_a_fixed_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not METHOD.SETTING=VALUE"):
        parse_fixed_settings(["di.way= "], ("di",))


@pytest.mark.parametrize(("text", "epochs"), [("", 0), ("48epochs", 48), (" 48 epochs", 48), ("1epoch", 1), ("7", 7)])
def test_a_budget_of_training_is_whole_epochs(text: str, epochs: int) -> None:
    assert parse_train_budget(text) == epochs


@pytest.mark.parametrize("text", ["0", "x", "-1", "1.5epochs", "48h"])
def test_what_is_no_budget_of_training_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be whole epochs from 1, as in 48epochs"):
        RunConfig(train_budget=text)


def test_final_training_takes_as_many_epochs_as_the_trials_unless_told() -> None:
    config = RunConfig(targets="50,20,8%", trials=24, train=TrainConfig(epochs=2))
    assert config.final_training == 48 // 3
    assert dataclasses.replace(config, targets="", budget=("50%",)).final_training == 48 // 4
    assert dataclasses.replace(config, final_epochs="5").final_training == 5
    assert dataclasses.replace(config, final_epochs="none").final_training == 0
    assert dataclasses.replace(config, train=TrainConfig(epochs=0)).final_training == 0


@pytest.mark.parametrize("text", ["x", "-1", "1.5", ""])
def test_what_is_no_number_of_final_epochs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--final-epochs is .* and must be whole epochs, as in 12, or auto or none"):
        RunConfig(final_epochs=text)


def test_one_weight_of_the_final_distillation_holds_everywhere() -> None:
    assert RunConfig(final_distill_weight="0.3").final_distillation == FinalDistillation(0.3, 0.3, 0.3)
    assert RunConfig().final_distillation == AUTO_DISTILLATION
    assert RunConfig(train=TrainConfig(distill_weight=0.2)).final_distillation is None


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "", "nan"])
def test_what_is_no_weight_of_the_final_distillation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--final-distill-weight is .* and must be a number in \[0, 1\], as in 0.5"):
        RunConfig(final_distill_weight=text)


def test_what_no_trial_has_trained_is_not_trained_on() -> None:
    with pytest.raises(ConfigError, match="--final-epochs '3' trains on what trials have trained, and with --epochs 0"):
        RunConfig(final_epochs="3", train=TrainConfig(epochs=0))


@pytest.mark.parametrize(("weights", "total"), [("file.pt", 64), ("", 100), ("file.pt", 12), ("", 41)])
def test_a_budget_of_training_is_split_and_never_exceeded(weights: str, total: int) -> None:
    config = RunConfig(targets="50,20,8,3%", train_budget=f"{total}epochs", weights=weights)
    dense = 0 if weights else config.train.dense_epochs
    trials, final = config.trials * config.train.epochs, 4 * config.final_training
    assert total - 4 < dense + trials + final <= total
    assert final + 4 > trials
    assert dense == (0 if weights else round(0.4 * total))
    assert dataclasses.replace(config) == config  # what a resumed search reads back


def test_a_budget_that_pays_for_no_trial_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="--train-budget 4 leaves 1 epochs beside the dense net, and a trial with its"
    ):
        RunConfig(train_budget="4")


@pytest.mark.parametrize(
    ("text", "found"), [("", ()), ("all", ("di", "csgd")), ("csgd", ("csgd",)), (" csgd, di ", ("csgd", "di"))]
)
def test_settings_are_searched_of_the_methods_that_are_named(text: str, found: tuple[str, ...]) -> None:
    assert parse_search_settings(text, ("di", "csgd")) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",", "names no method; give some of di, csgd, or all"),
        ("di,l2", "names method 'l2', which this run does not use; add it to --method"),
        ("dii", "unknown method 'dii'"),
    ],
)
def test_settings_of_no_method_of_the_run_are_refused(text: str, words: str) -> None:
    with pytest.raises(SlimfrontError, match=words):
        parse_search_settings(text, ("di", "csgd"))


@pytest.mark.parametrize(("text", "seconds"), [("auto", None), ("none", math.inf), ("30m", 1800.0)])
def test_a_trial_timeout_is_a_time_or_left_to_the_forecast(text: str, seconds: float | None) -> None:
    assert parse_trial_timeout(text) == seconds


def test_a_trial_timeout_without_a_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="--trial-timeout is '10' and must be a time above 0 with its unit"):
        parse_trial_timeout("10")
