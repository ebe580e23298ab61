"""The latency of an image with shared kernels, in every form, measured alternately with that of the dense network.

`pytest tests/benchmarks/test_kse_latency.py --benchmark-only -s` prints a row per network: FLOPs of its plain
convolutions over dense; latency over dense with all layers in one form, with the fastest form per layer, and of the
network at uniform widths; and rows for a single layer.
"""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from pruning.base import Goal
from pruning.inference import choose_forms, for_inference, layers_with_forms
from pruning.methods.common_steps import uniform_widths
from pruning.methods.kse.kernel_levels import KernelSpace
from pruning.methods.kse.kernel_sharing import FORMS, KMeansSettings, share_kernels
from pruning.methods.kse.method import KernelSparsityEntropy
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from runners.latency.timing import fastest, latency_ratio
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = (3, 32, 32)


def shared_resnet(name: str, share: float) -> tuple[nn.Module, nn.Module]:
    """Return a network and the same with shared kernels at this share of its FLOPs."""
    torch.manual_seed(0)
    net = build(ModelSpec(name, 10, SHAPE)).eval()
    space, method = trace(net, torch.zeros(1, *SHAPE)), KernelSparsityEntropy(restarts=1)
    prepared = method.prepare(net, space, None)
    kernel_space = KernelSpace(net, space, prepared.convs, method.indicators(prepared))
    _, assignment, _ = method.chosen(kernel_space, [Budget("flops", int(share * space.dense_cost.flops))])
    return net.to(DEVICE), method.built(net, kernel_space, assignment, 0).to(DEVICE)


def uniform_resnet(dense: nn.Module, share: float) -> nn.Module:
    """Return the network cut to uniform widths at this share of its FLOPs."""
    space = trace(copy.deepcopy(dense).cpu(), torch.zeros(1, *SHAPE))
    widths = uniform_widths(space, Goal(budgets=(Budget("flops", int(share * space.dense_cost.flops)),)))
    scores = {group.name: torch.arange(group.width, 0.0, -1.0) for group in space.variable}
    return slice_channels(dense, space, select_channels(space, scores, widths)).eval()


def in_form(net: nn.Module, form: str) -> nn.Module:
    """Return the net as it runs with all of its layers in one form."""
    net = copy.deepcopy(net)
    for layer in layers_with_forms(net).values():
        layer.form = form if form in layer.forms() else layer.forms()[0]
    return for_inference(net)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.08])
def test_the_latency_of_an_image(benchmark, name: str, share: float) -> None:
    """No bound on a ratio: that fewer FLOPs need not be faster is what is reported."""
    dense, shared = shared_resnet(name, share)
    chosen = copy.deepcopy(shared)
    choose_forms(chosen, torch.zeros(1, *SHAPE, device=DEVICE), fastest)
    nets = {form: in_form(shared, form) for form in FORMS} | {"chosen": for_inference(chosen)}
    nets["uniform widths"] = uniform_resnet(dense, share)
    ratios = {form: latency_ratio(net, dense, SHAPE, DEVICE) for form, net in nets.items()}
    benchmark.pedantic(lambda: latency_ratio(nets["chosen"], dense, SHAPE, DEVICE), rounds=1)
    benchmark.extra_info |= ratios
    flops = count_cost(nets["dense"], SHAPE).flops / count_cost(dense, SHAPE).flops
    taken = Counter(layer.form for layer in layers_with_forms(chosen).values())
    print(
        f"\n| {name} at {share:.0%} | {flops:.0%} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios.values()),
        end=" | ",
    )
    print(", ".join(f"{count} {form}" for form, count in taken.most_common()) + " |")
    assert len(ratios) == len(FORMS) + 2


@pytest.mark.parametrize("kept", [1, 2, 4, 8])
def test_the_latency_of_a_wide_layer_with_few_kernels(benchmark, kept: int) -> None:
    """No bound either: it shows where the depthwise and pointwise form pays."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False).eval()
    layer = share_kernels(conv, np.full(128, kept), KMeansSettings(1, 1)).eval()
    modules = {form: layer.inference_module(form).eval().to(DEVICE) for form in layer.forms()}
    conv.to(DEVICE)
    ratios = {form: latency_ratio(module, conv, (128, 16, 16), DEVICE) for form, module in modules.items()}
    benchmark.pedantic(lambda: latency_ratio(modules["dense"], conv, (128, 16, 16), DEVICE), rounds=1)
    print(f"\n128 channels with {kept} kernels: " + ", ".join(f"{form} {ratio:.2f}" for form, ratio in ratios.items()))
    assert ratios.keys() == set(layer.forms())
