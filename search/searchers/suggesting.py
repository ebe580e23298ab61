"""How a sampler is asked for a parameter."""

from collections.abc import Sequence
from typing import Any, Protocol

from pruning.settings import Setting


class Suggest(Protocol):
    """What chooses the parameters (an Optuna trial)."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number between both bounds, included."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose a whole number between both bounds, included."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of the choices."""
        ...


def suggest_setting(suggest: Suggest, name: str, each: Setting) -> Any:
    """Let a searchable setting be chosen, under that name: one of its choices, or a number within its bounds."""
    if each.choices:
        return suggest.suggest_categorical(name, each.choices)
    low, high = each.low or 0, each.high or 0
    if isinstance(each.default, int):
        return suggest.suggest_int(name, int(low), int(high), log=each.log)
    return suggest.suggest_float(name, float(low), float(high), log=each.log)
