"""A made-up environment for the plan and the progress of a search on the chain of layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from configs.schema import RunConfig
from runners.training.compute_format import ComputeFormat, StepTiming
from search.environment import Environment
from search.problem import Problem
from search.results.result import SearchResult
from spaces.space import ModelSpec, SearchSpace


@pytest.fixture
def environment(chain_space: SearchSpace, finished_search: SearchResult) -> Environment:
    """The environment of the made-up search; its images are nothing but their numbers."""
    config = RunConfig(budget=("60%",), trials=12, set=("di.way=closed",), out="runs/one")
    data: Any = SimpleNamespace(train=range(1150), val=range(287), test=range(360), calibration=range(767))
    return Environment(
        problem=Problem(config, chain_space, finished_search.budgets),
        data=data,
        spec=ModelSpec("chain", 10, (3, 32, 32)),
        net=nn.Identity(),
        weighted=False,
        folder=Path("runs/one"),
        device=torch.device("cpu"),
        runner="local",
        workers=1,
        threads=1,
        steps=StepTiming(
            ComputeFormat(), worker_seconds=0.01, alone_seconds=0.01, threads_alone=1, forward_seconds=0.003
        ),
    )
