"""Operations of a net as functions of its widths, held against nets that were really narrowed."""

import pytest
import torch
from tiny_nets import ALL, IMAGE, Concat, Depthwise
from torch import nn

from runners.latency.kernels import matrix, operations
from runners.latency.model_building import at_widths
from spaces.tracing.tracer import trace
from spaces.widths import Widths


@pytest.mark.parametrize("net_class", ALL)
def test_channels_are_those_of_a_net_that_was_narrowed(net_class: type[nn.Module]) -> None:
    net = net_class().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    for share in (0.5, 0.7, 0.9):
        steps = {each.name: max(2, int(share * each.width) // each.divisor) for each in space.variable}
        widths = Widths({each.name: each.divisor * steps[each.name] for each in space.variable})
        _, dense = operations(net, space, 1)
        narrow_net = at_widths(net, space, widths)
        _, narrow = operations(narrow_net, trace(narrow_net, torch.zeros(1, *IMAGE)), 1)
        full = [group.width for group in trace(narrow_net, torch.zeros(1, *IMAGE)).variable]
        vector = [widths[group.name] for group in space.variable]
        seen = [(each.read.at(vector), each.written.at(vector)) for each in dense]
        assert seen == [(each.read.at(full), each.written.at(full)) for each in narrow]


@pytest.mark.parametrize("net_class", ALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_operation_runs_alone_at_other_widths(net_class: type[nn.Module], batch: int) -> None:
    net = net_class().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    kernels, found = operations(net, space, batch)
    with torch.no_grad():
        for widths in (space.full, space.smallest):
            vector = [widths[group.name] for group in space.variable]
            for each in found:
                slots = (each.read.at(vector), each.written.at(vector))
                out = kernels[each.kernel].call(slots, torch.device("cpu"), torch.float32, torch.contiguous_format)()
                assert isinstance(out, torch.Tensor)
                assert out.shape[0] == batch


def test_layers_alike_share_a_kernel_and_a_depthwise_one_has_one_number() -> None:
    net = Depthwise().eval()
    kernels, found = operations(net, trace(net, torch.zeros(1, *IMAGE)), 1)
    convolutions = [each for each in found if kernels[each.kernel].name == "conv2d"]
    assert [kernels[each.kernel].two for each in convolutions] == [True, False, True, True, True]
    squeeze, excite = convolutions[2:4]
    assert squeeze.kernel == excite.kernel


def test_a_matrix_of_extents_gives_the_channels_of_many_widths_at_once() -> None:
    net = Concat().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    _, found = operations(net, space, 1)
    rows = matrix([each.read for each in found], len(space.variable))
    widths = Widths({group.name: group.width - 1 for group in space.variable})
    vector = [widths[group.name] for group in space.variable]
    assert (rows @ [1, *vector]).tolist() == pytest.approx([each.read.at(vector) for each in found])
