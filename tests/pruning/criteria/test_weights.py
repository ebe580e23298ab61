import numpy as np
import pytest
import torch
from traced_zoo import zoo_space

from pruning.criteria.weights import (
    add_relative,
    channel_rows,
    filter_scores,
    norm_rows,
    pacesetter,
    producer_filters,
    rows_of,
)
from spaces.groups import ChannelGroup
from spaces.tracing.tracer import trace


def test_rows_and_channels_of_a_group_on_an_axis() -> None:
    group = ChannelGroup("g", 3, 1, 3, start=4)
    rows, channels = rows_of(group, np.array([-1, 6, 3, 4, 7]))
    assert (rows.tolist(), channels.tolist()) == ([1, 3], [2, 0])


def test_every_parameter_that_a_group_writes_has_rows(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    found = {(entry.group.name, entry.parameter) for entry in channel_rows(tiny_residual, space)}
    stem = ["stem.weight", "norm.weight", "norm.bias", "conv2.weight", "norm2.weight", "norm2.bias"]
    inner = ["conv1.weight", "norm1.weight", "norm1.bias"]
    assert found == {("stem", name) for name in stem} | {("conv1", name) for name in inner}
    norms = {entry.parameter for entry in norm_rows(tiny_residual, space)}
    assert norms == {name for name in [*stem, *inner] if name.startswith("norm")}


@pytest.mark.parametrize(
    ("name", "side", "leaders"),
    [
        ("resnet20", 32, ["conv1", "layers.stage2.0.shortcut.0", "layers.stage3.0.shortcut.0"]),
        # The stem writes a group of its own here, so that every stage has a projection, the first one too.
        ("resnet50", 64, [f"layer{stage}.0.downsample.0" for stage in (1, 2, 3, 4)]),
    ],
)
def test_the_pacesetter_is_the_stem_or_the_projection_of_a_stage(name, side, leaders) -> None:
    space = zoo_space(name, side)
    assert [pacesetter(space, group) for group in space.variable if len(group.producers) > 1] == leaders


def test_no_depthwise_layer_is_a_pacesetter() -> None:
    space = zoo_space("mobilenet_v2", 64)
    leaders = {f"{pacesetter(space, group)}.weight" for group in space.variable}
    assert not leaders & set(space.grouped)


def test_filters_come_from_all_layers_that_write_a_group_or_the_first_only(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    stem = space.by_name["stem"]
    shapes = [tuple(filters.shape) for filters, _ in producer_filters(tiny_residual, space, stem)]
    assert shapes == [(8, 27), (8, 108)]
    ((filters, channels),) = producer_filters(tiny_residual, space, stem, paced=True)
    assert torch.equal(filters, tiny_residual.stem.weight.detach().flatten(1).double())
    assert channels.tolist() == list(range(8))


def test_layers_count_the_same_whatever_the_size_of_their_filters(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    before = filter_scores(tiny_residual, space, lambda filters: filters.abs().sum(dim=1))["stem"]
    with torch.no_grad():
        tiny_residual.conv2.weight *= 1000
    after = filter_scores(tiny_residual, space, lambda filters: filters.abs().sum(dim=1))["stem"]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
    torch.testing.assert_close(float(after.mean()), 2.0)  # one from each of the two layers


def test_values_are_added_in_units_of_their_mean() -> None:
    total = torch.zeros(4, dtype=torch.float64)
    add_relative(total, torch.tensor([3, 1]), torch.tensor([1.0, 3.0], dtype=torch.float64))
    add_relative(total, torch.tensor([0]), torch.zeros(1, dtype=torch.float64))
    assert total.tolist() == [0, 1.5, 0, 0.5]
