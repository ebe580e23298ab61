"""The time of cost, tracing, projection and surgery: `pytest tests/benchmarks/test_spaces.py --benchmark-only -s`.

Each test prints its time and the ratio to a reference time of the same run: a copy of the weights, or torch-pruning's
own pruning step. No test asserts an absolute time.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn

from pruning.rewriting.surgery import slice_channels
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 224, 224)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def traced(name: str) -> tuple[nn.Module, SearchSpace]:
    net = build(ModelSpec(name, 1000, SHAPE)).eval()
    return net, trace(net, torch.empty(1, *SHAPE))


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)  # the least disturbed reading on a shared machine


def torch_pruning_step(name: str) -> float:
    """Time torch-pruning's own step to half the channels of every layer, without building its graph."""
    net = build(ModelSpec(name, 1000, SHAPE)).eval()
    heads = [module for module in net.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            net,
            torch.zeros(1, *SHAPE),
            importance=torch_pruning.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=heads,
        )
        began = time.perf_counter()
        pruner.step()
        return time.perf_counter() - began


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vgg16_bn"])
def test_slicing_to_half_width(name: str, benchmark: Any) -> None:
    net, space = traced(name)
    rng = torch.Generator().manual_seed(0)
    selection = {g.name: torch.randperm(g.width, generator=rng)[: g.width // 2].sort().values for g in space.variable}
    ours = seconds(lambda: slice_channels(net, space, selection))
    copy = seconds(lambda: [parameter.detach().clone() for parameter in net.parameters()])
    theirs = torch_pruning_step(name)
    print(
        f"\n{name} to half width: {ours * 1e3:.0f} ms; {theirs / ours:.1f} times as fast as torch-pruning's step "
        f"({theirs * 1e3:.0f} ms); {ours / copy:.2f} of a copy of the dense weights ({copy * 1e3:.0f} ms)"
    )
    benchmark.pedantic(slice_channels, (net, space, selection), rounds=3)
    assert ours < theirs


def test_cost_of_a_candidate(benchmark: Any) -> None:
    _, space = traced("resnet50")
    widths = space.fit(uniform_ratios(space), [])
    one = seconds(lambda: [space.cost(widths) for _ in range(1000)]) / 1000
    vectors = np.tile(np.array(list(widths.values())), (10_000, 1))
    batch = seconds(lambda: space.cost_model.batch(vectors))
    print(f"\nresnet50: one cost {one * 1e6:.1f} us, 10,000 costs {batch * 1e3:.1f} ms, {one * 1e4 / batch:.0f} times")
    benchmark(space.cost, widths)
    assert batch < one * 10_000


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_tracing(name: str, benchmark: Any) -> None:
    net = build(ModelSpec(name, 1000, SHAPE)).eval()
    image = torch.zeros(1, *SHAPE)
    ours = seconds(lambda: trace(net, image), repeats=3)
    with torch.no_grad():
        forward = seconds(lambda: net(image), repeats=3)
    print(f"\n{name}: traced in {ours:.2f} s, {ours / forward:.1f} forward passes of one image ({forward:.2f} s)")
    benchmark.pedantic(trace, (net, image), rounds=1)


def test_fit(benchmark: Any) -> None:
    _, space = traced("resnet50")
    budgets = [Budget("flops", space.dense_cost.flops // 3)]
    width_ratios = np.random.default_rng(0).uniform(0.15, 1, len(space.variable)).tolist()
    milliseconds = 1e3 * seconds(lambda: space.fit(width_ratios, budgets))
    print(f"\nresnet50: width ratios projected into the budget in {milliseconds:.1f} ms")
    benchmark(space.fit, width_ratios, budgets)
