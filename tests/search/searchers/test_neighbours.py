"""Width parameters close to those of a good network."""

import math

import numpy as np
import pytest
from chain_space import chain

from search.searchers.neighbours import neighbour
from search.searchers.parameters import WIDTH, proportion
from spaces.widths import Widths

SPACE = chain(groups=6, width=64)
WIDTHS = Widths({f"layer{i}": width for i, width in enumerate((12, 16, 16, 16, 20, 24))})


def log2_proportions(parameters: dict[str, float]) -> np.ndarray:
    return np.array([math.log2(proportion(parameters[WIDTH + group.name])) for group in SPACE.variable])


def test_neighbours_keep_the_proportions_of_their_network_but_for_small_changes() -> None:
    random = np.random.default_rng(0)
    found = np.array([log2_proportions(neighbour(WIDTHS, SPACE.variable, random)) for _ in range(400)])
    own = np.log2(np.array(list(WIDTHS.values())) / 16)
    assert found.mean(axis=0) == pytest.approx(own, abs=0.1)
    assert 0.05 < found.std(axis=0).min() <= found.std(axis=0).max() < 0.4


def test_some_neighbours_differ_in_a_few_groups_and_some_in_all() -> None:
    random = np.random.default_rng(1)
    start = {WIDTH + name: 0.5 for name in SPACE.full}
    uniform = Widths(dict.fromkeys(SPACE.full, 16))
    changed = [
        sum(value != start[name] for name, value in neighbour(uniform, SPACE.variable, random).items())
        for _ in range(200)
    ]
    assert min(changed) <= 3
    assert max(changed) >= 5


def test_a_group_without_a_width_is_full_and_proportions_out_of_range_take_their_ends() -> None:
    random = np.random.default_rng(0)
    parameters = neighbour(Widths({"layer0": 2, **dict.fromkeys(("layer1", "layer2"), 32)}), SPACE.variable, random)
    assert all(0 <= value <= 1 for value in parameters.values())
    assert parameters[WIDTH + "layer0"] == 0.0
