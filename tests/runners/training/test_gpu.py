"""What needs an accelerator: docs/devices.md lists it.

`pytest -m gpu` runs all of it on CUDA, or on MPS, in a few minutes.
"""

import copy
import dataclasses

import pytest
import torch
from tiny_search import tiny_config
from tiny_training import CONFIG, CPU, tiny_net, train, two_colours, weights
from torch import nn

from pruning.base import METHODS, Goal
from pruning.methods.csgd.method import LOSSLESS, _whole_float32
from runners.config import RunnerConfig, TrainConfig
from runners.evaluation.context import TrialContext
from runners.evaluation.proxy import last_features, proxy_target
from runners.training.compute_format import autocast_dtype, measure_compute_format
from runners.training.loop import Training, fit
from runners.training.run import TrainingRun
from runners.training.scoring import accuracy, reestimate_batchnorm, score
from search.orchestrator import run
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import uniform_ratios

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_network_learns_in_every_precision(accelerator: torch.device, precision: str, accumulate: int) -> None:
    net, split = tiny_net(), two_colours()
    config = TrainConfig(batch_size=8, precision=precision, device=accelerator.type, accumulate=accumulate)
    compute_format = measure_compute_format(net, (3, 6, 6), 8, accelerator, precision)
    assert compute_format.autocast == autocast_dtype(precision, net, accelerator)
    for _ in fit(net, split, config, TrainingRun(6, 0.1, seed=0, device=accelerator, compute_format=compute_format)):
        pass
    assert score(net, split, config, compute_format=compute_format) > 0.9


def test_a_network_on_the_processor_is_read_on_the_device_and_stays(accelerator: torch.device) -> None:
    net, split = tiny_net(), two_colours()
    assert accuracy(net, split, device=accelerator) == pytest.approx(accuracy(net, split, device=CPU), abs=0.03)
    assert torch.allclose(
        last_features(net, split, device=accelerator), last_features(net, split, device=CPU), rtol=1e-2, atol=1e-3
    )
    proxy_target(net, split, device=accelerator)
    here = copy.deepcopy(net)
    reestimate_batchnorm(net, split, device=accelerator)
    reestimate_batchnorm(here, split, device=CPU)
    assert torch.allclose(net[1].running_var, here[1].running_var, rtol=1e-2)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"cpu"}


def test_a_saved_training_goes_on_as_it_would_have(accelerator: torch.device) -> None:
    def training(net: nn.Module) -> Training:
        return Training(net.to(accelerator), two_colours(), CONFIG, TrainingRun(2, 0.1, seed=0, device=accelerator))

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


def test_equal_channels_merge_within_the_lossless_bound(accelerator: torch.device) -> None:
    """Two equal inputs of a convolution give the maps of one with the sum of both kernels, TF32 aside."""
    torch.manual_seed(0)
    wide, narrow = nn.Conv2d(128, 64, 3, bias=False), nn.Conv2d(64, 64, 3, bias=False)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:, ::2] + wide.weight[:, 1::2])
    images = torch.randn(16, 64, 16, 16, device=accelerator)
    with torch.no_grad(), _whole_float32():
        expected = wide.to(accelerator)(images.repeat_interleave(2, 1))
        found = narrow.to(accelerator)(images)
    assert float((found - expected).abs().max() / expected.abs().max()) <= LOSSLESS


@pytest.mark.parametrize("numbered", [False, True])
def test_a_whole_search_trains_on_the_device(accelerator: torch.device, numbered: bool, tmp_path) -> None:
    name = f"{accelerator.type}:0" if numbered and accelerator.type == "cuda" else accelerator.type
    train = TrainConfig(batch_size=32, device=name)
    result = run(tiny_config(tmp_path / "run", train=train, method="di,aofp,csgd,taylor", trials=6))
    assert [trial.error for trial in result.results if trial.error] == []
    assert result.chosen is not None


def test_trials_share_a_gpu_on_ray(accelerator: torch.device, tmp_path) -> None:
    if accelerator.type != "cuda":
        pytest.skip("Ray gives out CUDA devices alone")
    train, runner = TrainConfig(batch_size=32, device="cuda"), RunnerConfig(name="ray", gpus_per_trial=0.5)
    result = run(tiny_config(tmp_path / "run", train=train, runner=runner))
    assert [trial.error for trial in result.results if trial.error] == []
    assert result.chosen is not None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_cuts_a_network_on_the_device(accelerator: torch.device, name: str, tiny_search_context) -> None:
    """MPS has no float64, so whatever a method computes in it must have left the device."""
    made, method = tiny_search_context, METHODS[name]()
    context = TrialContext(made.data, dataclasses.replace(made.train, device=accelerator.type), 0)
    net = copy.deepcopy(made.net).eval().to(accelerator)
    budget = Budget("flops", int(0.6 * made.space.dense_cost.flops))
    widths = made.space.fit(uniform_ratios(made.space), [budget])
    goal = Goal(widths=widths) if method.takes_widths else Goal(budgets=(budget,))
    context.prepared = method.prepare(net, made.space, context)
    last = list(method.run(net, made.space, goal, context))[-1]
    assert count_cost(last.net.cpu(), made.space.input_shape) == (last.cost or made.space.cost(last.widths))


def test_a_network_is_as_fast_as_itself(accelerator: torch.device, tiny_search_context) -> None:
    made = tiny_search_context
    context = TrialContext(made.data, dataclasses.replace(made.train, device=accelerator.type), 0)
    net = copy.deepcopy(made.net).eval().to(accelerator)
    assert 0.3 < context.latency_ratio(net, net) < 3  # kernels of microseconds, on a device that others may use


def test_the_same_seed_gives_equal_weights_where_algorithms_are_deterministic(accelerator: torch.device) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (weights(train(tiny_net(), device=accelerator).cpu()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    assert torch.allclose(first, weights(train(tiny_net(), device=accelerator).cpu()), atol=1e-3)
