from pathlib import Path

import pytest
import torch
from torch import nn
from two_inputs import TwoInputs, inputs

import search
from search.library.width_tuner import AskedTrial, TellError
from search.results.result import SearchResult
from spaces.errors import SlimfrontError

TRIALS = 5


def tuner_of(net: nn.Module, folder: Path, **changes: object) -> search.WidthTuner:
    options = {"budget": "60%", "dense_score": 0.9, "trials": TRIALS, "folder": folder, "track": False}
    return search.WidthTuner(net, inputs(), **(options | changes))


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return TwoInputs()


@pytest.fixture(scope="module")
def told(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[AskedTrial], SearchResult]:
    """A search whose score is the share of the parameters; "training" sets a bias to the trial's number."""
    folder, trials = tmp_path_factory.mktemp("told") / "run", []
    with tuner_of(net, folder) as tuner:
        for trial in tuner:
            with torch.no_grad():
                trial.network().classes.bias.fill_(trial.number)
            tuner.tell(trial, size(trial.network()) / size(net))
            trials.append(trial)
    return folder, trials, tuner.finish()


def test_every_trial_is_asked_once_and_keeps_the_budget(net, told) -> None:
    _, trials, result = told
    dense = trials[0].pruned.dense_cost
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert all(trial.pruned.cost.flops <= 0.6 * dense.flops for trial in trials)
    assert {trial.method for trial in trials[:3]} == {"l2", "di"}
    scores = {trial.number: size(trial.network()) / size(net) for trial in trials}
    assert {found.trial.number: found.accuracy for found in result.results} == scores
    assert result.chosen.accuracy == max(scores.values())


def test_the_front_has_the_trained_weights_and_the_files_of_a_search(net, told) -> None:
    folder, _, result = told
    chosen = result.chosen
    loaded = search.load(folder, net)
    assert loaded.classes.bias.tolist() == [chosen.trial.number] * 5
    assert loaded(*inputs(2))["boxes"].shape == (2, 4, 6, 6)
    for name in ("report.html", "front.png", "front.csv", "result.json", "study.db", "config.yaml"):
        assert (folder / name).is_file(), name
    assert SearchResult.from_json((folder / "result.json").read_text()).chosen.label == chosen.label


def test_a_search_goes_on_from_its_folder(net, tmp_path) -> None:
    first = tuner_of(net, tmp_path / "run", trials=4)
    for _ in range(2):
        trial = first.ask()
        first.tell(trial, 0.5)
    first.ask()  # never told
    first.__exit__(KeyboardInterrupt, None, None)
    with tuner_of(net, tmp_path / "run", trials=4) as again:
        assert len(again.front) == 1  # two equal scores: the cheaper one
        left = list(told_numbers(again))
        with pytest.raises(SlimfrontError, match="other settings"):
            tuner_of(net, tmp_path / "run", trials=4, method="l2")
    assert len(left) == 2
    assert len(again.finish().results) == 4


def told_numbers(tuner: search.WidthTuner):
    for trial in tuner:
        tuner.tell(trial, 0.4)
        yield trial.number


def test_what_cannot_be_told_is_named(net, tmp_path) -> None:
    with pytest.raises(TellError, match="not in"):
        tuner_of(net, tmp_path / "none", dense_score=55.0)
    with tuner_of(net, tmp_path / "run", trials=2) as tuner:
        trial = tuner.ask()
        with pytest.raises(TellError, match="costs"):
            tuner.tell(trial, 0.5, network=net)
        with pytest.raises(TellError, match="1.5 is not in"):
            tuner.tell(trial, 1.5)
        tuner.tell(trial, None, error="out of memory")
        with pytest.raises(SlimfrontError, match="told already"):
            tuner.tell(trial, 0.5)
        tuner.tell(tuner.ask(), float("nan"))
    reasons = [result.error for result in tuner.finish().results]
    assert reasons == ["out of memory", "the score is nan"]
