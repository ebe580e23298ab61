"""The channels of operations as functions of the widths, compared with nets that were narrowed."""

import pytest
import torch
from tiny_nets import ALL, IMAGE, Concat, Depthwise
from torch import nn

from runners.latency.prediction.kernels import Operation, extent_matrix, list_operations
from runners.latency.prediction.model_building import at_widths
from spaces.tracing.tracer import trace
from spaces.widths import Widths


def channels_of(operations: list[Operation], widths: list[int]) -> list[tuple[int, int]]:
    return [(operation.in_channels.at(widths), operation.out_channels.at(widths)) for operation in operations]


@pytest.mark.parametrize("net_class", ALL)
def test_channels_are_those_of_a_net_that_was_narrowed(net_class: type[nn.Module]) -> None:
    net = net_class().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    for share in (0.5, 0.7, 0.9):
        steps = {group.name: max(2, int(share * group.width) // group.divisor) for group in space.variable}
        widths = Widths({group.name: group.divisor * steps[group.name] for group in space.variable})
        _, dense = list_operations(net, space, 1)
        narrow_net = at_widths(net, space, widths)
        _, narrow = list_operations(narrow_net, trace(narrow_net, torch.zeros(1, *IMAGE)), 1)
        full = [group.width for group in trace(narrow_net, torch.zeros(1, *IMAGE)).variable]
        vector = [widths[group.name] for group in space.variable]
        assert channels_of(dense, vector) == channels_of(narrow, full)


@pytest.mark.parametrize("net_class", ALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_operation_runs_alone_at_other_widths(net_class: type[nn.Module], batch: int) -> None:
    net = net_class().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    kernels, operations = list_operations(net, space, batch)
    with torch.no_grad():
        for widths in (space.full, space.smallest):
            vector = [widths[group.name] for group in space.variable]
            for operation, channels in zip(operations, channels_of(operations, vector), strict=True):
                kernel = kernels[operation.kernel]
                out = kernel.call(channels, torch.device("cpu"), torch.float32, torch.contiguous_format)()
                assert isinstance(out, torch.Tensor)
                assert out.shape[0] == batch


def test_similar_layers_share_a_kernel_and_a_depthwise_one_has_one_number_of_channels() -> None:
    net = Depthwise().eval()
    kernels, operations = list_operations(net, trace(net, torch.zeros(1, *IMAGE)), 1)
    convolutions = [operation for operation in operations if kernels[operation.kernel].name == "conv2d"]
    assert [kernels[operation.kernel].independent for operation in convolutions] == [True, False, True, True, True]
    squeeze, excite = convolutions[2:4]
    assert squeeze.kernel == excite.kernel


def test_a_matrix_of_extents_gives_the_channels_of_many_widths_at_once() -> None:
    net = Concat().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    _, operations = list_operations(net, space, 1)
    inputs = [operation.in_channels for operation in operations]
    rows = extent_matrix(inputs, len(space.variable))
    widths = Widths({group.name: group.width - 1 for group in space.variable})
    vector = [widths[group.name] for group in space.variable]
    assert (rows @ [1, *vector]).tolist() == pytest.approx([extent.at(vector) for extent in inputs])


class Unusual(nn.Module):
    """A value read in Python, several filters per channel, channels twice on an axis, and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.doubled = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.join, self.fc = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.doubled(self.stem(x)) * self.scale.item()
        x = torch.cat([x, -x], 1)
        return self.fc(nn.functional.conv2d(x, self.join.weight * 2).mean((2, 3)))  # type: ignore[no-any-return]


def test_operations_of_an_unusual_net_run_alone_at_other_widths() -> None:
    net = Unusual().eval()
    space = trace(net, torch.zeros(1, *IMAGE))
    assert set(space.full) == {"stem", "join"}
    kernels, operations = list_operations(net, space, 2)
    with torch.no_grad():
        for widths in (space.full, Widths({"stem": 4, "join": 5})):
            vector = [widths[group.name] for group in space.variable]
            for operation, channels in zip(operations, channels_of(operations, vector), strict=True):
                out = kernels[operation.kernel].call(
                    channels, torch.device("cpu"), torch.float32, torch.contiguous_format
                )()
                assert isinstance(out, torch.Tensor)
