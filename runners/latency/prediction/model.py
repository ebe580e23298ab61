"""Predict the latency of a net of given widths from its layers and from measured nets; it takes microseconds.

The prediction is the sum of the seconds of the layers (timed alone by `layer_timing`, or by the `rates` of a device)
times a correction that is learned from whole nets. The log of the correction (measured over summed seconds) is linear
in the shares of the net's stages and quadratic in the log of the sum, since caches hold the weights of small nets and
not those of large ones; its weights come from Bayesian linear regression. Whole nets are measured when the model is
built, and the model also learns from every net that a search measures.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.latency.prediction.blocked import blocked_basis
from runners.latency.prediction.layer_timing import basis

MAX_STAGES = 6  # whose shares the correction uses
PRIOR_STDS = (0.7, 0.3, 0.1, 0.5)  # of the correction's constant, slope and curvature in log seconds, stage's weights
NOISE_STD = 0.03  # of a measured net, in log seconds
ERROR_SHARE = 0.25  # of a prediction's error, taken as the noise's standard deviation where it is larger than NOISE_STD
UPPER_QUANTILE = 0.9  # of the errors, which the safety factor covers
MAX_SAFETY = 1.5
RECENT = 40  # errors that determine the safety factor

Floats = NDArray[np.float64]
Readings = Sequence[tuple[Sequence[int], float]]  # (widths, seconds) of whole nets


@dataclass(frozen=True)
class ModelError:
    """Errors of predictions for nets that were measured and that the model had not learned from.

    Attributes:
        median: median relative error; upper: its 90% quantile.
        nets: number of nets.
    """

    median: float
    upper: float
    nets: int

    @classmethod
    def of(cls, errors: Sequence[float]) -> "ModelError":
        """Summarise at least one error; an error is the log of measured over predicted seconds."""
        relative = np.abs(np.expm1(-np.array(errors)))
        return cls(float(np.median(relative)), float(np.quantile(relative, UPPER_QUANTILE)), len(relative))


@dataclass(frozen=True)
class Layers:
    """Seconds of the layers at given widths, before any correction.

    Attributes:
        names: groups, in the order of every width vector.
        kernel: index of each operation's kernel in `coefficients`, shape (operations,).
        in_channels, out_channels: rows (constant, share of each group), shape (operations, 1 + groups).
        coefficients: see `layer_timing.fit_coefficients`, shape (kernels, TERMS, TERMS).
        stage: index of each operation's stage, shape (operations,).
        step: the device takes as long as for the next multiple of so many channels, whatever single layers take here.
        block: channels of a block in a runtime that convolves blocks, whose coefficients are those of `blocked`, shape
            (kernels, blocked.TERMS, blocked.TERMS); 0 for another.
    """

    names: tuple[str, ...]
    kernel: NDArray[np.int64]
    in_channels: Floats
    out_channels: Floats
    coefficients: Floats
    stage: NDArray[np.int64]
    step: int = 1
    block: int = 0

    def stages(self, widths: Floats) -> Floats:
        """Return the seconds of each stage, shape (n, stages), at widths of shape (n, groups)."""
        x = np.concatenate([np.ones((len(widths), 1)), widths], axis=1)
        inputs, outputs = (self._terms(self._stepped(x @ rows.T)) for rows in (self.in_channels, self.out_channels))
        seconds = ((inputs[:, :, None, :] @ self._operation_coefficients)[:, :, 0, :] * outputs).sum(axis=2)
        return np.asarray(seconds @ self._stage_membership)

    def _terms(self, channels: Floats) -> Floats:
        return blocked_basis(channels, self.block) if self.block else basis(channels)

    def _stepped(self, channels: Floats) -> Floats:
        return channels if self.step == 1 else self.step * np.ceil(channels / self.step - 1e-9)

    @cached_property
    def _operation_coefficients(self) -> Floats:
        return np.asarray(self.coefficients[self.kernel])

    @cached_property
    def _stage_membership(self) -> Floats:
        return np.asarray(np.eye(int(self.stage.max(initial=0)) + 1)[self.stage])

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Layers":
        """Return the layers that `to_plain` has turned into plain data."""
        return cls(
            names=tuple(data["names"]),
            kernel=np.array(data["kernel"], dtype=np.int64),
            in_channels=np.array(data["in_channels"], dtype=np.float64),
            out_channels=np.array(data["out_channels"], dtype=np.float64),
            coefficients=np.array(data["coefficients"], dtype=np.float64),
            stage=np.array(data["stage"], dtype=np.int64),
            step=int(data["step"]),
            block=int(data["block"]),
        )


class LatencyModel:
    """Predicts latency from widths and learns from measured nets.

    Args:
        layers: their seconds as functions of widths.
        dense: widths of the dense net, in the order of `layers.names`.
        learned: (widths, seconds) of nets measured before.
        errors: log of measured over predicted seconds of nets, from before the model had learned from them.
    """

    def __init__(
        self,
        layers: Layers,
        dense: Sequence[int],
        learned: Sequence[tuple[Sequence[int], float]] = (),
        errors: Sequence[float] = (),
    ) -> None:
        self.layers, self.dense = layers, tuple(dense)
        self.learned: list[tuple[Sequence[int], float]] = []
        self.errors = list(errors)
        stages = layers.stages(np.array([self.dense], dtype=np.float64))[0]
        self._dense_seconds = max(float(stages.sum()), 1e-12)
        self._dense_shares = stages / self._dense_seconds
        *of_sum, share = PRIOR_STDS
        deviations = np.array([*of_sum, *[share] * len(stages)])
        self._precision = np.diag(deviations**-2)
        self._moment = np.zeros(len(deviations))
        self._weights = self._moment
        for widths, seconds in learned:
            self._learn(widths, seconds)

    def predict(self, widths: Mapping[str, int]) -> float:
        """Return the seconds of one inference; a group that `widths` does not name has its dense width."""
        return float(self.predict_vectors(np.array([self._vector(widths)]))[0])

    def predict_vectors(self, widths: NDArray[Any]) -> Floats:
        """Return seconds, shape (n,), of n width vectors of shape (n, groups) in the order of `layers.names`."""
        seconds, features = self._features(np.asarray(widths, dtype=np.float64))
        return np.asarray(seconds * np.exp(features @ self._weights))

    def observe(self, widths: Mapping[str, int], seconds: float) -> float:
        """Learn from a measured net; return the relative error of the prediction before it."""
        error = math.log(seconds / self.predict(widths))
        self.errors.append(error)
        self._learn(self._vector(widths), seconds)
        return abs(math.expm1(-error))

    @property
    def error(self) -> ModelError | None:
        """Errors of the predictions; None before the first measured net."""
        return ModelError.of(self.errors) if self.errors else None

    @property
    def safety(self) -> float:
        """Factor in [1, 1.5] by which a prediction exceeds about 90% of the measurements, from the recent errors."""
        if not self.errors:
            return 1.0 + NOISE_STD
        return float(np.clip(np.exp(np.quantile(self.errors[-RECENT:], UPPER_QUANTILE)), 1.0, MAX_SAFETY))

    def to_plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        learned = [[list(map(int, widths)), seconds] for widths, seconds in self.learned]
        return {
            "layers": self.layers.to_plain(),
            "dense": list(self.dense),
            "learned": learned,
            "errors": self.errors,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "LatencyModel":
        """Return the model that `to_plain` has turned into plain data."""
        learned = [(tuple(widths), seconds) for widths, seconds in data["learned"]]
        return cls(Layers.from_plain(data["layers"]), data["dense"], learned, data["errors"])

    def _vector(self, widths: Mapping[str, int]) -> list[int]:
        return [widths.get(name, full) for name, full in zip(self.layers.names, self.dense, strict=True)]

    def _learn(self, widths: Sequence[int], seconds: float) -> None:
        predicted, features = self._features(np.array([widths], dtype=np.float64))
        correction = math.log(seconds / predicted[0])
        # A net with a large error weighs less, so that a single odd net does not spoil all predictions.
        noise = max(NOISE_STD, ERROR_SHARE * abs(correction - float(features[0] @ self._weights)))
        self._precision = self._precision + features.T @ features / noise**2
        self._moment = self._moment + features[0] * correction / noise**2
        self._weights = np.asarray(np.linalg.solve(self._precision, self._moment))
        self.learned.append((tuple(widths), seconds))

    def _features(self, widths: Floats) -> tuple[Floats, Floats]:
        """Return the sums over layers, shape (n,), and the features of the correction, shape (n, 3 + stages)."""
        stages = self.layers.stages(widths)
        seconds = np.maximum(stages.sum(axis=1), 1e-12)
        shares = stages / seconds[:, None] - self._dense_shares
        size = np.log(seconds / self._dense_seconds)
        return seconds, np.concatenate([np.stack([np.ones_like(size), size, size**2], axis=1), shares], axis=1)


def left_out_errors(make: Callable[[Readings], Layers], dense: Sequence[int], readings: Readings) -> list[float]:
    """Return, for each measured net, the log of measured over predicted seconds by a model of all the others.

    Args:
        make: makes the layers of readings, where these determine them.
    """
    errors = []
    for index, (widths, seconds) in enumerate(readings):
        others = [*readings[:index], *readings[index + 1 :]]
        model = LatencyModel(make(others), dense, others)
        errors.append(math.log(seconds / float(model.predict_vectors(np.array([widths]))[0])))
    return errors


def stage_numbers(positions: Sequence[int]) -> NDArray[np.int64]:
    """Return the stage index of each operation, shape (operations,).

    Stages are numbered by falling number of spatial positions; all beyond MAX_STAGES share the last one.
    """
    order = sorted(set(positions), reverse=True)
    return np.array([min(order.index(count), MAX_STAGES - 1) for count in positions], dtype=np.int64)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
