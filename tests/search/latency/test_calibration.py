"""What a search that limits latency measures before any training, and the limits that it refuses."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_up_latency import CONDITIONS
from made_up_search import problem_of

from runners.config import LatencyConfig
from runners.latency.meter import REFERENCE, Reading
from runners.latency.prediction.model import ModelError
from search.callbacks import SearchCallback
from search.environment import Environment
from search.latency.calibration import calibrate_latency, check_smallest
from spaces.errors import BudgetError
from spaces.space import SearchSpace


def test_a_limit_under_the_smallest_network_names_what_that_measures() -> None:
    check_smallest(2e-3, 1.9e-3, (1.8e-3, 2.1e-3), "cpu:1thread at batch 1")
    with pytest.raises(BudgetError, match=r"budget 1ms is under .* at batch 1: 1\.9 ms \(1\.8 to 2\.1\)"):
        check_smallest(1e-3, 1.9e-3, (1.8e-3, 2.1e-3), "cpu:1thread at batch 1")


def test_on_a_busy_machine_only_a_limit_far_under_a_brief_timing_is_refused() -> None:
    check_smallest(0.5e-3, 1.9e-3, None, "cpu:1thread at batch 1")
    with pytest.raises(BudgetError, match=r"budget 0\.4ms is far under .* about 1\.9 ms \(this machine is too busy"):
        check_smallest(0.4e-3, 1.9e-3, None, "cpu:1thread at batch 1")


def test_a_search_that_needs_no_latency_measures_none(chain_space: SearchSpace) -> None:
    problem = problem_of(chain_space, ["1.5mflops"])
    environment = cast(Any, SimpleNamespace(problem=problem, config=problem.config))
    assert calibrate_latency(cast(Environment, environment), SearchCallback()) is None


def test_a_resumed_search_keeps_its_limits_though_the_machine_is_slower_now(
    chain_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that moves by a percent would make all finished trials those of another search, with new baselines."""
    model = SimpleNamespace(errors=[], observe=lambda widths, seconds: None)
    building = SimpleNamespace(cached=True, error=ModelError.of([0.0]))
    monkeypatch.setattr("search.latency.calibration.build_model", lambda *_: (model, building))
    monkeypatch.setattr("search.latency.calibration.at_widths", lambda *_: None)

    def limit_of(dense_seconds: float, device_name: str = "board", **settings: Any) -> float:
        conditions = dataclasses.replace(CONDITIONS, device_name=device_name)

        def read_at(network: str, net: object, batch: int) -> Reading:
            seconds = dense_seconds if network == REFERENCE else 0.4 * dense_seconds
            return Reading(network, conditions, "", seconds, 0.99 * seconds, 1.01 * seconds, seconds / dense_seconds)

        meter = SimpleNamespace(read_at=read_at, first_batch=1, disagreement=lambda net: "")
        monkeypatch.setattr("search.latency.calibration.make_meter", lambda *_: meter)
        problem = problem_of(chain_space, ["41%latency"], latency=LatencyConfig(device="cpu"), **settings)
        data = SimpleNamespace(input_shape=(3, 8, 8))
        parts = SimpleNamespace(problem=problem, config=problem.config, folder=tmp_path, data=data, net=None)
        found = calibrate_latency(cast(Environment, parts), SearchCallback())
        assert found is not None
        found.keep(tmp_path)
        return found.predictor.problem.latency_limit

    assert limit_of(1e-3) == pytest.approx(0.41e-3)
    assert limit_of(1.1e-3, resume=str(tmp_path)) == pytest.approx(0.41e-3)  # the smallest net takes 0.44 ms now
    assert limit_of(0.9e-3, resume=str(tmp_path)) == pytest.approx(0.41e-3)
    assert limit_of(3e-3, "slower board", resume=str(tmp_path)) == pytest.approx(1.23e-3)
    assert limit_of(1.1e-3) == pytest.approx(0.451e-3)  # a new search
