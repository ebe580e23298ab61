"""The latency of an image with shared kernels, measured alternately with that of the dense network."""

import pytest
import torch
from torch import nn

from pruning.methods.kse.kernel_levels import KernelSpace
from pruning.methods.kse.method import KernelSparsityEntropy
from runners.latency.timing import latency_ratio
from spaces.budget import Budget
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = (3, 32, 32)


def shared_resnet(share: float) -> tuple[nn.Module, nn.Module]:
    """Return a ResNet-56 and the same with shared kernels at this share of its FLOPs."""
    torch.manual_seed(0)
    net = build(ModelSpec("resnet56", 10, SHAPE)).eval()
    space, method = trace(net, torch.zeros(1, *SHAPE)), KernelSparsityEntropy(restarts=1)
    prepared = method.prepare(net, space, None)
    kernel_space = KernelSpace(net, space, prepared.convs, method.indicators(prepared))
    _, assignment, _ = method.chosen(kernel_space, [Budget("flops", int(share * space.dense_cost.flops))])
    return net.to(DEVICE), method.built(net, kernel_space, assignment, 0).to(DEVICE)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_latency_of_an_image(benchmark, share: float) -> None:
    """No bound: that fewer FLOPs need not be faster is what is reported."""
    dense, narrow = shared_resnet(share)
    ratio = benchmark.pedantic(lambda: latency_ratio(narrow, dense, SHAPE, DEVICE), rounds=1)
    benchmark.extra_info["ratio"] = ratio
    print(f"\nan image takes {ratio:.2f}x as long at {share:.0%} of the FLOPs on {DEVICE.type}")
    assert ratio > 0
