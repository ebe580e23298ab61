import numpy as np
import pytest
import torch

from spaces.tracing.axes import permuted, reduced, reshaped
from spaces.tracing.operations import Flow

CHANNELS = Flow(1, np.arange(3))  # of a tensor (2, 3, 4, 4)


def plain(flow):
    return None if flow is None else (flow.axis, flow.ids.tolist())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 3, 4, 4), (2, 3, 16), (1, [0, 1, 2])),
        ((2, 3, 2, 1), (2, 6), (1, [0, 0, 1, 1, 2, 2])),
        ((2, 3), (1, 2, 3), (2, [0, 1, 2])),
        ((2, 3, 4, 4), (6, 4, 4), None),
    ],
)
def test_a_reshape_keeps_repeats_moves_or_mixes_the_channels(before, after, expected):
    assert plain(reshaped("reshape", CHANNELS, before, after)) == expected


def test_axes_of_size_one_come_and_go():
    assert plain(reshaped("squeeze", Flow(2, np.arange(3)), (1, 2, 3), (2, 3))) == (1, [0, 1, 2])
    assert plain(reshaped("unsqueeze", CHANNELS, (2, 3), (2, 1, 3))) == (2, [0, 1, 2])


def test_a_reduction_over_the_channels_loses_them():
    assert plain(reduced(CHANNELS, 4, (2, 3), False)) == (1, [0, 1, 2])
    assert plain(reduced(CHANNELS, 4, 0, False)) == (0, [0, 1, 2])
    assert plain(reduced(CHANNELS, 4, 0, True)) == (1, [0, 1, 2])
    assert reduced(CHANNELS, 4, -3, True) is None
    assert reduced(CHANNELS, 4, None, False) is None


def test_a_permutation_moves_the_channels():
    image = torch.empty(2, 3, 4, 4, device="meta")
    assert permuted("permute", CHANNELS, (image, (0, 2, 3, 1)), {}).axis == 3
    assert permuted("transpose", CHANNELS, (image, 1, 2), {}).axis == 2
