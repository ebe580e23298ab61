"""What needs an accelerator: precision, lent networks, statistics, saved states, C-SGD's bound and a whole search.

`pytest -m gpu` runs all of them on CUDA, or on MPS, in a few minutes.
"""

import copy

import pytest
import torch
from tiny_search import tiny_config
from tiny_training import CONFIG, CPU, tiny_net, two_colours, weights
from torch import nn

from pruning.methods.csgd.method import LOSSLESS, _whole_float32
from runners.config import TrainConfig
from runners.evaluation.proxy import last_features, proxy_target
from runners.training.compute_format import autocast_dtype, measure_compute_format
from runners.training.loop import Training, fit
from runners.training.run import TrainingRun
from runners.training.scoring import accuracy, reestimate_batchnorm, score
from search.orchestrator import run

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    pytest.skip("no CUDA and no MPS device here")


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_a_network_learns_in_every_precision(device: torch.device, precision: str) -> None:
    net, split = tiny_net(), two_colours()
    config = TrainConfig(batch_size=8, precision=precision, device=device.type)
    compute_format = measure_compute_format(net, (3, 6, 6), 8, device, precision)
    assert compute_format.autocast == autocast_dtype(precision, net, device)
    for _ in fit(net, split, config, TrainingRun(6, 0.1, seed=0, device=device, compute_format=compute_format)):
        pass
    assert score(net, split, config, compute_format=compute_format) > 0.9


def test_a_network_on_the_processor_is_read_on_the_device_and_stays(device: torch.device) -> None:
    net, split = tiny_net(), two_colours()
    assert accuracy(net, split, device=device) == pytest.approx(accuracy(net, split, device=CPU), abs=0.03)
    assert torch.allclose(
        last_features(net, split, device=device), last_features(net, split, device=CPU), rtol=1e-2, atol=1e-3
    )
    proxy_target(net, split, device=device)
    here = copy.deepcopy(net)
    reestimate_batchnorm(net, split, device=device)
    reestimate_batchnorm(here, split, device=CPU)
    assert torch.allclose(net[1].running_var, here[1].running_var, rtol=1e-2)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"cpu"}


def test_a_saved_training_goes_on_as_it_would_have(device: torch.device) -> None:
    def training(net: nn.Module) -> Training:
        return Training(net.to(device), two_colours(), CONFIG, TrainingRun(2, 0.1, seed=0, device=device))

    whole = tiny_net()
    first = training(whole)
    epochs = first.run()
    next(epochs)
    state = first.state()
    list(epochs)
    later = tiny_net()
    second = training(later)
    second.restore(state)
    list(second.run())
    assert torch.allclose(weights(whole.cpu()), weights(later.cpu()), atol=1e-3)


def test_equal_channels_merge_within_the_lossless_bound(device: torch.device) -> None:
    """Two equal inputs of a convolution give the maps of one with the sum of both kernels, TF32 aside."""
    torch.manual_seed(0)
    wide, narrow = nn.Conv2d(128, 64, 3, bias=False), nn.Conv2d(64, 64, 3, bias=False)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:, ::2] + wide.weight[:, 1::2])
    images = torch.randn(16, 64, 16, 16, device=device)
    with torch.no_grad(), _whole_float32():
        expected = wide.to(device)(images.repeat_interleave(2, 1))
        found = narrow.to(device)(images)
    assert float((found - expected).abs().max() / expected.abs().max()) <= LOSSLESS


@pytest.mark.parametrize("numbered", [False, True])
def test_a_whole_search_trains_on_the_device(device: torch.device, numbered: bool, tmp_path) -> None:
    name = f"{device.type}:0" if numbered and device.type == "cuda" else device.type
    train = TrainConfig(batch_size=32, device=name)
    result = run(tiny_config(tmp_path / "run", train=train, method="di,aofp,csgd,taylor", trials=6))
    assert [trial.error for trial in result.results if trial.error] == []
    assert result.chosen is not None
