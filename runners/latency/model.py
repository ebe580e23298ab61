"""How long a net of given widths will take, predicted in microseconds from timings of its layers.

The time is the sum of the layers' (`runners.latency.layer_timing`), times a factor that is learned from whole nets: the
log of what they took over what was predicted, linear in the log of the prediction and in the shares of the net's
stages, by Bayesian regression. Whole nets are measured when the model is built, and every net that a search measures
adds to them, so a model that is off comes right.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.latency.layer_timing import basis

STAGES = 6  # whose shares the correction knows at most
DEVIATIONS = (0.7, 0.3, 0.5)  # a priori, of the correction's constant, its slope in log time, each stage's share
NOISE = 0.03  # of a measured net, in log time
SURPRISE = 0.25  # of an error, that is taken to be noise where that is more
UPPER = 0.9  # quantile of the errors that a safety factor covers
MOST_SAFETY = 1.5
RECENT = 40  # errors that the safety factor is taken of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelError:
    """How far predictions were off nets that were measured and not yet learned from.

    Attributes:
        median: relative error; upper: its 90% quantile.
        nets: how many.
    """

    median: float
    upper: float
    nets: int

    @classmethod
    def of(cls, errors: Sequence[float]) -> "ModelError":
        """Sum up errors, at least one, each the log of measured over predicted time."""
        relative = np.abs(np.expm1(-np.array(errors)))
        return cls(float(np.median(relative)), float(np.quantile(relative, UPPER)), len(relative))


@dataclass(frozen=True)
class Layers:
    """The sum over layers, before any correction.

    Attributes:
        names: groups; the order of every width vector.
        kernel: of each operation, index into `coefficients`; shape (operations,).
        read, written: channels as rows (constant, share of each group), shape (operations, 1 + groups).
        coefficients: shape (kernels, TERMS, TERMS), see `layer_timing.fit`.
        stage: of each operation, from 0; shape (operations,).
    """

    names: tuple[str, ...]
    kernel: NDArray[np.int64]
    read: Floats
    written: Floats
    coefficients: Floats
    stage: NDArray[np.int64]

    def stages(self, widths: Floats) -> Floats:
        """Return the seconds of each stage, shape (n, stages), at widths of shape (n, groups)."""
        x = np.concatenate([np.ones((len(widths), 1)), widths], axis=1)
        read, written = basis(x @ self.read.T), basis(x @ self.written.T)
        each = ((read[:, :, None, :] @ self._of_operation)[:, :, 0, :] * written).sum(axis=2)
        return np.asarray(each @ self._in_stage)

    @cached_property
    def _of_operation(self) -> Floats:
        return np.asarray(self.coefficients[self.kernel])

    @cached_property
    def _in_stage(self) -> Floats:
        return np.asarray(np.eye(int(self.stage.max(initial=0)) + 1)[self.stage])

    def to_plain(self) -> dict[str, Any]:
        """Return plain data."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Layers":
        """Read back what `to_plain` gave."""
        kernel, stage = (np.array(data[name], dtype=np.int64) for name in ("kernel", "stage"))
        read, written, times = (np.array(data[name], dtype=np.float64) for name in ("read", "written", "coefficients"))
        return cls(tuple(data["names"]), kernel, read, written, times, stage)


class LatencyModel:
    """Predicts latency from widths, and learns from every net that is measured.

    Args:
        layers: timed.
        dense: widths of the dense net, in the order of `layers.names`.
        learned: (widths, seconds) of nets known already.
        errors: log of measured over predicted time, of nets before they were learned from.
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
        constant, slope, share = DEVIATIONS
        deviations = np.array([constant, slope, *[share] * len(stages)])
        self._precision = np.diag(deviations**-2)
        self._moment = np.zeros(len(deviations))
        self._weights = self._moment
        for widths, seconds in learned:
            self._learn(widths, seconds)

    def predict(self, widths: Mapping[str, int]) -> float:
        """Return the seconds of one inference; a group that `widths` does not name has its dense width."""
        vector = [widths.get(name, full) for name, full in zip(self.layers.names, self.dense, strict=True)]
        return float(self.batch(np.array([vector]))[0])

    def batch(self, widths: NDArray[Any]) -> Floats:
        """Return seconds, shape (n,), of n width vectors of shape (n, groups) in the order of the layers' names."""
        seconds, features = self._features(np.asarray(widths, dtype=np.float64))
        return np.asarray(seconds * np.exp(features @ self._weights))

    def observe(self, widths: Mapping[str, int], seconds: float) -> float:
        """Learn from a measured net; return the relative error that its prediction had."""
        error = math.log(seconds / self.predict(widths))
        self.errors.append(error)
        self._learn([widths.get(name, full) for name, full in zip(self.layers.names, self.dense, strict=True)], seconds)
        return abs(math.expm1(-error))

    @property
    def error(self) -> ModelError | None:
        """How far predictions were off; None before any net could tell."""
        return ModelError.of(self.errors) if self.errors else None

    @property
    def safety(self) -> float:
        """What a prediction is multiplied by to be seldom under what is measured: in [1, 1.5], from recent errors."""
        if not self.errors:
            return 1.0 + NOISE
        return float(np.clip(np.exp(np.quantile(self.errors[-RECENT:], UPPER)), 1.0, MOST_SAFETY))

    def to_plain(self) -> dict[str, Any]:
        """Return plain data."""
        learned = [[list(map(int, widths)), seconds] for widths, seconds in self.learned]
        return {
            "layers": self.layers.to_plain(),
            "dense": list(self.dense),
            "learned": learned,
            "errors": self.errors,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "LatencyModel":
        """Read back what `to_plain` gave."""
        learned = [(tuple(widths), seconds) for widths, seconds in data["learned"]]
        return cls(Layers.from_plain(data["layers"]), data["dense"], learned, data["errors"])

    def _learn(self, widths: Sequence[int], seconds: float) -> None:
        predicted, features = self._features(np.array([widths], dtype=np.float64))
        told = math.log(seconds / predicted[0])
        # What surprises weighs less, so that one net that is slow for its own reasons does not bend all predictions.
        noise = max(NOISE, SURPRISE * abs(told - float(features[0] @ self._weights)))
        self._precision = self._precision + features.T @ features / noise**2
        self._moment = self._moment + features[0] * told / noise**2
        self._weights = np.asarray(np.linalg.solve(self._precision, self._moment))
        self.learned.append((tuple(widths), seconds))

    def _features(self, widths: Floats) -> tuple[Floats, Floats]:
        """Return the sums over layers, shape (n,), and what the correction is linear in, shape (n, 2 + stages)."""
        stages = self.layers.stages(widths)
        seconds = np.maximum(stages.sum(axis=1), 1e-12)
        shares = stages / seconds[:, None] - self._dense_shares
        slope = np.log(seconds / self._dense_seconds)
        return seconds, np.concatenate([np.ones((len(seconds), 1)), slope[:, None], shares], axis=1)


def stage_numbers(positions: Sequence[int]) -> NDArray[np.int64]:
    """Return the stage of each operation, by the positions of the images there; the smallest images share the last."""
    order = sorted(set(positions), reverse=True)
    return np.array([min(order.index(each), STAGES - 1) for each in positions], dtype=np.int64)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else list(value)
