"""Whole searches with final training: on real networks, resumed, for a target asked for later, and confirmed."""

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest
from tiny_search import tiny_config

from configs.loading import load
from configs.schema import RunConfig
from pruning import checkpoint
from runners.config import TrainConfig
from search.orchestrator import run
from search.results.result import SearchResult
from spaces.counting import count_cost

TRAIN = TrainConfig(epochs=1, dense_epochs=2, batch_size=32, precision="float32", device="cpu", lr=0.02)
pytestmark = pytest.mark.usefixtures("without_programs")


def config_of(out: Path, **changes: object) -> RunConfig:
    settings = {"budget": (), "targets": "60,40,25%", "method": "di", "train": TRAIN, "trials": 9, "final_epochs": "4"}
    return tiny_config(out, **(settings | {"confirm": 1} | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    folder = tmp_path_factory.mktemp("final") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.export._write_program", lambda net, input_shape, folder: (None, 0.0))
        return folder, run(config_of(folder, confirm=2))


def test_the_best_at_every_target_is_finished(finished: tuple[Path, SearchResult]) -> None:
    folder, result = finished
    for target in result.targets:
        best = result.best_at(target)
        assert best is not None
        assert best.final_epochs > 0
        assert best.cost is not None
        assert target.allows(best.cost)
        net = checkpoint.load(folder / best.path, trust=True)
        assert count_cost(net, (3, 8, 8)) == best.cost
    assert result.trained_epochs == 9 + sum(network.final_epochs for network in result.results)
    assert sum(network.final_epochs for network in result.results) <= 3 * 4


def test_heirs_are_narrower_than_their_parents_everywhere(finished: tuple[Path, SearchResult]) -> None:
    _, result = finished
    by_label = {network.label: network for network in result.results}
    heirs = [network for network in result.results if network.trial.parent]
    assert heirs
    for heir in heirs:
        wider = by_label[heir.trial.parent].widths
        assert wider is not None
        assert heir.widths is not None
        assert all(heir.widths[name] <= wider[name] for name in heir.widths)


def test_a_result_with_final_training_survives_its_json(finished: tuple[Path, SearchResult]) -> None:
    folder, result = finished
    assert SearchResult.from_json((folder / "result.json").read_text()).results == result.results
    with (folder / "front.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    for network in result.reported:
        assert rows[network.label]["final_epochs"] == str(network.final_epochs)
        assert rows[network.label]["cut_from"] == (network.trial.parent or "dense")


def test_a_later_target_starts_from_a_finished_network_for_the_price_of_one(
    finished: tuple[Path, SearchResult], tmp_path: Path
) -> None:

    folder = tmp_path / "later"
    shutil.copytree(finished[0], folder)
    before = finished[1]
    stored = dataclasses.replace(load(str(folder / "config.yaml")), resume=str(folder), out="", targets="33%", trials=9)
    result = run(dataclasses.replace(stored, confirm=1))
    (target,) = result.targets
    best = result.best_at(target)
    assert best is not None
    new = [network for network in result.results if network.trial.number >= len(before.results)]
    heirs = [network for network in new if network.trial.parent]
    assert heirs
    labels = {network.label: network for network in before.results}
    assert all(labels[heir.trial.parent].final_epochs > 2 for heir in heirs)
    spent = result.trained_epochs - before.trained_epochs
    assert spent <= 3 + 4  # the three baselines of the target, and its final training


def test_finished_networks_are_trained_again_from_what_they_were_cut_from(finished: tuple[Path, SearchResult]) -> None:
    _, result = finished
    heirs = [network for network in result.reported if network.trial.parent]
    assert heirs
    for network in heirs:
        assert network.confirmation is not None
        assert network.confirmation.errors == ()
        assert len(network.confirmation.accuracies) == 2


def test_the_same_seed_gives_the_same_finished_networks(finished: tuple[Path, SearchResult], tmp_path: Path) -> None:
    again = run(config_of(tmp_path / "run"))
    assert [(n.label, n.accuracy, n.rungs) for n in again.results] == [
        (n.label, n.accuracy, n.rungs) for n in finished[1].results
    ]


def test_a_budget_of_training_is_not_exceeded(tmp_path: Path) -> None:
    result = run(config_of(tmp_path / "run", final_epochs="auto", train_budget="24epochs"))
    dense = result.config["train"]["dense_epochs"]
    assert dense == 10
    assert 20 <= dense + result.trained_epochs <= 24
