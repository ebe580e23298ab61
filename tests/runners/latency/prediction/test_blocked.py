"""A made-up runtime that convolves blocks of channels is predicted from few noisy readings of whole networks."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from chain_space import chain

from runners.latency.prediction.blocked import BLOCKS, TERMS, blocked_basis, blocked_terms
from runners.latency.prediction.kernels import Kernel, Work
from runners.latency.prediction.layer_timing import TERMS as UNBLOCKED_TERMS
from runners.latency.prediction.model import LatencyModel, Layers, Readings, left_out_errors, stage_numbers
from runners.latency.prediction.rates import Rates, work_terms
from spaces.widths import Widths

SPACE = chain(groups=4, width=96, floor=8)
POSITIONS = (1024, 1024, 256, 64)  # of the outputs of its four convolutions; each is followed by a depthwise one


def seconds(widths: Widths, block: int) -> float:
    """Return the seconds of the chain in a runtime with blocks of so many channels, layer by layer."""
    total = 0.0
    for (inputs, outputs), size in zip(itertools.pairwise([3, *widths.values()]), POSITIONS, strict=True):
        total += 2e-6
        if inputs >= block and inputs % 4:
            total += 3e-10 * size * inputs * outputs + 4e-6 + 1e-9 * size * (inputs + outputs)
        else:
            read = inputs if inputs < block else block * math.ceil(inputs / block)
            total += 1e-10 * size * read * block * math.ceil(outputs / block)
        if outputs % 4:
            total += 2e-6 + 2e-7 * outputs + 1e-9 * size * 2 * outputs
        else:
            total += 2e-6 + 4e-10 * size * block * math.ceil(outputs / block)
    return total


def makers() -> dict[int, Callable[[int, Readings], Layers]]:
    """Return what makes layers of readings: by block, 0 for that without blocks."""
    groups = len(SPACE.groups)
    shown = np.zeros((2 * groups, 1 + groups))  # rows (constant, share of each group): outputs of every layer
    kernels = []
    for group, size in enumerate(POSITIONS):
        shown[2 * group, 1 + group] = shown[2 * group + 1, 1 + group] = 1
        plain = Work(products=size, weights=1.0, inputs=size, outputs=size)
        depthwise = Work(True, products=size, weights=1.0, inputs=size, outputs=size)
        kernels += [Kernel(name, name, not work.depthwise, unused, work) for name, work in
                    ((f"conv2d {group}", plain), (f"depthwise {group}", depthwise))]  # fmt: skip
    read = shown.copy()
    read[0] = [3, *[0] * groups]
    read[2::2] = shown[0:-2:2]
    zeros = np.zeros((len(kernels), UNBLOCKED_TERMS, UNBLOCKED_TERMS))
    stages = stage_numbers([size for size in POSITIONS for _ in range(2)])
    layers = Layers(tuple(SPACE.full), np.arange(len(kernels)), read, shown, zeros, stages)
    by_block = {block: Rates(dataclasses.replace(layers, block=block), blocked_terms(kernels)).fit for block in BLOCKS}
    return {0: Rates(layers, work_terms([kernel.work for kernel in kernels])).fit} | by_block


def unused(*_: object) -> Callable[[], object]:
    raise AssertionError("no layer is timed alone")


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_and_odd_channels_are_learned_from_whole_networks(block: int) -> None:
    generator = np.random.default_rng(block)
    tried = [Widths(dict(zip(SPACE.full, map(int, row), strict=True))) for row in generator.integers(8, 97, (60, 4))]
    noise = np.exp(generator.normal(0, 0.01, len(tried)))
    measured = [(tuple(one.values()), seconds(one, block) * factor) for one, factor in zip(tried, noise, strict=True)]
    readings, unseen = measured[:28], tried[28:]
    dense = tuple(SPACE.full.values())
    errors = {}
    for own, make in makers().items():
        left_out = left_out_errors(lambda others, make=make: make(1, others), dense, readings)
        model = LatencyModel(make(1, readings), dense, readings)
        apart = [abs(model.predict(one) / seconds(one, block) - 1) for one in unseen]
        errors[own] = (float(np.mean(np.abs(left_out))), float(np.median(apart)))
    assert min(errors, key=lambda own: errors[own][0]) == block
    assert errors[block][1] < 0.03
    assert errors[0][1] > 2 * errors[block][1]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_terms_are_those_of_the_rule(block: int) -> None:
    for channels in range(1, 70):
        filled, odd = block * math.ceil(channels / block), channels % 4 != 0
        few = channels < block
        expected = [1, channels, filled, 0 if few or odd else filled, channels if few else 0]
        expected += [channels if odd and not few else 0, int(odd and not few), 0 if odd else filled]
        expected += [channels if odd else 0]
        assert blocked_basis(np.array([float(channels)]), block)[0].tolist() == expected
    assert blocked_basis(np.array([[17.5]]), block).shape == (1, 1, TERMS)
    assert blocked_basis(np.array([17.5]), block)[0, 5] == 0  # a width that is still to be chosen


def test_layers_of_blocks_survive_a_file() -> None:
    readings = [(tuple(row), seconds(Widths(dict(zip(SPACE.full, row, strict=True))), 16)) for row in
                ([96, 64, 32, 96], [40, 41, 42, 43], [16, 20, 96, 96], [9, 8, 30, 90])]  # fmt: skip
    layers = makers()[16](1, readings)
    again = Layers.from_plain(layers.to_plain())
    widths = np.array([row for row, _ in readings], dtype=np.float64)
    assert again.block == 16
    assert np.array_equal(again.stages(widths), layers.stages(widths))
