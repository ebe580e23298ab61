import dataclasses
from typing import Any

import pytest

from configs.loading import SECTIONS
from configs.schema import SAMPLERS, RunConfig
from runners.config import TrainConfig
from spaces.budget import Budget
from spaces.errors import ConfigError, SlimfrontError
from spaces.fields import setting_fields


def config_with(**changes: Any) -> RunConfig:
    config = RunConfig(budget=("50%",))
    sections = {f.key: (section, f.name) for section, cls in SECTIONS.items() for f in setting_fields(cls).values()}
    for key, value in changes.items():
        section, name = sections.get(key, ("", key))
        if section:
            part = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: part})
        else:
            config = dataclasses.replace(config, **{name: value})
    return config


def test_a_good_config_gives_its_budgets() -> None:
    config = RunConfig(budget=("0.5gflops", "1mparams"))
    assert config.budgets == (Budget("flops", 500_000_000), Budget("params", 1_000_000))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_known(sampler: str) -> None:
    assert config_with(sampler=sampler).sampler == sampler


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": ()}, "no budget given; write --budget with"),
        ({"budget": ("banana",)}, "'banana' is not a number with a unit"),
        ({"budget": ("0gflops",)}, "must be a positive finite number"),
        ({"budget": ("nan",)}, "must be a positive finite number"),
        ({"budget": ("8ms", "10ms")}, "budgets 8ms and 10ms both limit latency"),
        ({"budget": ("50%", "0.5gflops")}, "both limit flops; keep the one that must hold"),
        ({"objective": "speed"}, "--objective is 'speed' and must be one of accuracy,flops or accuracy,latency"),
        ({"budget": "50%"}, "as in budget=('50%',)"),
        ({"trials": 0}, "--trials is 0 and must be at least 1"),
        ({"time_limit": "0"}, "--time-limit is '0' and must be a time above 0 with its unit, such as 90s, 30m"),
        ({"time_limit": "0m"}, "--time-limit is '0m'"),
        ({"time_limit": "soon"}, "--time-limit is 'soon'"),
        ({"confirm": 0}, "--confirm is 0 and must be at least 1 and at most 1000; 1 trains nothing"),
        ({"seed": -1}, "--seed is -1 and must be a whole number from 0"),
        ({"model": ""}, "--model is ''"),
        ({"divisor": -8}, "--divisor is -8"),
        ({"floor": 0.0}, "--floor is 0.0"),
        ({"floor": float("nan")}, "--floor is nan"),
        ({"image_size": -1}, "--image-size is -1"),
        ({"val_share": 0.0}, "--val-share is 0.0 and must be a share strictly between 0 and 1"),
        ({"val_share": float("nan")}, "--val-share is nan"),
        ({"gpus_per_trial": -1.0}, "--gpus-per-trial is -1.0 and must be 0, or a share of one GPU from 0.01 to 1"),
        ({"gpus_per_trial": 1e-320}, "--gpus-per-trial is 1e-320 and must be 0, or a share of one GPU from 0.01 to 1"),
        ({"gpus_per_trial": 2.0}, "--gpus-per-trial is 2.0 and must be 0, or a share of one GPU"),
        ({"dense_epochs": 10**25}, "--dense-epochs is 10000000000000000000000000 and must be 0 or more and at most"),
        ({"lr": 1e-320}, "--lr is 1e-320 and must be a positive number from 1e-9"),
        ({"val_share": 1.0}, "--val-share is 1.0 and must be a share strictly between 0 and 1"),
        ({"epochs": -1}, "--epochs is -1 and must be 0 or more"),
        ({"dense_epochs": -1}, "--dense-epochs is -1"),
        ({"batch_size": 0}, "--batch-size is 0 and must be at least 1"),
        ({"lr": float("inf")}, "--lr is inf and must be a positive number"),
        ({"distill_weight": 1.5}, "--distill-weight is 1.5"),
        ({"lr_scheduler": "step"}, "--lr-scheduler is 'step' and must be one of one_cycle, cosine"),
        ({"cpus_per_trial": 0}, "--cpus-per-trial is 0"),
        ({"sampler": "tpee"}, "unknown sampler 'tpee'; did you mean tpe?"),
        ({"runner": "rey"}, "unknown runner 'rey'; did you mean ray"),
        ({"method": "l3"}, "unknown method 'l3'; did you mean l2"),
        ({"method": "atuo"}, "unknown method 'atuo'; did you mean auto"),
        ({"method": "di,csgd", "set": ("aofp.theta=0.1",)}, "which this run does not use; add it to --method"),
        ({"method": " , "}, "names no method; known: "),
        ({"set": ("ridge=3",)}, "--set 'ridge=3' is not METHOD.SETTING=VALUE"),
        ({"set": ("di.ridge",)}, "is not METHOD.SETTING=VALUE"),
        ({"set": ("dj.ridge=3",)}, "unknown method 'dj'"),
        ({"set": ("random.ridge=3",)}, "which this run does not use; add it to --method"),
    ],
)
def test_a_rule_that_does_not_hold_is_told_with_value_and_way_out(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SlimfrontError) as caught:
        _ = config_with(**changes).budgets
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("method", "epochs", "methods"),
    [
        ("auto", 1, ("di",)),
        ("auto", 2, ("di", "aofp", "csgd")),
        ("auto", 0, ("di", "aofp", "csgd")),
        ("csgd,di", 1, ("csgd", "di")),
    ],
)
def test_auto_leaves_out_methods_that_choose_while_they_train_where_there_is_one_epoch(
    method: str, epochs: int, methods: tuple[str, ...]
) -> None:
    assert RunConfig(("50%",), method=method, train=TrainConfig(epochs=epochs)).methods == methods


@pytest.mark.parametrize("method", ["auto", "all", "di,csgd"])
def test_settings_of_methods_that_stand_behind_a_name_may_be_set(method: str) -> None:
    config = config_with(epochs=2, method=method, set=("csgd.epsilon=0.003",))
    assert config.fixed_settings == {"csgd": {"epsilon": "0.003"}}


def test_texts_are_parsed_into_properties() -> None:
    config = config_with(
        targets="20,60%", budget=("1mparams",), objective="accuracy,latency", method="di,l2,di", time_limit="1m30s"
    )
    assert [str(target) for target in config.target_budgets] == ["60%", "20%"]
    assert [str(budget) for budget in config.budgets] == ["60%", "1mparams"]
    assert (config.axis, config.methods, config.time_limit_seconds) == ("latency", ("di", "l2"), 90)
    assert RunConfig().time_limit_seconds == float("inf")


def test_the_largest_target_is_the_budget_unless_its_quantity_has_one() -> None:
    assert RunConfig(targets="20,60%").budgets == (Budget.parse("60%"),)
    assert RunConfig(targets="20,60%", budget=("80%",)).budgets == (Budget.parse("80%"),)


def test_the_schedule_of_the_dense_net_is_checked_where_that_is_trained() -> None:
    train = TrainConfig(lr_scheduler="multistep", milestones=(1,))
    with pytest.raises(ConfigError, match="^dense net: --lr-scheduler is 'multistep' without --milestones"):
        RunConfig(train=train)
    assert RunConfig(train=train, weights="net.pt").train == train
