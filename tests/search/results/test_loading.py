"""Loading of a network that a search wrote: from its folder, its checkpoint, or the folder of the whole run."""

import pytest
import torch

import search
from pruning import checkpoint
from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.results.result import DenseResult, SearchResult
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import WeightsError
from spaces.space import ModelSpec
from spaces.widths import Widths
from spaces.zoo.cifar import LeNet

SPEC = ModelSpec("lenet5", 10, (1, 28, 28))
WIDTHS = Widths({"conv1": 20})


@pytest.fixture
def lenet():
    torch.manual_seed(0)
    return LeNet(10, (1, 28, 28)).eval()


def test_load_takes_the_folder_of_a_network_or_its_checkpoint(lenet, tmp_path):
    checkpoint.save(tmp_path / "model.safetensors", lenet, SPEC, WIDTHS)
    image = torch.rand(2, 1, 28, 28)
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        net = search.load(path)
        assert not net.training
        assert torch.equal(net(image), lenet(image))


def run_folder(folder, lenet, path):
    folder.mkdir()
    checkpoint.save(folder / "model-7.safetensors", lenet, SPEC, WIDTHS)
    trial = Trial(number=7, method="l2", goal=Goal(widths=WIDTHS))
    measured = TrialResult(trial, TrialState.COMPLETE, 0.9, Cost(10, 10), WIDTHS, path=path)
    result = SearchResult({}, (Budget("flops", 20),), DenseResult(0.9, 0.9, Cost(30, 30)), (measured,))
    (folder / "result.json").write_text(result.to_json())
    return folder


def test_load_takes_a_run_folder_as_its_chosen_network(lenet, tmp_path):
    folder = run_folder(tmp_path / "run", lenet, "model-7.safetensors")
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(search.load(folder)(image), lenet(image))


def test_load_says_when_a_run_has_no_chosen_network(lenet, tmp_path):
    with pytest.raises(WeightsError, match="no chosen network"):
        search.load(run_folder(tmp_path / "run", lenet, ""))


def test_load_says_what_a_folder_should_hold(tmp_path):
    with pytest.raises(WeightsError, match="holds neither"):
        search.load(tmp_path)
    with pytest.raises(WeightsError, match="cannot be read"):
        search.load(tmp_path / "nothing")
