"""Fine-tuning settings that are searched: `--search-training lr,distill-weight,epochs=1:4`."""

from collections.abc import Callable

from configs.schema import ConfigError
from pruning.settings import Setting
from runners.base import TrainConfig

NAMES = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "distill_weight": "distill_weight",
    "epochs": "epochs",
}
LR_SPREAD = 4.0  # times and divided by: a fine-tuning rate is off by less when it was set with any care
MOST_DISTILLED = 0.9  # what is left of the labels at the end of the default range
_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("above 0 and finite", lambda v: 0 < v < float("inf")),
    "distill_weight": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "epochs": ("whole numbers from 1", lambda v: v >= 1 and float(v).is_integer()),
}


def parse_search_training(text: str, train: TrainConfig) -> tuple[Setting, ...]:
    """Read which fine-tuning settings are searched, each a field of `TrainConfig` with its range.

    Args:
        text: names of flags, each with a range NAME=LOW:HIGH of its own or without one. Then a learning rate goes from
            a quarter to four times the set one, a distillation weight from 0 to 0.9, epochs from 1 to those set.
        train: gives the set values, which the control arm keeps; the defaults of the settings are the nearest in range.

    Raises:
        ConfigError: an unknown or repeated name, a range that is none or in which there is nothing to search.
    """
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if text.strip() and not pieces:
        raise ConfigError(f"--search-training {text!r} names no setting; known: lr, distill-weight, epochs")
    found = tuple(_parse_one(piece, train) for piece in pieces)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--search-training {text!r} names {name.replace('_', '-')} twice; keep one")
    return found


def searches_epochs(text: str) -> bool:
    """Whether every trial has epochs of its own."""
    return any(_field(piece.partition("=")[0]) == "epochs" for piece in text.split(","))


def _field(given: str) -> str | None:
    return NAMES.get(given.strip().removeprefix("--").replace("-", "_"))


def _parse_one(piece: str, train: TrainConfig) -> Setting:
    given, equals, span = piece.partition("=")
    name = _field(given)
    if name is None:
        raise ConfigError(f"--search-training knows no {given.strip()!r}; known: lr, distill-weight, epochs")
    low, high = _parse_span(piece, name, span) if equals else _default_span(name, train)
    if low >= high:
        way = (
            "raise --epochs or give a range" if name == "epochs" and not equals else "give LOW:HIGH with LOW below HIGH"
        )
        raise ConfigError(f"--search-training {piece} has nothing to search from {low:g} to {high:g}; {way}")
    kind = int if name == "epochs" else float
    default = kind(min(max(getattr(train, name), low), high))
    return Setting(name, default, kind(low), kind(high), log=name != "distill_weight")


def _default_span(name: str, train: TrainConfig) -> tuple[float, float]:
    if name == "learning_rate":
        return train.learning_rate / LR_SPREAD, train.learning_rate * LR_SPREAD
    return (0.0, MOST_DISTILLED) if name == "distill_weight" else (1, train.epochs)


def _parse_span(piece: str, name: str, span: str) -> tuple[float, float]:
    left, colon, right = span.partition(":")
    try:
        low, high = float(left), float(right)
    except ValueError:
        raise ConfigError(
            f"--search-training {piece} is not NAME=LOW:HIGH, as in lr=0.002:0.05 or epochs=1:4"
        ) from None
    rule, holds = _RULES[name]
    if not (colon and holds(low) and holds(high)):
        raise ConfigError(f"--search-training {piece} goes from {left} to {right}, and both must be {rule}")
    return low, high
