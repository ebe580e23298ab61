import pytest
import tiny_nets as nets
import torch

from pruning.base import PruningError
from pruning.selection import kept_ids, select_channels
from spaces.errors import SpaceError
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace


@pytest.fixture
def space() -> SearchSpace:
    return trace(nets.Residual().eval(), torch.zeros(1, *nets.IMAGE))


def test_the_highest_scores_are_kept_in_ascending_order(space) -> None:
    scores = {"stem": torch.tensor([3.0, 0.0, 5.0, 1.0, 4.0, 2.0, 0.5, 7.0])}
    assert select_channels(space, scores, {"stem": 3})["stem"].tolist() == [2, 4, 7]


def test_of_equal_scores_the_lower_index_is_kept(space) -> None:
    assert select_channels(space, {"stem": torch.ones(8)}, {"stem": 3})["stem"].tolist() == [0, 1, 2]


def test_only_the_groups_with_a_width_are_selected(space) -> None:
    scores = {group.name: torch.ones(group.width) for group in space.variable}
    assert set(select_channels(space, scores, {"inner": 2})) == {"inner"}


def test_every_conv_group_keeps_the_same_number() -> None:
    space = trace(nets.Grouped().eval(), torch.zeros(1, *nets.IMAGE))
    kept = select_channels(space, {"first": torch.arange(16.0)}, {"first": 8})["first"]
    assert kept.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]  # the upper two of each of the four conv groups


@pytest.mark.parametrize("scores", [torch.ones(7), torch.tensor([torch.nan] + [1.0] * 7)])
def test_scores_of_a_wrong_shape_or_not_finite_are_refused(space, scores) -> None:
    with pytest.raises(PruningError, match="scores of 'stem' have shape .* and must be 8 finite numbers"):
        select_channels(space, {"stem": scores}, {"stem": 3})


def test_a_width_that_is_not_legal_is_refused(space) -> None:
    with pytest.raises(SpaceError):
        select_channels(space, {"stem": torch.ones(8)}, {"stem": 9})


def test_ids_of_groups_that_are_not_selected_and_the_id_of_no_channel_are_kept(space) -> None:
    kept = kept_ids(space, {"stem": torch.tensor([1, 4])})
    stem = space.by_name["stem"]
    gone = {stem.start + channel for channel in (0, 2, 3, 5, 6, 7)}
    assert {int(channel) for channel in (~kept).nonzero()[0]} == gone
    assert kept[-1]
