"""What a step of centripetal SGD costs against one of plain SGD, alternating in one run: ResNet-56, batch 64."""

import statistics
import time
from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning.base import StepHook, TrainingPlan
from pruning.centripetal import CentripetalHook, RescalingHook, clustered_tensors
from pruning.clustering import cluster_channels
from pruning.collapse import Pull
from pruning.segments import Partition
from pruning.surgery import merge_channels
from spaces.space import ModelSpec
from spaces.tracing import trace
from spaces.zoo import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, SHAPE = 64, (3, 32, 32)
STEPS = 200 if DEVICE.type == "cuda" else 5  # of each kind
ALLOWED = 1.03
EQUAL: Mapping[str, float] = {"kernel": 1.0, "scale": 1.0, "bias": 1.0}
PULLS = {"gradient": Pull(0.05, 0.0, 1000, 0.0), "direct": Pull(0.0, 0.01, 1000, 0.0)}


def stepper(net: nn.Module, hook: StepHook | None):
    optimiser = torch.optim.SGD(net.parameters(), 0.001, 0.9, weight_decay=1e-4, nesterov=True)
    images, labels = torch.randn(BATCH, *SHAPE, device=DEVICE), torch.arange(BATCH, device=DEVICE) % 10

    def step() -> float:
        """Return the seconds of a step."""
        _wait()
        start = time.perf_counter()
        optimiser.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        if hook is not None:
            hook(net, 0)
        optimiser.step()
        _wait()
        return time.perf_counter() - start

    return step


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def ratio(benchmark, net: nn.Module, hook: StepHook) -> float:
    """Return the median over pairs of neighbouring steps of how much longer the hooked one took."""
    plain, hooked = stepper(net, None), stepper(net, hook)
    plain(), hooked()
    pairs: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: pairs.append((plain(), hooked())), rounds=STEPS)
    found = statistics.median(b / a for a, b in pairs)
    benchmark.extra_info |= {"plain_seconds": statistics.median(a for a, _ in pairs), "ratio": found}
    print(f"\nplain step {1000 * benchmark.extra_info['plain_seconds']:.1f} ms, ratio {found:.4f} on {DEVICE.type}")
    return found


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    net = build(ModelSpec("resnet56", 10, SHAPE))
    space = trace(net, torch.zeros(1, *SHAPE))
    clusters = cluster_channels(net, space, {group.name: group.width * 5 // 8 for group in space.variable})
    return net.to(DEVICE).train(), space, clusters


@pytest.mark.parametrize("pull", PULLS)
def test_a_step_costs_hardly_more_than_one_of_plain_sgd(benchmark, parts, pull: str) -> None:
    net, space, clusters = parts
    clustered = clustered_tensors(net, space, Partition(space, clusters))
    hook = CentripetalHook(clustered, PULLS[pull], EQUAL, TrainingPlan((0.001,), 0.9, True, 1e-4))
    assert ratio(benchmark, net, hook) <= ALLOWED


def test_after_the_trim_a_step_costs_what_the_narrow_nets_does(benchmark, parts) -> None:
    net, space, clusters = parts
    narrow = merge_channels(net, space, clusters)
    assert ratio(benchmark, narrow, RescalingHook(narrow, Partition(space, clusters))) <= ALLOWED
