"""Directions over a network's groups."""

import numpy as np
import pytest
from traced_zoo import zoo_space

from search.searchers.structure import balanced, structure_of
from spaces.space import SearchSpace, SpaceConfig


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return zoo_space("resnet20", 32)


def test_a_residual_net_has_stages_and_streams_shared_by_more_layers(space: SearchSpace) -> None:
    structure = structure_of(space)
    assert structure.names == (
        "depth", "layers sharing a group", "share of the FLOPs", "stage 1 of 3", "stage 2 of 3", "stage 3 of 3"
    )  # fmt: skip
    names = [group.name for group in space.variable]
    sharing = dict(zip(names, structure.directions[:, 1], strict=True))
    streams = {group.name for group in space.variable if len(group.producers) > 1}
    assert min(sharing[name] for name in streams) > max(value for name, value in sharing.items() if name not in streams)
    stage = dict(zip(names, structure.directions[:, 5], strict=True))
    assert {name for name in names if stage[name] > 0} == {name for name in names if "stage3" in name}


def test_directions_are_centred_and_of_one_size(space: SearchSpace) -> None:
    directions = structure_of(space, {group.name: 1.0 + group.width for group in space.variable}).directions
    assert directions.mean(axis=0) == pytest.approx(np.zeros(7), abs=1e-9)
    assert (directions**2).mean(axis=0) == pytest.approx(np.ones(7))


def test_one_group_has_no_structure(space: SearchSpace) -> None:
    single = space.restrict(SpaceConfig(only=("layers.stage1.0.conv1",)))
    assert structure_of(single).names == ()
    assert structure_of(single).directions.shape == (1, 0)


def test_sensitive_groups_are_wide_and_dear_ones_narrow(space: SearchSpace) -> None:
    even = dict.fromkeys((group.name for group in space.variable), 1.0)
    index = {group.name: number for number, group in enumerate(space.variable)}
    streams = [index[group.name] for group in space.variable if len(group.producers) > 1]
    plain = balanced(space, even)
    assert plain[streams].max() < np.median(plain)
    name = space.variable[4].name
    assert balanced(space, even | {name: 8.0})[4] == pytest.approx(plain[4] + 1.0, abs=0.2)
