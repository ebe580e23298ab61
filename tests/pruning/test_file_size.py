import importlib.util

import pytest
import torch

from pruning.file_size import CHECKPOINT, file_size, with_file_size
from pruning.formats import FORMATS, write_network
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.cifar import LeNet
from spaces.zoo.models import build

SHAPE = (1, 28, 28)
SPEC = ModelSpec("lenet5", 10, SHAPE)


def cut(net, space, widths):
    scores = {group.name: torch.rand(group.width) for group in space.variable}
    return slice_channels(net, space, select_channels(space, scores, widths)).eval()


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    net = LeNet(10, SHAPE).eval()
    return net, trace(net, torch.empty(1, *SHAPE))


SLOW = {"onnx"}  # which takes seconds to write


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FORMATS])
def test_real_files_are_at_most_as_large_as_their_widths_say_and_nearly_so(traced, name, tmp_path):
    if FORMATS[name].packages and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("the extra [onnx]")
    net, traced_space = traced
    space = with_file_size(traced_space, net, name, SPEC)
    for ratios in ([1.0] * 3, [0.3, 0.7, 0.2], [0.1] * 3):
        widths = space.fit(ratios, [Budget("params", 20_000)])
        narrow = cut(net, space, widths)
        path = write_network(narrow, name, tmp_path / "file", SHAPE, spec=SPEC, widths=widths)
        real, bound = path.stat().st_size, space.cost(widths).size
        # TorchScript keeps the call stack in which it was written, as debugging information.
        assert abs(file_size(narrow, name, space, widths, SPEC) - real) <= (1_000 if name == "torchscript" else 0)
        assert real <= bound <= real + 8_000  # of names and operations; torch aligns tensors


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the extra [onnx]")
def test_trained_weights_do_not_make_an_onnx_file_larger_than_a_fresh_network_has_promised(tmp_path):
    net = build(SPEC).eval()  # all its biases are equal, and equal tensors are stored once
    space = with_file_size(trace(net, torch.empty(1, *SHAPE)), net, "onnx", SPEC)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand_like(parameter))
    widths = space.fit([1.0] * 3, [Budget.parse("60kb")])
    real = write_network(cut(net, space, widths), "onnx", tmp_path / "file", SHAPE).stat().st_size
    assert 57_000 < real <= 60_000


def test_a_budget_on_the_file_is_met_and_used_up(traced):
    net, space = traced[0], with_file_size(traced[1], traced[0], CHECKPOINT, SPEC)
    widths = space.fit([1.0] * 3, [Budget.parse("100kb")])
    assert 0.97 * 100_000 < file_size(cut(net, space, widths), CHECKPOINT, space, widths, SPEC) <= 100_000


def test_a_space_that_does_not_know_the_file_refuses_a_budget_on_it(traced):
    with pytest.raises(BudgetError, match="budget 1mb cannot be held here: the size of its file is not known"):
        traced[1].fit([1.0] * 3, [Budget.parse("1mb")])
