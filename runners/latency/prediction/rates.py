"""Rates: the seconds of layers on a device on which single layers cannot be timed, from what it takes for networks.

A layer multiplies, reads weights and moves elements, which its shape tells (`kernels.Work`). A device takes so long for
each of these; its rates, none of them negative, are those that explain the networks measured on it best. Nothing that
was timed on another device is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runners.latency.prediction.kernels import Work
from runners.latency.prediction.layer_timing import TERMS
from runners.latency.prediction.model import Layers, Readings

Floats = NDArray[np.float64]
LINEAR, CONSTANT = 1, 0  # indices of the terms of `layer_timing.basis`


@dataclass(frozen=True)
class Rates:
    """Makes layers of rates that fit readings.

    Attributes:
        layers: of the network; their coefficients are not used.
        terms: amounts of every kind of work as coefficients of `layers`, shape (kinds of work, kernels, terms, terms).
    """

    layers: Layers
    terms: Floats

    def fit(self, step: int, readings: Readings) -> Layers:
        """Return the layers whose seconds come closest to the readings, by relative errors, with steps of channels."""
        from scipy.optimize import nnls  # as in `layer_timing`

        widths = np.array([row for row, _ in readings], dtype=np.float64)
        seconds = np.array([second for _, second in readings])
        stepped = [replace(self.layers, coefficients=term, step=step) for term in self.terms]
        amounts = np.stack([layers.stages(widths).sum(axis=1) for layers in stepped], axis=1)
        scale = np.maximum(amounts.max(axis=0), 1e-12)
        rates = nnls((amounts / scale) / seconds[:, None], np.ones(len(seconds)))[0] / scale
        return replace(self.layers, coefficients=np.tensordot(rates, self.terms, axes=1), step=step)


def work_terms(works: Sequence[Work]) -> Floats:
    """Return the amounts of work as coefficients of layers, shape (kinds of work, kernels, TERMS, TERMS).

    The kinds are calls; products and weights of plain layers; the same of depthwise ones; elements read and written.
    """
    terms = np.zeros((6, len(works), TERMS, TERMS))
    for index, work in enumerate(works):
        terms[0, index, CONSTANT, CONSTANT] = 1.0
        kind, term = (3, (LINEAR, CONSTANT)) if work.depthwise else (1, (LINEAR, LINEAR))
        terms[(kind, index, *term)], terms[(kind + 1, index, *term)] = work.products, work.weights
        terms[5, index, LINEAR, CONSTANT] = work.inputs
        terms[5, index, CONSTANT, LINEAR] = work.outputs
    return terms
