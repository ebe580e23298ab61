"""The exact cost of a candidate: an integer polynomial in the widths, evaluated without building a network.

FLOPs follow fvcore: a multiply-add is one FLOP, and normalisation and adaptive pooling cost what fvcore counts.
Every counted operation costs `coefficient * form * form / divisor`, where a form is an affine function of the
widths (the length of one axis), so the total is a quadratic polynomial. Parameters and the bytes of a file are
polynomials too. The peak of the activations is the largest of several linear forms, one for each step of a forward
pass: the bytes of the tensors that are live then.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT64_EXACT = 2**53  # integers up to here survive float64 arithmetic, so BLAS may be used
QUANTITIES = ("flops", "params", "activations", "size")  # of a `Cost`, which budgets limit without a measurement


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        flops: for one image.
        params: number of parameters.
        activations: bytes of the tensors that are live at once for one image, at most (`spaces.counting`); None where
            it is not known.
        size: bytes of the network's file; None where it is not known. A cost model gives an upper bound, so costs that
            differ in it alone are equal.
    """

    flops: int
    params: int
    activations: int | None = None
    size: int | None = field(default=None, compare=False)

    def agrees(self, other: "Cost") -> bool:
        """Tell whether FLOPs, parameters and, where both are known, activations are the same."""
        peaks = {self.activations, other.activations} - {None}
        return (self.flops, self.params) == (other.flops, other.params) and len(peaks) < 2


@dataclass(frozen=True)
class Form:
    """The length of an axis: `constant + sum(coefficient * width of the group with that index)`."""

    constant: Fraction | int
    # (group index, channels of the axis per channel of the group; a part of a split axis has a share of them)
    coefficients: tuple[tuple[int, Fraction | int], ...] = ()

    def terms(self) -> list[tuple[int, Fraction | int]]:
        """List (variable, coefficient) pairs: variable 0 is the constant 1, variable i + 1 the width of group i."""
        constant: list[tuple[int, Fraction | int]] = [(0, self.constant)] if self.constant else []
        return constant + [(index + 1, coefficient) for index, coefficient in self.coefficients]

    def times(self, factor: Fraction) -> "Form":
        """Return the form multiplied by a factor."""
        return Form(factor * self.constant, tuple((index, factor * value) for index, value in self.coefficients))

    @classmethod
    def sum(cls, forms: "Iterable[Form]") -> "Form":
        """Return the sum of forms."""
        constant, totals = Fraction(0), defaultdict[int, Fraction](Fraction)
        for form in forms:
            constant += form.constant
            for index, value in form.coefficients:
                totals[index] += value
        return cls(constant, tuple(totals.items()))


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
        lift = _lift(len(self.matrix), fixed)
        square = lift.T @ self.matrix @ lift
        return Polynomial(np.triu(square) + np.tril(square, -1).T, self.denominator)

    def plus(self, constant: int) -> "Polynomial":
        """Return the polynomial with a constant added."""
        matrix = self.matrix.copy()
        matrix[0, 0] += constant * self.denominator
        return Polynomial(matrix, self.denominator)


class Peak:
    """`max(M x) / denominator` with x = (1, widths...): the largest of several linear forms, evaluated exactly.

    Args:
        matrix: whole numbers, at least 0, shape (forms, groups + 1). Forms that others are never below are dropped.
        denominator: divides every form without remainder at all legal widths.
    """

    def __init__(self, matrix: NDArray[Any], denominator: int) -> None:
        self.matrix = _undominated(matrix)
        self.denominator = denominator
        self._matrix_float64: NDArray[np.float64] = self.matrix.astype(np.float64)

    @classmethod
    def of(cls, forms: Sequence[Form], groups: int) -> "Peak":
        """Return the largest of these forms, at least one, in a space of `groups` groups."""
        terms = [[(variable, Fraction(value)) for variable, value in form.terms()] for form in forms]
        denominator = lcm(*(value.denominator for row in terms for _, value in row))
        matrix: NDArray[Any] = np.zeros((len(terms), groups + 1), dtype=object)
        for row, values in zip(matrix, terms, strict=True):
            for variable, value in values:
                row[variable] += int(value * denominator)
        return cls(matrix, denominator)

    def fits_float64(self, full: NDArray[np.float64]) -> bool:
        """Tell whether float64 computes every value exactly for widths up to `full`, shape (groups + 1,), leading 1."""
        return bool((self.matrix @ np.array([int(v) for v in full], dtype=object)).max() < FLOAT64_EXACT)

    def __call__(self, x: NDArray[Any], exact: bool) -> Any:
        """Evaluate one vector or n vectors, as `Polynomial` does."""
        largest = (x @ (self._matrix_float64 if exact else self.matrix).T).max(axis=-1)
        return int(largest) // self.denominator if x.ndim == 1 else largest.astype(np.int64) // self.denominator

    def slopes(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivatives of the form that is largest, shape (n, groups), at the n vectors of x."""
        return np.asarray(self._matrix_float64[np.argmax(x @ self._matrix_float64.T, axis=1), 1:] / self.denominator)

    def substitute(self, fixed: Mapping[int, int]) -> "Peak":
        """Return the peak with fixed widths for some groups, as `Polynomial` does."""
        return Peak(self.matrix @ _lift(self.matrix.shape[1], fixed), self.denominator)


def _undominated(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the rows, each once, that no other row equals or exceeds in every column."""
    kept: list[NDArray[Any]] = []
    for row in sorted(matrix, key=lambda row: -row.sum()):
        if not any((other >= row).all() for other in kept):
            kept.append(row)
    return np.stack(kept)


def _lift(size: int, fixed: Mapping[int, int]) -> NDArray[Any]:
    """Return the matrix from the vector (1, widths of the groups that stay) to the vector of `size` with all groups."""
    kept = [0] + [i for i in range(1, size) if i - 1 not in fixed]
    lift: NDArray[Any] = np.zeros((size, len(kept)), dtype=object)
    for column, i in enumerate(kept):
        lift[i, column] = 1
    for index, width in fixed.items():
        lift[index + 1, 0] = width
    return lift


class CostModel:
    """The quantities of a `Cost` as functions of the widths of `names`, in that order.

    Args:
        names: group names, in the order of every width vector.
        full: dense width of each group.
        quantities: names of QUANTITIES, "flops" and "params" at least, with their functions.
        stored: bytes of all tensors of the network; None where they are not known.
    """

    def __init__(
        self,
        names: Sequence[str],
        full: Sequence[int],
        quantities: "Mapping[str, Polynomial | Peak]",
        stored: Polynomial | None = None,
    ) -> None:
        self.names = tuple(names)
        self.full = tuple(int(width) for width in full)
        self.quantities = dict(quantities)
        self.stored = stored
        dense = np.array([1, *self.full], dtype=np.float64)
        self._exact = all(function.fits_float64(dense) for function in self.quantities.values())
        self._dtype: Any = np.float64 if self._exact else object

    def __call__(self, widths: Mapping[str, int]) -> Cost:
        """Return the cost of one candidate; a group that `widths` does not name has its dense width."""
        get = widths.get
        vector = [1, *[get(name, full) for name, full in zip(self.names, self.full, strict=True)]]
        x = np.array(vector, dtype=self._dtype)
        return Cost(**{name: function(x, self._exact) for name, function in self.quantities.items()})

    def batch(
        self, widths: NDArray[Any], quantities: Sequence[str] = ("flops", "params")
    ) -> tuple[NDArray[np.int64], ...]:
        """Return each of the quantities, shape (n,), of n width vectors, shape (n, groups)."""
        x = np.ones((len(widths), len(self.names) + 1), dtype=self._dtype)
        x[:, 1:] = widths
        return tuple(self.quantities[name](x, self._exact) for name in quantities)

    def slopes(
        self, widths: NDArray[np.float64], quantities: Sequence[str] = ("flops", "params")
    ) -> tuple[NDArray[np.float64], ...]:
        """Return each of the quantities per additional channel, shape (n, groups), at n width vectors."""
        x = np.ones((len(widths), len(self.names) + 1))
        x[:, 1:] = widths
        return tuple(self.quantities[name].slopes(x) for name in quantities)

    def with_file(self, overhead: int) -> "CostModel":
        """Return the model that knows the size of a file with this many bytes beside those of the tensors."""
        if self.stored is None:
            raise ValueError("the bytes of the tensors are not known to this cost model")
        quantities = {**self.quantities, "size": self.stored.plus(overhead)}
        return CostModel(self.names, self.full, quantities, self.stored)

    def without(self, quantity: str) -> "CostModel":
        """Return the model that does not know a quantity."""
        kept = {name: function for name, function in self.quantities.items() if name != quantity}
        return CostModel(self.names, self.full, kept, self.stored)

    def fix(self, widths: Mapping[str, int]) -> "CostModel":
        """Return the model over the remaining groups when the groups of `widths` have these widths for good."""
        fixed = {self.names.index(name): width for name, width in widths.items()}
        kept = [i for i in range(len(self.names)) if i not in fixed]
        functions = {name: function.substitute(fixed) for name, function in self.quantities.items()}
        stored = None if self.stored is None else self.stored.substitute(fixed)
        return CostModel([self.names[i] for i in kept], [self.full[i] for i in kept], functions, stored)
