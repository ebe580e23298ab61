from spaces.groups import ChannelGroup


def test_legal_widths_are_multiples_of_the_divisor_and_the_ceiling():
    group = ChannelGroup("stem", width=30, floor=5, ceiling=30, divisor=8)
    assert (group.lowest, group.steps) == (8, 3)
    assert [width for width in range(1, 31) if group.legal(width)] == [8, 16, 24, 30]


def test_a_floor_above_the_last_multiple_leaves_the_ceiling_alone():
    group = ChannelGroup("stem", width=30, floor=29, ceiling=30, divisor=8)
    assert (group.lowest, group.steps, group.legal(30), group.legal(24)) == (30, 0, True, False)
