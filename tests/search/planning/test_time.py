"""The forecast of a search's time knows the methods that train the dense network."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema import RunConfig
from runners.config import LatencyConfig, RunnerConfig, TrainConfig
from search.planning.time import _dense_trials, forecast_time, plan
from search.problem import Setup, prepare


def setup_of(folder: Path, method: str, budget: str = "10%", trials: int = 12) -> Setup:
    return prepare(
        RunConfig(
            budget=(budget,),
            model="lenet5",
            method=method,
            trials=trials,
            out=str(folder / method),
            train=TrainConfig(device="cpu", precision="float32"),
            runner=RunnerConfig(name="local"),
        )
    )


def test_narrow_training_costs_a_share_of_the_budget(tmp_path: Path) -> None:
    assert 0 < _dense_trials(setup_of(tmp_path, "di")) < 0.16 * 12


@pytest.mark.parametrize("method", ["csgd", "kse"])
def test_a_method_that_trains_at_dense_cost_costs_its_trials_in_full(tmp_path: Path, method: str) -> None:
    setup = setup_of(tmp_path, method)
    baselines = 4
    assert _dense_trials(setup) == pytest.approx(12 - baselines, abs=0.16 * baselines)


def test_a_mix_lies_between_because_slow_methods_are_proposed_less(tmp_path: Path) -> None:
    quick, mixed, slow = (_dense_trials(setup_of(tmp_path, method)) for method in ("di", "auto", "csgd"))
    warm_starts_of_wide_methods = 3
    assert quick + 2 < mixed < quick + warm_starts_of_wide_methods + 2
    assert mixed < slow


def test_the_plan_names_the_methods_behind_auto(tmp_path: Path) -> None:
    from rich.console import Console
    from search.reporting.plan_table import plan_table

    made = plan(setup_of(tmp_path, "auto"))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_table(made))
    assert "di, aofp, csgd, and the uniform control arm" in shown.get()
    assert made.seconds is not None
    assert made.seconds > 0


def test_timing_the_front_takes_its_time_and_more_where_latency_counts(tmp_path: Path) -> None:
    made = setup_of(tmp_path, "di")
    front, counting, untimed = (
        forecast_time(dataclasses.replace(made, config=dataclasses.replace(made.config, **changes))).around
        for changes in ({}, {"objective": "accuracy,latency"}, {"latency": LatencyConfig("none")})
    )
    assert untimed < front < counting
