"""A latency model over made-up layers whose seconds are known."""

import math

import numpy as np
import pytest

from runners.latency.prediction.layer_timing import TERMS
from runners.latency.prediction.model import MAX_SAFETY, LatencyModel, Layers, ModelError, stage_numbers

DENSE = (32, 64)
TRUTH = np.array([[8, 16], [16, 32], [24, 24], [12, 60], [30, 20], [5, 50], [28, 9], [20, 44]])


def layers() -> Layers:
    """Return two layers: 1 us per product of channels in the first stage, 0.5 us per channel in the second."""
    coefficients = np.zeros((2, TERMS, TERMS))
    coefficients[0, 1, 1], coefficients[1, 1, 0] = 1e-6, 0.5e-6
    inputs = np.array([[0, 1.0, 0], [0, 0, 1.0]])
    outputs = np.array([[0, 0, 1.0], [0, 0, 1.0]])
    return Layers(("a", "b"), np.array([0, 1]), inputs, outputs, coefficients, np.array([0, 1]))


def seconds(a: int, b: int) -> float:
    return 1e-6 * a * b + 0.5e-6 * b


def test_it_is_the_sum_over_layers_before_it_has_learned() -> None:
    model = LatencyModel(layers(), DENSE)
    assert model.predict({"a": 10, "b": 20}) == pytest.approx(seconds(10, 20))
    assert model.predict({"a": 10}) == pytest.approx(seconds(10, 64))
    assert model.predict_vectors(TRUTH) == pytest.approx([seconds(*row) for row in TRUTH])


def test_a_biased_model_learns_the_correction_from_measured_nets() -> None:
    model = LatencyModel(layers(), DENSE)

    def truth(a: int, b: int) -> float:  # kernel launches add a constant that no layer has, and the first stage is slow
        return 60e-6 + 2.2e-6 * a * b + 0.5e-6 * b

    fresh = {"a": 17, "b": 33}
    before = abs(model.predict(fresh) / truth(17, 33) - 1)
    for a, b in TRUTH.tolist():
        model.observe({"a": a, "b": b}, truth(a, b))
    assert before > 0.5
    assert abs(model.predict(fresh) / truth(17, 33) - 1) < 0.05


def test_a_model_learns_that_weights_beyond_a_cache_cost_more() -> None:
    model = LatencyModel(layers(), DENSE)

    def truth(a: int, b: int) -> float:  # a multiplication takes up to 2.5 times as long once the weights are many
        square = (a * b) ** 2
        return 1e-6 * a * b * (1 + 1.5 * square / (square + 600**2)) + 0.5e-6 * b

    generator = np.random.default_rng(0)
    nets = list(zip(generator.integers(8, 33, 48).tolist(), generator.integers(16, 65, 48).tolist(), strict=True))
    for a, b in nets[:28]:
        model.observe({"a": a, "b": b}, truth(a, b))
    errors = [abs(model.predict({"a": a, "b": b}) / truth(a, b) - 1) for a, b in nets[28:]]
    assert np.median(errors) < 0.015  # 0.021 without a curvature


def test_errors_are_from_before_learning_and_set_the_safety_factor() -> None:
    model = LatencyModel(layers(), DENSE)
    assert model.error is None
    assert model.observe({"a": 8, "b": 16}, 1.25 * seconds(8, 16)) == pytest.approx(0.2)
    assert model.error == ModelError(pytest.approx(0.2), pytest.approx(0.2), 1)
    assert model.safety == pytest.approx(1.25)
    assert model.observe({"a": 8, "b": 16}, 1.25 * seconds(8, 16)) < 0.01
    model.errors[:] = [math.log(9.0)] * 10
    assert model.safety == MAX_SAFETY
    model.errors[:] = [math.log(0.5)] * 10
    assert model.safety == 1.0


def test_a_model_keeps_what_it_learned_through_plain_data() -> None:
    model = LatencyModel(layers(), DENSE)
    model.observe({"a": 8, "b": 16}, 3e-4)
    again = LatencyModel.from_plain(model.to_plain())
    assert again.predict({"a": 9, "b": 33}) == model.predict({"a": 9, "b": 33})
    assert (again.errors, again.safety) == (model.errors, model.safety)


def test_stages_are_numbered_from_most_to_fewest_positions_and_the_last_is_shared() -> None:
    assert stage_numbers([1024, 1024, 256, 64, 1]).tolist() == [0, 0, 1, 2, 3]
    assert max(stage_numbers(list(range(20, 0, -1)))) == 5
