"""Settings that are texts with a meaning of their own, such as `--rungs 1,2,4` and `--time-limit 1h30m`, read here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from pruning.base import EVERY, parse_methods
from spaces.errors import ConfigError
from spaces.fields import MOST, parse_float

AUTO, NONE = "auto", "none"
ALWAYS_SETTABLE = ("l2", "di")  # the methods of the baselines, which every search trains

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?", re.ASCII)

# Between automatic rungs. A training segment starts its schedule again, which costs accuracy where it is short:
# ResNet-20 on cluttered_digits at 8% of its FLOPs has 87.7% after two epochs and 86.9% after two segments of one.
RUNG_RATIO = 3
MIN_TRIALS_FOR_RUNGS = 8  # with fewer trials there is hardly a better half to promote


@dataclass(frozen=True)
class FinalDistillation:
    """Weights of distillation in the final training.

    Attributes:
        first: before any network is finished, from a dense network that has learned its training images.
        untaught: the same, from one that has not.
        later: once a network is finished.
    """

    first: float
    untaught: float
    later: float


# A network rarely becomes more accurate than its teacher. ResNet-20 on glyphs at 50% of its FLOPs, 10 epochs, by labels
# alone / with weight 0.5 / with weight 1: 58.6 / 51.1 / - from a dense network of 37.5% that has 70% of its training
# images right, 61.8 / 61.1 / 58.8 from one of 58.5% that has all of them right; at 20% of its FLOPs from one of 62.6%
# that was trained out 60.7 / 61.7 / 61.8, and in a chain of targets weight 1 has 56.5 at 3%.
AUTO_DISTILLATION = FinalDistillation(first=0.5, untaught=0.0, later=1.0)


def parse_duration(flag: str, text: str) -> float:
    """Return the seconds that a text such as 1h30m stands for: hours, minutes, seconds, in that order, each optional.

    Args:
        flag: named in the error, e.g. "--time-limit".

    Raises:
        ConfigError: another form, a number without a unit, or a time that is not above 0.
    """
    found = _DURATION.fullmatch("".join(text.lower().split()))
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not 0 < seconds < inf:
        raise ConfigError(f"{flag} is {text!r} and must be a time above 0 with its unit, such as 90s, 30m, 1h30m or 2h")
    return seconds


def parse_trial_timeout(text: str) -> float | None:
    """Return the seconds that `--trial-timeout` stands for; infinite for "none", None for "auto".

    Raises:
        ConfigError: another text.
    """
    if text.strip() == AUTO:
        return None
    return inf if text.strip() == NONE else parse_duration("--trial-timeout", text)


def parse_rungs(text: str, epochs: int, trials: int, search_training: str = "") -> tuple[int, ...]:
    """Return the epochs that a trial has been trained at each of its rungs; the last rung is the whole training.

    Args:
        text: "auto" (a third of the epochs, a ninth, and so on while that is an epoch; none under 8 trials), "none", or
            epochs in rising order.
        epochs: of the whole training.
        search_training: the text of `--search-training`; where it has epochs, which every trial then has of its own,
            there are no rungs.

    Returns:
        At least two numbers; none where every trial is trained at once.

    Raises:
        ConfigError: another text, numbers that do not rise from 1, a rung beyond `epochs`, or rungs beside searched
            epochs.
    """
    if "epochs" in search_training:
        if text not in (AUTO, NONE):
            raise ConfigError(
                f"--rungs {text!r} says how long trials train, and --search-training epochs lets the search choose "
                "it; keep one of the two"
            )
        return ()
    if text == NONE or (text == AUTO and trials < MIN_TRIALS_FOR_RUNGS):
        return ()
    if text == AUTO:
        rungs = sorted({epochs // RUNG_RATIO**power for power in range(1, epochs.bit_length())} - {0})
    else:
        rungs = _rising_epochs(text)
    if rungs and rungs[-1] > epochs:
        raise ConfigError(
            f"--rungs {text!r} has a rung after {rungs[-1]} epochs, longer than the training of --epochs {epochs}; "
            "lower that rung or raise --epochs"
        )
    before_last = [rung for rung in rungs if rung < epochs]
    return (*before_last, epochs) if before_last else ()


def _is_whole(text: str) -> bool:
    """Whether a text is a whole number from 0 that a setting may be."""
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and int(text) <= MOST


def _rising_epochs(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    rungs = [int(part) for part in parts if _is_whole(part)]
    if len(rungs) != len(parts) or rungs != sorted(set(rungs)) or rungs[0] < 1:
        raise ConfigError(
            f"--rungs is {text!r} and must be whole epochs from 1 in rising order, as in 1,2,4, or auto or none"
        )
    return rungs


def parse_screen(text: str, epochs: int) -> int | None:
    """Return the size of a screening pool: how many candidates are compared for each that is trained.

    Args:
        text: "auto", "none" or a whole number from 1.
        epochs: of a trial's training.

    Returns:
        1 for no screening; None where the numbers of images and epochs decide.

    Raises:
        ConfigError: another text, or more than one candidate where nothing is trained.
    """
    number = text.strip()
    if number in (AUTO, NONE):
        return None if number == AUTO and epochs else 1
    if not _is_whole(number) or int(number) < 1:
        raise ConfigError(
            f"--screen is {text!r} and must be a whole number from 1, as in 4 (1 trains every candidate), or auto or "
            "none"
        )
    if int(number) > 1 and not epochs:
        raise ConfigError(
            f"--screen {text!r} chooses what is trained, and with --epochs 0 nothing is; raise --epochs or leave "
            "--screen out"
        )
    return int(number)


def parse_train_budget(text: str) -> int:
    """Return the epochs of a text such as 48epochs or 48; 0 for an empty one.

    Raises:
        ConfigError: another text.
    """
    if not text.strip():
        return 0
    found = re.fullmatch(r"(\d{1,7})(?:epochs?)?", "".join(text.lower().split()), re.ASCII)
    if found is None or not 1 <= int(found[1]) <= MOST:
        raise ConfigError(f"--train-budget is {text!r} and must be whole epochs from 1, as in 48epochs")
    return int(found[1])


def parse_final_distillation(text: str) -> FinalDistillation:
    """Return the weights that `--final-distill-weight` stands for.

    Args:
        text: "auto" or a number in [0, 1], which is the weight everywhere.

    Raises:
        ConfigError: another text.
    """
    if text.strip() == AUTO:
        return AUTO_DISTILLATION
    try:
        weight = parse_float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise ConfigError(f"--final-distill-weight is {text!r} and must be a number in [0, 1], as in 0.5, or auto")
    return FinalDistillation(weight, weight, weight)


def parse_final_epochs(text: str, epochs: int) -> int | None:
    """Return the epochs of final training at each target; 0 for none, None where they follow from the training.

    Args:
        text: "auto", "none" or a whole number.
        epochs: of a trial.

    Raises:
        ConfigError: another text, or final training of networks that no trial has trained.
    """
    number = text.strip()
    if number in (AUTO, NONE):
        return None if number == AUTO and epochs else 0
    if not _is_whole(number):
        raise ConfigError(f"--final-epochs is {text!r} and must be whole epochs, as in 12, or auto or none")
    if int(number) and not epochs:
        raise ConfigError(
            f"--final-epochs {text!r} trains on what trials have trained, and with --epochs 0 nothing is; raise "
            "--epochs or take --final-epochs none"
        )
    return int(number)


def parse_search_settings(text: str, methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods whose settings are searched, of a text such as "di,csgd" or "all"; none where it is empty.

    Args:
        methods: those of the run.

    Raises:
        ConfigError: a method that this run does not use.
        UnknownNameError: a method that does not exist.
    """
    if text.strip() == EVERY:
        return tuple(methods)
    names = tuple(parse_methods(text))
    if text.strip() and not names:
        raise ConfigError(f"--search-settings {text!r} names no method; give some of {', '.join(methods)}, or {EVERY}")
    for name in names:
        if name not in methods:
            raise ConfigError(
                f"--search-settings {text!r} names method {name!r}, which this run does not use; add it to --method"
            )
    return names


def parse_fixed_settings(texts: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return method -> setting -> text of the value, of every "METHOD.SETTING=VALUE".

    Raises:
        ConfigError: another form, or a method that this run does not use.
        UnknownNameError: a method that does not exist.
    """
    fixed: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        method, dot, name = left.strip().rpartition(".")
        if not (equals and dot and method and name and value.strip()):
            raise ConfigError(f"--set {text!r} is not METHOD.SETTING=VALUE, as in {methods[0]}.SETTING=VALUE")
        if method not in (*methods, *ALWAYS_SETTABLE):
            parse_methods(method)
            raise ConfigError(
                f"--set {text!r} is for method {method!r}, which this run does not use; add it to --method"
            )
        fixed.setdefault(method, {})[name] = value.strip()
    return fixed
