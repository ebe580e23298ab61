import numpy as np

from spaces.tracing.labels import ChannelLabels, signatures


def test_united_ids_are_one_channel():
    labels = ChannelLabels()
    left, right, other = labels.fresh(2), labels.fresh(2), labels.fresh(1)
    labels.unite(left, right)
    channels = labels.components()
    assert channels[left].tolist() == channels[right].tolist()
    assert len(set(channels[[*left, *other]].tolist())) == 3


def test_a_fixed_id_fixes_its_channel_for_the_first_reason():
    labels = ChannelLabels()
    left, right = labels.fresh(2), labels.fresh(2)
    labels.unite(left, right)
    labels.fix(right[:1], "network output")
    labels.fix(left, "input image")
    channels = labels.components()
    reasons = labels.fixed_reasons(channels)
    assert [reasons[channel] for channel in channels[left].tolist()] == ["network output", "input image"]


def test_channels_on_the_same_axes_equally_often_have_one_signature():
    # Channels 0 and 1 lie once on both axes; channel 2 lies twice on the second one, channel 3 on the first alone.
    numbers = signatures([np.array([0, 1, 2, 3]), np.array([0, 1, 2, 2])], 4).tolist()
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3
