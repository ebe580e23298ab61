import numpy as np
import pytest
import torch
from torch import Tensor

from spaces.tracing.axes import equal_parts, moved, reduced, reduced_axes
from spaces.tracing.operations import Flow

CHANNELS = Flow(1, np.arange(4))  # of a tensor (1, 4, 2, 2)
IMAGE = torch.empty(1, 4, 2, 2)


def plain(flow):
    return None if flow is None else (flow.axis, flow.ids.tolist())


def after(func, *args, flow=CHANNELS, image=IMAGE, **kwargs):
    found = moved(func, (image, *args), kwargs, lambda value: flow if value is image else None)
    return None if found is None else [plain(one.flow) for one in found]


@pytest.mark.parametrize(
    ("func", "args", "expected"),
    [
        (torch.reshape, ((1, 4, 4),), [(1, [0, 1, 2, 3])]),
        (torch.flatten, (1,), [(1, [c for c in range(4) for _ in range(4)])]),
        (torch.permute, ((0, 2, 3, 1),), [(3, [0, 1, 2, 3])]),
        (torch.unsqueeze, (0,), [(2, [0, 1, 2, 3])]),
        (torch.flip, ((1,),), [(1, [3, 2, 1, 0])]),
        (torch.roll, (1, 1), [(1, [3, 0, 1, 2])]),
        (Tensor.repeat, (1, 2, 1, 1), [(1, [0, 1, 2, 3, 0, 1, 2, 3])]),
        (torch.repeat_interleave, (2, 1), [(1, [0, 0, 1, 1, 2, 2, 3, 3])]),
        (torch.chunk, (2, 1), [(1, [0, 1]), (1, [2, 3])]),
        (Tensor.__getitem__, ((slice(None), torch.tensor([2, 0, 2])),), [(1, [2, 0, 2])]),
        (Tensor.__getitem__, ((slice(None), slice(None), 0),), [(1, [0, 1, 2, 3])]),
        (torch.nn.functional.channel_shuffle, (2,), [(1, [0, 2, 1, 3])]),
    ],
)
def test_a_move_shows_where_channels_go(func, args, expected):
    assert after(func, *args) == expected


def test_channels_along_several_axes_lie_along_the_longest_and_the_other_lines_are_told():
    image = torch.empty(1, 6, 2, 2)
    flow = Flow(1, np.arange(6))
    (found,) = moved(torch.reshape, (image, (1, 2, 3, 2, 2)), {}, lambda value: flow if value is image else None)
    assert plain(found.flow) == (2, [0, 1, 2])
    assert [line.tolist() for line in found.others] == [[3, 4, 5]]


def test_a_pixel_shuffle_lets_four_channels_become_one():
    image = torch.empty(1, 12, 2, 2)
    flow = Flow(1, np.arange(12))
    (found,) = moved(torch.pixel_shuffle, (image, 2), {}, lambda value: flow if value is image else None)
    assert plain(found.flow) == (1, [0, 4, 8])
    assert {tuple(line.tolist()) for line in found.others} == {(0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11)}


def test_channels_beside_other_elements_cannot_be_followed():
    parts = [IMAGE, torch.zeros(1, 1, 2, 2)]
    assert moved(torch.hstack, (parts,), {}, lambda value: CHANNELS if value is IMAGE else None) is None


def test_an_axis_is_split_into_blocks_of_which_all_parts_consist():
    whole = np.arange(8)
    assert equal_parts(whole, [whole[:4], whole[4:]]) == 2
    assert equal_parts(whole, [whole[:2], whole[2:]]) == 4
    assert equal_parts(whole, [whole[:3]]) == 8
    assert equal_parts(whole, [whole[::2]]) == 0


def test_a_reduction_of_other_axes_moves_the_channels():
    flow = Flow(1, np.arange(3))
    assert plain(reduced(flow, 4, (2, 3), False)) == (1, [0, 1, 2])
    assert plain(reduced(flow, 4, 0, False)) == (0, [0, 1, 2])
    assert plain(reduced(flow, 4, 0, True)) == (1, [0, 1, 2])
    assert reduced_axes(4, -3) == reduced_axes(4, (1,)) == {1}
    assert reduced_axes(4, None) == reduced_axes(4, ()) == {0, 1, 2, 3}
