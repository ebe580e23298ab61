import numpy as np

from spaces.tracing.cells import cells_of


def parted(*parts):
    return np.array(parts, dtype=np.int64)


def test_channels_that_fill_all_parts_alike_are_one_cell():
    cells = cells_of(np.zeros(3, dtype=np.int64), [parted([0, 1, 2], [0, 1, 2])])
    assert cells.cells_in(0) == 1


def test_every_part_of_an_axis_of_one_group_is_a_cell():
    cells = cells_of(np.zeros(12, dtype=np.int64), [parted(range(6), range(6, 12)), np.arange(12).reshape(3, 4)])
    assert cells.cells_in(0) == 6  # 4, 2, 2 and 4 channels lie in the same parts


def test_groups_that_fill_different_parts_become_one_whose_cells_lie_on_the_same_axes():
    cells = cells_of(np.array([0, 0, 0, 0, 0, 0, 1, 1]), [parted([0, 1, 2, 3], [4, 5, 6, 7])])
    assert len(set(cells.group_of.tolist())) == 1
    assert cells.cells_in(int(cells.group_of[0])) == 4  # 4 and 2 of the first group, 2 of the second
    # A group of its own that fills both parts alike stays apart.
    cells = cells_of(np.array([0, 0, 1, 2, 2, 1]), [parted([0, 1, 2], [3, 4, 5])])
    assert cells.group_of[2] == cells.group_of[5] != cells.group_of[0] == cells.group_of[3]


def test_channels_of_one_kind_of_cell_stand_together():
    cells = cells_of(np.zeros(6, dtype=np.int64), [parted([0, 2, 4], [1, 3, 5])])
    assert cells.ordered(0, np.array([3, 0, 3, 1, 2, 4, 5])).tolist() == [3, 1, 5, 0, 2, 4]
