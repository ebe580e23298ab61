"""A made-up search on a small chain of layers for tests of results and reports, and an MLflow store made only once."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import RunConfig
from pruning.base import Goal
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.results.result import DenseResult, SearchResult
from search.tracking import store
from spaces.budget import Budget
from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.groups import ChannelGroup
from spaces.space import FixedLayer, SearchSpace
from spaces.widths import Widths

NAMES, FULL = ("conv1", "layer1.conv1", "layer2.conv1"), (16, 32, 64)


@pytest.fixture(scope="session", autouse=True)
def _stores_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give every search a copy of one empty store: MLflow takes seconds of work and of disk to create another."""
    empty, create = tmp_path_factory.mktemp("mlflow") / "mlflow.db", store.create_store

    def copy(file: Path) -> None:
        if not empty.exists():
            create(empty)
        shutil.copyfile(empty, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "create_store", copy)
        yield


@pytest.fixture
def without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no programs of exported nets, for searches that test something else."""
    monkeypatch.setattr("pruning.export._write_program", lambda net, input_shape, folder: (None, 0.0))


@pytest.fixture
def chain_space() -> SearchSpace:
    """Three layers in a row: params = 16 * 32 + 32 * 64 = 2,560 dense, flops = 1,000 times as many."""
    flops, params = PolynomialBuilder(3), PolynomialBuilder(3)
    for i in range(2):
        params.add(1, Form(0, ((i, 1),)), Form(0, ((i + 1, 1),)))
        flops.add(1000, Form(0, ((i, 1),)), Form(0, ((i + 1, 1),)))
    groups = tuple(ChannelGroup(n, w, 1, w, producers=(n, f"{n}.twin")) for n, w in zip(NAMES, FULL, strict=True))
    model = CostModel(NAMES, FULL, {"flops": flops.build(), "params": params.build()})
    return SearchSpace(groups, (FixedLayer("fc", 10, "its outputs are the classes"),), model, {}, (3, 32, 32))


@pytest.fixture
def quantised_search(finished_search: SearchResult) -> SearchResult:
    """The same with the chosen net at a few bits."""
    member = dataclasses.replace(finished_search.results[1], note={"bits": 5.5, "size_mb": 0.00115})
    return finished_search.with_results([member])


@pytest.fixture
def finished_search(chain_space: SearchSpace) -> SearchResult:
    """Two searched nets and a uniform one on the front, a dominated one, and a failure."""
    rows = (  # method, baseline, widths, accuracy, test accuracy
        ("l2", "uniform", (8, 16, 32), 0.90, 0.89),
        ("di", "", (12, 24, 48), 0.96, 0.95),
        ("di", "", (16, 16, 16), 0.80, None),
        ("di", "", (4, 8, 16), 0.85, 0.84),
    )
    results = []
    for number, (method, baseline, channels, accuracy, test) in enumerate(rows):
        widths = Widths(dict(zip(NAMES, channels, strict=True)))
        trial = Trial(number, method, Goal(widths), {"ridge": 0.1} if method == "di" else {}, baseline=baseline)
        cost = chain_space.cost(widths)
        results.append(TrialResult(trial, TrialState.COMPLETE, accuracy, cost, widths, seconds=3.0, test_accuracy=test))
    results.append(TrialResult(Trial(4, "di", Goal()), TrialState.FAILED, error="RuntimeError: out of\nmemory [gpu]"))
    return SearchResult(
        config=dataclasses.asdict(RunConfig(budget=("60%",))),
        budgets=(Budget("flops", 1_536_000),),
        dense=DenseResult(0.97, 0.965, chain_space.dense_cost),
        results=tuple(results),
        space={"groups": [{"group": n, "width": w, "layers": [n]} for n, w in zip(NAMES, FULL, strict=True)]},
        seconds=125.0,
        paths={"front": "front.csv"},
    )


@pytest.fixture
def search_with_intermediates(finished_search: SearchResult, chain_space: SearchSpace) -> SearchResult:
    """The same, and trial 3 has three intermediate networks: above the budget, on the front, and dominated."""
    rows = (((16, 32, 60), 0.965), ((12, 20, 40), 0.95), ((8, 16, 40), 0.84))
    own = finished_search.results[3]
    intermediate_networks = []
    for number, (channels, accuracy) in enumerate(rows, start=1):
        widths = Widths(dict(zip(NAMES, channels, strict=True)))
        report = EpochReport(3, number, accuracy, 0.5 * number)
        changes = {"accuracy": accuracy, "cost": chain_space.cost(widths), "widths": widths, "test_accuracy": None}
        intermediate_networks.append(
            dataclasses.replace(own, **changes, curve=(report,), seconds=0.5 * number, intermediate_index=number)
        )
    results = list(finished_search.results)
    results[3] = dataclasses.replace(own, intermediate_networks=tuple(intermediate_networks))
    return dataclasses.replace(finished_search, results=tuple(results))
