"""What a search that limits latency measures before any training, and the limits that it refuses."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_up_search import problem_of

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
