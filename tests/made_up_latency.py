"""Made-up latency of the chain of layers that the tests of `search` have: a model, readings, and a predictor."""

import dataclasses

import numpy as np
from typing_extensions import override

from runners.latency.meter import Conditions, Reading
from runners.latency.prediction.layer_timing import TERMS
from runners.latency.prediction.model import LatencyModel, Layers
from runners.trial import TrialResult
from search.latency.predictor import LatencyPredictor
from search.problem import Problem
from search.storage.checkpoints import CheckpointStore
from spaces.space import SearchSpace

CONDITIONS = Conditions("cpu:1thread", "Made-up 3000", 1, 1, "float32", False, "eager", {"torch": "2.6"})
SECONDS_PER_PRODUCT = 1e-6  # 2.56 ms for the dense net of 16, 32 and 64 channels


def model(space: SearchSpace, factor: float = 1.0) -> LatencyModel:
    """Return a model that takes every product of neighbouring channels to cost a microsecond times the factor."""
    names = tuple(group.name for group in space.variable)
    coefficients = np.zeros((1, TERMS, TERMS))
    coefficients[0, 1, 1] = factor * SECONDS_PER_PRODUCT
    read, written = np.zeros((2, 4)), np.zeros((2, 4))
    for layer in range(2):
        read[layer, 1 + layer] = written[layer, 2 + layer] = 1.0
    zeros = np.zeros(2, dtype=np.int64)
    return LatencyModel(Layers(names, zeros, read, written, coefficients, zeros), tuple(space.full.values()))


def predictor(problem: Problem, factor: float = 1.0) -> LatencyPredictor:
    """Return a predictor by such a model."""
    return LatencyPredictor(model(problem.space, factor), problem)


def reading(network: TrialResult, factor: float = 1.0) -> Reading:
    """Return what measuring a network of the chain gives: its parameters are its products."""
    assert network.cost is not None
    seconds = factor * SECONDS_PER_PRODUCT * network.cost.params
    return Reading(network.label, CONDITIONS, "", seconds, 0.99 * seconds, 1.01 * seconds, seconds / 2.56e-3)


def refused(network: TrialResult) -> Reading:
    """Return what a busy machine gives."""
    return Reading(network.label, CONDITIONS, "the machine was busy", tries=4)


class NamedFiles(CheckpointStore):
    """Gives every network a path, as if its weights were on disk; those of a longer training another one."""

    @override
    def keep(self, result: TrialResult) -> TrialResult:
        return result.map_networks(
            lambda network: dataclasses.replace(network, path=f"{network.stem}-e{network.trained}.safetensors")
        )
