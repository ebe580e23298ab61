"""Directions over a network's groups, and widths as real numbers."""

import numpy as np
import pytest
import torch

from search.searchers.structure import Relaxation, balanced, structure_of
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.zoo.models import build


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return trace(build(ModelSpec("resnet20", 10, (3, 32, 32))), torch.zeros(1, 3, 32, 32))


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


def test_real_widths_use_the_budget_up_and_are_near_the_legal_ones(space: SearchSpace) -> None:
    relaxation = Relaxation(space)
    proportions = np.random.default_rng(0).uniform(-1, 1, (8, len(space.variable)))
    limits = np.column_stack([np.geomspace(0.06, 0.5, 8) * space.dense_cost.flops, np.full(8, np.inf)])
    log2_ratios = relaxation.fit(proportions, limits)
    assert np.abs(relaxation.usage(log2_ratios, limits)).max() < 0.02
    full = np.array([group.width for group in space.variable])
    for own, log2_proportions, limit in zip(log2_ratios, proportions, limits[:, 0], strict=True):
        widths = space.fit(2 ** (log2_proportions - 1), [Budget("flops", int(limit))])
        legal = np.array([widths[group.name] for group in space.variable])
        assert np.abs(full * 2**own - legal).max() < 2.5  # steps of the rounding and of what fills the budget


def test_the_tighter_of_two_budgets_counts(space: SearchSpace) -> None:
    relaxation, groups = Relaxation(space), len(space.variable)
    limits = np.array([[0.5 * space.dense_cost.flops, 0.1 * space.dense_cost.params]])
    log2_ratios = relaxation.fit(np.zeros((1, groups)), limits)
    widths = {
        group.name: round(group.width * 2**log2) for group, log2 in zip(space.variable, log2_ratios[0], strict=True)
    }
    assert space.cost(widths).params == pytest.approx(limits[0, 1], rel=0.05)
    assert space.cost(widths).flops < limits[0, 0]


def test_slopes_are_those_of_the_exact_cost(space: SearchSpace) -> None:
    relaxation, groups = Relaxation(space), len(space.variable)
    limits = np.array([[float(space.dense_cost.flops), np.inf]])
    log2_ratios = np.full((1, groups), -1.0)
    slopes = relaxation.slopes(log2_ratios, limits)[0]
    for index in range(0, groups, 3):
        wider = log2_ratios.copy()
        wider[0, index] += 0.01
        grown = relaxation.usage(wider, limits) - relaxation.usage(log2_ratios, limits)
        assert slopes[index] == pytest.approx(grown[0] / 0.01, rel=0.02)


def test_sensitive_groups_are_wide_and_dear_ones_narrow(space: SearchSpace) -> None:
    even = dict.fromkeys((group.name for group in space.variable), 1.0)
    index = {group.name: number for number, group in enumerate(space.variable)}
    streams = [index[group.name] for group in space.variable if len(group.producers) > 1]
    plain = balanced(space, even)
    assert plain[streams].max() < np.median(plain)
    name = space.variable[4].name
    assert balanced(space, even | {name: 8.0})[4] == pytest.approx(plain[4] + 1.0, abs=0.2)
