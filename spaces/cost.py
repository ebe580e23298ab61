"""The exact cost of a candidate: an integer polynomial in the widths, evaluated without building a network.

FLOPs follow fvcore: a multiply-add is one FLOP, and normalisation and adaptive pooling cost what fvcore counts.
Every counted operation costs `coefficient * form * form / divisor`, where a form is an affine function of the
widths (the length of one axis), so the total is a quadratic polynomial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT64_EXACT = 2**53  # integers up to here survive float64 arithmetic, so BLAS may be used


@dataclass(frozen=True, order=True)
class Cost:
    """FLOPs for one image, and parameters, of a network."""

    flops: int
    params: int


@dataclass(frozen=True)
class Form:
    """The length of an axis: `constant + sum(coefficient * width of the group with that index)`."""

    constant: int
    # (group index, channels of the axis per channel of the group; a part of a split axis has a share of them)
    coefficients: tuple[tuple[int, Fraction | int], ...] = ()

    def terms(self) -> list[tuple[int, Fraction | int]]:
        """List (variable, coefficient) pairs: variable 0 is the constant 1, variable i + 1 the width of group i."""
        constant: list[tuple[int, Fraction | int]] = [(0, self.constant)] if self.constant else []
        return constant + [(index + 1, coefficient) for index, coefficient in self.coefficients]


ONE = Form(1)


class PolynomialBuilder:
    """Collects the terms of one quantity (FLOPs or parameters) for a space of `groups` groups."""

    def __init__(self, groups: int) -> None:
        self._size = groups + 1
        self._terms: dict[tuple[int, int], Fraction] = {}

    def add(self, coefficient: int, left: Form, right: Form = ONE, divisor: int = 1) -> None:
        """Add `coefficient * left * right / divisor`."""
        for i, a in left.terms():
            for j, b in right.terms():
                key = (min(i, j), max(i, j))
                self._terms[key] = self._terms.get(key, Fraction(0)) + Fraction(coefficient * a * b, divisor)

    def build(self) -> "Polynomial":
        """Bring all terms to a common denominator and return the polynomial."""
        denominator = lcm(*(value.denominator for value in self._terms.values())) if self._terms else 1
        matrix: NDArray[Any] = np.zeros((self._size, self._size), dtype=object)
        for (i, j), value in self._terms.items():
            matrix[i, j] = int(value * denominator)
        return Polynomial(matrix, denominator)


class Polynomial:
    """`x' M x / denominator` with x = (1, widths...), evaluated exactly.

    Args:
        matrix: upper triangular, shape (groups + 1, groups + 1), whole numbers.
        denominator: divides the value of the quadratic form without remainder at all legal widths.
    """

    def __init__(self, matrix: NDArray[Any], denominator: int) -> None:
        self.matrix = matrix
        self.denominator = denominator
        self._matrix_float64: NDArray[np.float64] = matrix.astype(np.float64)

    def fits_float64(self, full: NDArray[np.float64]) -> bool:
        """Tell whether float64 computes every value exactly for widths up to `full`, shape (groups + 1,), leading 1."""
        x = np.array([int(v) for v in full], dtype=object)
        return bool(x @ np.abs(self.matrix) @ x < FLOAT64_EXACT)

    def __call__(self, x: NDArray[Any], exact: bool) -> Any:
        """Evaluate one vector, shape (groups + 1,), or n vectors, shape (n, groups + 1).

        Args:
            x: a leading 1, then the widths.
            exact: whether float64 is exact for these widths (see `fits_float64`), so that BLAS may be used.
        """
        matrix = self._matrix_float64 if exact else self.matrix
        if x.ndim == 1:
            return int(x @ matrix @ x) // self.denominator
        values = np.einsum("ij,ij->i", x @ matrix, x) if exact else ((x @ matrix) * x).sum(axis=1)
        return values.astype(np.int64) // self.denominator

    def slopes(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivatives by the widths, shape (n, groups), at the n vectors of x, shape (n, groups + 1)."""
        return np.asarray((x @ (self._matrix_float64 + self._matrix_float64.T))[:, 1:] / self.denominator)

    def substitute(self, fixed: Mapping[int, int]) -> "Polynomial":
        """Return the polynomial with fixed widths for some groups (index -> width); the others keep their order."""
        kept = [0] + [i for i in range(1, len(self.matrix)) if i - 1 not in fixed]
        lift: NDArray[Any] = np.zeros((len(self.matrix), len(kept)), dtype=object)
        for column, i in enumerate(kept):
            lift[i, column] = 1
        for index, width in fixed.items():
            lift[index + 1, 0] = width
        square = lift.T @ self.matrix @ lift
        return Polynomial(np.triu(square) + np.tril(square, -1).T, self.denominator)


class CostModel:
    """FLOPs and parameters as functions of the widths of `names`, in that order.

    Args:
        names: group names, in the order of every width vector.
        full: dense width of each group.
    """

    def __init__(self, names: Sequence[str], full: Sequence[int], flops: Polynomial, params: Polynomial) -> None:
        self.names = tuple(names)
        self.full = tuple(int(width) for width in full)
        self._flops, self._params = flops, params
        dense = np.array([1, *self.full], dtype=np.float64)
        self._exact = flops.fits_float64(dense) and params.fits_float64(dense)
        self._dtype: Any = np.float64 if self._exact else object

    def __call__(self, widths: Mapping[str, int]) -> Cost:
        """Return the cost of one candidate; a group that `widths` does not name has its dense width."""
        get = widths.get
        vector = [1, *[get(name, full) for name, full in zip(self.names, self.full, strict=True)]]
        x = np.array(vector, dtype=self._dtype)
        return Cost(self._flops(x, self._exact), self._params(x, self._exact))

    def batch(self, widths: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return FLOPs and parameters, each of shape (n,), of n width vectors, shape (n, groups)."""
        x = np.ones((len(widths), len(self.names) + 1), dtype=self._dtype)
        x[:, 1:] = widths
        return self._flops(x, self._exact), self._params(x, self._exact)

    def slopes(self, widths: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return FLOPs and parameters per additional channel, each of shape (n, groups), at n width vectors."""
        x = np.ones((len(widths), len(self.names) + 1))
        x[:, 1:] = widths
        return self._flops.slopes(x), self._params.slopes(x)

    def fix(self, widths: Mapping[str, int]) -> "CostModel":
        """Return the model over the remaining groups when the groups of `widths` have these widths for good."""
        fixed = {self.names.index(name): width for name, width in widths.items()}
        kept = [i for i in range(len(self.names)) if i not in fixed]
        return CostModel(
            [self.names[i] for i in kept],
            [self.full[i] for i in kept],
            self._flops.substitute(fixed),
            self._params.substitute(fixed),
        )
