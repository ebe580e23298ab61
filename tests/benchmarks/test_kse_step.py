"""What kse costs: a training step against one of plain SGD, and an image against one of the dense net, in turns."""

import statistics
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning.kernel_levels import KernelSpace
from pruning.latency import latency_ratio
from pruning.methods.kse import KernelSparsityEntropy
from spaces.budget import Budget
from spaces.space import ModelSpec
from spaces.tracing import trace
from spaces.zoo import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, SHAPE = 64, (3, 32, 32)
STEPS = 200 if DEVICE.type == "cuda" else 5  # of each kind
ALLOWED = 1.2  # times a step of the dense net: the weights are gathered, and reading some channels copies them


def shared_resnet(share: float) -> tuple[nn.Module, nn.Module]:
    """Return a ResNet-56 and the same with shared kernels at this share of its FLOPs."""
    torch.manual_seed(0)
    net = build(ModelSpec("resnet56", 10, SHAPE)).eval()
    space, method = trace(net, torch.zeros(1, *SHAPE)), KernelSparsityEntropy(restarts=1)
    prepared = method.prepare(net, space, None)
    kernel_space = KernelSpace(net, space, prepared.readers, method.indicators(prepared))
    _, outcome, _ = method.chosen(kernel_space, [Budget("flops", int(share * space.dense_cost.flops))])
    return net.to(DEVICE), method.built(net, kernel_space, outcome, 0).to(DEVICE)


def stepper(net: nn.Module):
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), 0.001, 0.9, weight_decay=1e-4, nesterov=True)
    images, labels = torch.randn(BATCH, *SHAPE, device=DEVICE), torch.arange(BATCH, device=DEVICE) % 10

    def step() -> float:
        """Return the seconds of a step."""
        _wait()
        start = time.perf_counter()
        optimiser.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
        _wait()
        return time.perf_counter() - start

    return step


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_step_costs_not_much_more_than_one_of_the_dense_net(benchmark, share: float) -> None:
    dense, narrow = shared_resnet(share)
    plain, shared = stepper(dense), stepper(narrow)
    plain(), shared()
    pairs: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: pairs.append((plain(), shared())), rounds=STEPS)
    found = statistics.median(b / a for a, b in pairs)
    benchmark.extra_info |= {"plain_seconds": statistics.median(a for a, _ in pairs), "ratio": found}
    print(f"\nplain step {1000 * benchmark.extra_info['plain_seconds']:.1f} ms, ratio {found:.4f} on {DEVICE.type}")
    assert found <= ALLOWED


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_latency_of_an_image(benchmark, share: float) -> None:
    """No bound: that fewer FLOPs need not be faster is what is reported."""
    dense, narrow = shared_resnet(share)
    ratio = benchmark.pedantic(lambda: latency_ratio(narrow, dense, SHAPE, DEVICE), rounds=1)
    benchmark.extra_info["ratio"] = ratio
    print(f"\nan image takes {ratio:.2f}x as long at {share:.0%} of the FLOPs on {DEVICE.type}")
    assert ratio > 0
