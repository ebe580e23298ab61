"""Budget: a hard upper limit as users write it: `0.5gflops`, `1.2mparams`, `512kb-activations`, `2mb`, `8ms`, `50%`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from spaces.cost import Cost
from spaces.errors import BudgetError

# A multiply-add is one FLOP here, as in fvcore, so gmacs and gflops are the same count.
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_QUANTITIES = {
    "flops": "flops",
    "flop": "flops",
    "macs": "flops",
    "mac": "flops",
    "params": "params",
    "param": "params",
}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_IN_BYTES = {"": "size", "size": "size", "activations": "activations"}
_UNITS = {"activations": "bytes of activations", "size": "bytes on disk"}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FORM = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf)) *"  # number
    r"(?:(%)(?:-(?=[a-z]))?)?([a-z]*(?:-(?:activations|size))?)",  # percent sign, unit
    re.ASCII,
)
_BYTES_FORM = re.compile(r"([kmg]i?b|b)-?(activations|size)?", re.ASCII)
_LARGEST = Decimal(10) ** 24  # FLOPs or parameters, and far more than any network has
_SHARES = {"": "flops", "latency": "latency", "activations": "activations", "size": "size", **_QUANTITIES}
_EXAMPLES = (
    "0.5gflops, 500mflops, 0.5gmacs, 1.2mparams, 512kb-activations, 2mb (of the file), 8ms, 50% (of the dense FLOPs), "
    "20%params or 50%latency"
)


@dataclass(frozen=True)
class Budget:
    """A hard upper limit on one quantity.

    Attributes:
        quantity: "flops", "params", "activations", "size" or "latency".
        limit: FLOPs, parameters or bytes (a whole number), or latency in seconds.
        relative: whether the limit is a share of the dense network's quantity; `resolve` makes it absolute.
    """

    quantity: str
    limit: int | float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget.

        Raises:
            BudgetError: the text is no number with a known unit, or the limit is not positive and finite, as a count up
                to 10^24, or as a float.
        """
        match = _FORM.fullmatch(text.strip().lower())
        if match is None:
            raise BudgetError(f"budget {text!r} is not a number with a unit; write {_EXAMPLES}")
        value, share, unit = _number(match[1]), match[2], match[3]
        if not (value.is_finite() and 0 < float(value) < math.inf):
            raise BudgetError(f"budget {text!r} must be a positive finite number; write {_EXAMPLES}")
        if share:
            return _share(text, value, unit)
        if unit in _SECONDS:
            return cls("latency", float(value) * _SECONDS[unit])
        quantity, scale = _counted_unit(unit)
        if quantity is None or not scale:
            raise BudgetError(f"budget {text!r} has no known unit; write {_EXAMPLES}")
        if value * scale > _LARGEST:
            raise BudgetError(f"budget {text!r} is more {quantity} than any network has; write {_EXAMPLES}")
        limit = math.floor(value * scale)
        if limit < 1:
            raise BudgetError(f"budget {text!r} is less than one of {quantity}; write {_EXAMPLES}")
        return cls(quantity, limit)

    @property
    def unit(self) -> str:
        """What the limit counts, in words: "flops", "bytes on disk"."""
        return _UNITS.get(self.quantity, self.quantity)

    def resolve(self, dense: Cost) -> "Budget":
        """Return the absolute budget for a network with this dense cost; a share of its latency stays one.

        Raises:
            BudgetError: a share of a quantity that is not known of the dense network.
        """
        if not self.relative or self.quantity == "latency":
            return self
        amount = getattr(dense, self.quantity)
        if amount is None:
            raise BudgetError(f"budget {self} is a share of the {self.unit} of the dense network, which are not known")
        return Budget(self.quantity, math.floor(self.limit * amount + 1e-6))

    def resolve_latency(self, dense_seconds: float) -> "Budget":
        """Return the absolute budget for a dense network of this latency; one on another quantity stays as it is."""
        if not self.relative or self.quantity != "latency":
            return self
        return Budget(self.quantity, self.limit * dense_seconds)

    def allows(self, cost: Cost) -> bool:
        """Tell whether a cost meets this budget, which must be absolute; a cost that is not known does not.

        Raises:
            BudgetError: the budget is relative, or limits latency, which a `Cost` does not hold.
        """
        if self.relative or self.quantity == "latency":
            raise BudgetError(f"budget {self} cannot be compared with a counted cost")
        amount = getattr(cost, self.quantity)
        return amount is not None and bool(amount <= self.limit)

    def __str__(self) -> str:
        """Write the budget so that `parse` reads an equal one."""
        if self.relative:
            return f"{self.limit * 100:.15g}%" + ("" if self.quantity == "flops" else self.quantity)
        if self.quantity == "latency":
            return f"{self.limit * 1e3:.15g}ms"
        scale = next(s for s in ("g", "m", "k", "") if self.limit >= _SCALES[s])
        unit = {"size": "b", "activations": "b-activations"}.get(self.quantity, self.quantity)
        return f"{(Decimal(int(self.limit)) / _SCALES[scale]).normalize():f}{scale}{unit}"


def _counted_unit(unit: str) -> tuple[str | None, int]:
    """Return the quantity of a unit such as gflops or kb-activations, None for no unit, and what one of it counts."""
    if unit in _QUANTITIES:
        return _QUANTITIES[unit], 1
    if (match := _BYTES_FORM.fullmatch(unit)) is not None:
        return _IN_BYTES[match[2] or ""], _BYTES[match[1]]
    return _QUANTITIES.get(unit[1:]), _SCALES.get(unit[:1], 0)


def _share(text: str, percent: Decimal, quantity: str) -> Budget:
    """Return the budget of a share of the dense network, written as `text`."""
    if quantity not in _SHARES:
        raise BudgetError(f"budget {text!r} is a share of no known quantity; write {_EXAMPLES}")
    if percent > 100:
        raise BudgetError(f"budget {text!r} is above the dense network; give at most 100%{quantity}")
    return Budget(_SHARES[quantity], float(percent / 100), relative=True)


def _number(text: str) -> Decimal:
    """Return the number that a text stands for; NaN where its exponent is beyond that of any `Decimal`."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("nan")


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read the budgets of a search; a network must meet all of them.

    Raises:
        BudgetError: there is no budget at all, or two of them limit one quantity.
    """
    budgets = tuple(Budget.parse(text) for text in texts)
    if not budgets:
        raise BudgetError(f"no budget given; write --budget with {_EXAMPLES}")
    quantities = [budget.quantity for budget in budgets]
    for quantity in set(quantities):
        if quantities.count(quantity) > 1:
            named = " and ".join(str(b) for b in budgets if b.quantity == quantity)
            raise BudgetError(f"budgets {named} both limit {quantity}; keep the one that must hold")
    return budgets
