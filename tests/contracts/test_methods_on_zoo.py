"""The contract of all methods on real architectures of the zoo: at given widths, and within a budget.

Networks with hundreds of channels are cut before the test, because the time of several methods grows with the square
or cube of a width. A new method is tested once it has a line in METHODS. Methods that differ by their criterion alone
run whole on one network, and score the channels of the others: what follows from the scores is the same for all of
them. Tests that need no real architecture are in test_methods.py.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pruning.base import METHODS, Goal, Snapshot
from pruning.checkpoint import from_bytes, to_bytes
from pruning.methods.abfp.method import AutoBalanced
from pruning.methods.score_and_slice import ScoreAndSlice
from pruning.methods.scratch import FromScratch
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from runners.config import TrainConfig
from runners.data.loading import ImageData
from runners.data.splits import TensorSplit
from runners.evaluation.context import TrialContext
from runners.training.compute_format import PLAIN
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import ModelSpec, SearchSpace, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

# Side of the images in pixels: the smallest at which the strides of the net leave a map.
SIDES = {"resnet20": 16, "cifar_vgg16_bn": 32, "densenet40": 8, "mobilenet_v2": 32, "efficientnet_b0": 32}
SIDES |= {"googlenet": 32}
CLASSES, SHARE = 10, 0.3  # of the dense FLOPs
# Share of the FLOPs of networks with wide layers that is left before the test.
LEFT = {"cifar_vgg16_bn": 1 / 16, "mobilenet_v2": 1 / 8, "efficientnet_b0": 1 / 8, "googlenet": 1 / 8}
# Within budgets, these methods take the uniform widths that the test gives them.
UNIFORM = (ScoreAndSlice, FromScratch, AutoBalanced)
TRAIN = TrainConfig(epochs=1, batch_size=4, device="cpu", precision="float32")
# Methods that share their code with uniform l2, and differ by the criterion.
SCORED = [name for name in sorted(METHODS) if METHODS[name].run is ScoreAndSlice.run and name != "l2"]
SMALLEST = "resnet20"  # the network on which all methods run whole
# The longest, each of 2 to 3 s: the kind of network and the method are tested together with others.
LONG = [(net, name) for net in ("efficientnet_b0", "googlenet") for name in ("abfp", "kse")]
LONG += [("googlenet", "di"), ("densenet40", "kse")]
WHOLE = [
    pytest.param(net, name, marks=pytest.mark.slow if (net, name) in LONG else ())
    for net in SIDES
    for name in sorted(METHODS)
    if net == SMALLEST or name not in SCORED
]


@dataclass(frozen=True)
class Case:
    """A dense net and what its tests share."""

    net: nn.Module
    space: SearchSpace
    data: ImageData
    state: dict[str, Tensor]  # of the net before any test

    @property
    def budget(self) -> Budget:
        return Budget("flops", int(SHARE * self.space.dense_cost.flops))


@cache
def case_of(name: str) -> Case:
    shape = (3, SIDES[name], SIDES[name])
    torch.manual_seed(0)
    net = build(ModelSpec(name, CLASSES, shape)).eval()
    if name in LEFT:
        net = _narrower(net, shape, LEFT[name])
    images = torch.randint(0, 256, (8, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = TensorSplit(images, torch.arange(8) % CLASSES, (0.5,) * 3, (0.3,) * 3, shape[1:])
    data = ImageData("noise", split, split, split, split, split, CLASSES, shape, "noise")
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return Case(net, trace(net, torch.zeros(1, *shape)), data, state)


def _narrower(net: nn.Module, shape: tuple[int, int, int], share: float) -> nn.Module:
    """Return the net cut to the first channels of every group, at uniform widths within a share of the FLOPs."""
    space = trace(net, torch.zeros(1, *shape))
    widths = space.fit(uniform_ratios(space), [Budget("flops", int(share * space.dense_cost.flops))])
    equal = {group.name: torch.ones(group.width) for group in space.variable}
    return slice_channels(net, space, select_channels(space, equal, widths)).eval()


@pytest.mark.parametrize(("net", "name"), WHOLE)
def test_a_method_keeps_its_contract_on_a_real_net(net: str, name: str) -> None:
    case, method = case_of(net), METHODS[name]()
    context = TrialContext(case.data, TRAIN, 0, compute_format=PLAIN)
    context.prepared = method.prepare(case.net, case.space, context)
    if method.takes_widths:
        widths = case.space.fit(uniform_ratios(case.space), [case.budget])
        snapshots = list(method.run(case.net, case.space, Goal(widths=widths), context))
        assert snapshots[-1].widths == widths
        _check_net(case, snapshots[-1])
        _check_dense_net(case)
        _check_memory(case, snapshots[-1].net)
    if method.finds_widths and not isinstance(method, UNIFORM):
        snapshots = list(method.run(case.net, case.space, Goal(budgets=(case.budget,)), context))
        assert _promised(case, snapshots[-1]).flops <= case.budget.limit
        _check_net(case, snapshots[-1])
        _check_dense_net(case)
        _check_memory(case, snapshots[-1].net)


@pytest.mark.parametrize(("net", "name"), [(net, name) for net in SIDES if net != SMALLEST for name in SCORED])
def test_a_method_scores_the_channels_of_a_real_net(net: str, name: str) -> None:
    case = case_of(net)
    criterion = METHODS[name]().chosen()
    scores = criterion.scores(case.net, case.space, TrialContext(case.data, TRAIN, 0, compute_format=PLAIN))
    assert {group: len(own) for group, own in scores.items()} == {g.name: g.width for g in case.space.variable}
    assert all(bool((own.isfinite() & (own >= 0)).all()) for own in scores.values())
    _check_dense_net(case)


def _promised(case: Case, snapshot: Snapshot):
    return snapshot.cost or case.space.cost(snapshot.widths)


def _check_net(case: Case, snapshot: Snapshot) -> None:
    """Check the cost by fvcore, finite weights and notes, the output shape, and the checkpoint."""
    net = snapshot.net.eval()
    assert count_cost(net, case.space.input_shape) == _promised(case, snapshot)
    assert [name for name, tensor in net.state_dict().items() if not torch.isfinite(tensor).all()] == []
    assert all(isinstance(value, str) or math.isfinite(value) for value in snapshot.note.values())
    images = torch.randn(2, *case.space.input_shape, generator=torch.Generator().manual_seed(1))
    loaded = from_bytes(to_bytes(net, None, snapshot.widths), case.net).eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, CLASSES)
        assert torch.equal(loaded(images), logits)


def _check_dense_net(case: Case) -> None:
    """Check that the dense net is unchanged."""
    assert [name for name, tensor in case.net.state_dict().items() if not torch.equal(tensor, case.state[name])] == []
    modules = list(case.net.modules())
    assert not any(module.training or module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert all(parameter.grad is None for parameter in case.net.parameters())


def _check_memory(case: Case, narrow: nn.Module) -> None:
    """Check that the narrow net shares no memory with the dense one."""
    dense = {parameter.data_ptr() for parameter in case.net.parameters()}
    assert not any(parameter.data_ptr() in dense for parameter in narrow.parameters())
