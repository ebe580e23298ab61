"""Steps and rates of made-up devices, found in whole networks whose seconds a formula gives, with noise."""

import itertools
import math

import numpy as np
import pytest
from chain_space import chain

from runners.latency.prediction.kernels import Work
from runners.latency.prediction.layer_timing import TERMS
from runners.latency.prediction.model import LatencyModel, Layers, left_out_errors, stage_numbers
from runners.latency.prediction.rates import Rates, work_terms
from runners.latency.prediction.steps import find_step, step_pairs
from spaces.widths import Widths

SPACE = chain(groups=4, width=96, floor=8)
POSITIONS = (1024, 1024, 256, 64, 1)  # of the outputs of its five layers


def rates() -> Rates:
    """Return the rates of the chain: convolutions of one position, and a linear layer."""
    count = len(SPACE.groups)
    inputs, outputs = np.zeros((count + 1, count + 1)), np.zeros((count + 1, count + 1))
    inputs[0, 0], outputs[count, 0] = 3, 10
    for group in range(count):
        outputs[group, 1 + group] = inputs[group + 1, 1 + group] = 1
    works = [Work(products=size, weights=1.0, inputs=size, outputs=size) for size in POSITIONS]
    names, kernels = tuple(SPACE.full), np.arange(count + 1)
    zeros = np.zeros((count + 1, TERMS, TERMS))
    return Rates(Layers(names, kernels, inputs, outputs, zeros, stage_numbers(POSITIONS)), work_terms(works))


def seconds(widths: Widths, step: int) -> float:
    """Return the seconds on a device that computes multiples of `step` channels, with a slow third layer."""
    channels = [3, *widths.values(), 10]
    stepped = [step * math.ceil(count / step) for count in channels]
    factors = (1.0, 1.0, 1.6, 1.0, 1.0)
    products = zip(itertools.pairwise(stepped), POSITIONS, factors, strict=True)
    return 2e-4 + sum(1e-10 * factor * size * a * b + 4e-9 * a * b for (a, b), size, factor in products)


@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
def test_the_step_of_a_device_is_found_from_fewer_than_thirty_noisy_readings(step: int) -> None:
    generator = np.random.default_rng(step)
    random = [SPACE.full | {name: int(w) for name, w in zip(SPACE.full, row, strict=True)} for row in
              generator.integers(8, 97, size=(18, 4))]  # fmt: skip
    pairs = step_pairs(SPACE)
    tried = [SPACE.full, *itertools.chain(*pairs), *random]
    assert len(tried) <= 30
    noise = np.exp(generator.normal(0, 0.02, len(tried)))
    readings = [(tuple(one.values()), seconds(one, step) * factor) for one, factor in zip(tried, noise, strict=True)]
    dense, make = readings[0][0], rates().fit
    indices = [(1 + 2 * index, 2 + 2 * index) for index in range(len(pairs))]
    assert find_step(make, dense, readings, indices) == step
    errors = left_out_errors(lambda others: make(step, others), dense, readings)
    assert float(np.median(np.abs(errors))) < 0.03
    model = LatencyModel(make(step, readings), dense, readings)
    unseen = SPACE.full | {"layer0": 41, "layer1": 57, "layer3": 33}
    assert model.predict(unseen) == pytest.approx(seconds(unseen, step), rel=0.05)
    assert Layers.from_plain(model.layers.to_plain()).step == step


def test_the_second_of_a_pair_is_just_beyond_an_odd_multiple_of_its_step() -> None:
    pairs = step_pairs(SPACE)
    assert [tuple(one.values()) for one, _ in pairs] == [(68,) * 4, (72,) * 4, (80,) * 4, (32,) * 4]
    assert [tuple(beyond.values()) for _, beyond in pairs] == [(69,) * 4, (73,) * 4, (81,) * 4, (33,) * 4]
    assert step_pairs(chain(width=4)) == []


def test_rates_are_those_of_the_device_and_not_negative() -> None:
    tried = [SPACE.full | {"layer1": width, "layer2": 2 * width} for width in range(8, 48, 3)]
    works = [Work(products=size, weights=1.0) for size in POSITIONS]
    layers = Rates(rates().layers, work_terms(works)).fit(
        1, [(tuple(one.values()), 3e-4 + 1e-9 * products(one)) for one in tried]
    )
    found = layers.coefficients[:, 1, 1] / POSITIONS
    assert found == pytest.approx([1e-9] * 5, rel=1e-3)
    assert layers.coefficients[:, 0, 0].sum() == pytest.approx(3e-4, rel=1e-3)
    assert layers.coefficients.min() >= 0


def products(widths: Widths) -> int:
    return sum(
        a * b * size for (a, b), size in zip(itertools.pairwise((3, *widths.values(), 10)), POSITIONS, strict=True)
    )
