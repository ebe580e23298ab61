"""The text of `--search-training`: which fine-tuning settings are searched, and in which ranges."""

from collections.abc import Callable

from pruning.settings import Setting
from runners.config import TrainConfig
from spaces.errors import ConfigError
from spaces.fields import LEAST_FLOAT, MOST, MOST_FLOAT, parse_float

_SEARCHABLE_NAMES = "lr, distill-weight, epochs"
_Range = tuple[float, float]
# Name -> type, rule in words, rule, range without a given one.
_SEARCHABLE: dict[str, tuple[type, str, Callable[[float], bool], Callable[[TrainConfig], _Range]]] = {
    # A fine-tuning rate that was set with any care is off by less than a factor of four.
    "lr": (
        float,
        "from 1e-9 to 1e9",
        lambda rate: LEAST_FLOAT <= rate <= MOST_FLOAT,
        lambda train: (train.lr / 4, train.lr * 4),
    ),
    # At 0.9 the labels still count.
    "distill_weight": (float, "in [0, 1]", lambda weight: 0 <= weight <= 1, lambda _train: (0, 0.9)),
    "epochs": (int, "whole numbers from 1", lambda n: 1 <= n <= MOST and n % 1 == 0, lambda train: (1, train.epochs)),
}


def parse_search_training(text: str, train: TrainConfig) -> tuple[Setting, ...]:
    """Read which fine-tuning settings are searched, each a field of `TrainConfig` with its range.

    Args:
        text: comma-separated flag names, each with a range NAME=LOW:HIGH or without. Without one a learning rate goes
            from a quarter to four times the set rate, a distillation weight from 0 to 0.9, epochs from 1 to those set.
        train: gives the set values, which baselines keep. The default of a setting is the set value, moved into
            the range where it lies outside.

    Raises:
        ConfigError: an unknown or repeated name, a text that is no range, or a range with nothing to search.
    """
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if text.strip() and not pieces:
        raise ConfigError(f"--search-training {text!r} names no setting; known: {_SEARCHABLE_NAMES}")
    settings = tuple(_searched_setting(piece, train) for piece in pieces)
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--search-training {text!r} names {name.replace('_', '-')} twice; keep one")
    return settings


def _searched_setting(piece: str, train: TrainConfig) -> Setting:
    given, has_range, text = piece.partition("=")
    name = given.strip().removeprefix("--").replace("-", "_")
    if name not in _SEARCHABLE:
        raise ConfigError(f"--search-training knows no {given.strip()!r}; known: {_SEARCHABLE_NAMES}")
    kind, rule, holds, default_range = _SEARCHABLE[name]
    low, high = _parse_range(piece, text) if has_range else default_range(train)
    if has_range and not (holds(low) and holds(high)):
        raise ConfigError(f"--search-training {piece} goes from {low:g} to {high:g}, and both must be {rule}")
    if low >= high:
        needs_epochs = name == "epochs" and not has_range
        way_out = "raise --epochs or give a range" if needs_epochs else "give LOW:HIGH with LOW below HIGH"
        raise ConfigError(f"--search-training {piece} has nothing to search from {low:g} to {high:g}; {way_out}")
    default = kind(min(max(getattr(train, name), low), high))
    return Setting(name, default, kind(low), kind(high), log=name != "distill_weight")


def _parse_range(piece: str, text: str) -> _Range:
    low, _, high = text.partition(":")
    try:
        return parse_float(low), parse_float(high)
    except ValueError:
        way_out = "as in lr=0.002:0.05 or epochs=1:4"
        raise ConfigError(f"--search-training {piece} is not NAME=LOW:HIGH, {way_out}") from None
