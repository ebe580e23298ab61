"""Times as people write them, such as 90s, 30m, 1h30m and 2h."""

import re

from configs.schema import ConfigError

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?", re.ASCII)


def parse_duration(flag: str, text: str) -> float:
    """Return the seconds that `text` stands for: hours, minutes and seconds, in that order, each at most once.

    Args:
        flag: named in the error, e.g. "--time-limit".

    Raises:
        ConfigError: another form, a number without a unit, or a time that is not above 0.
    """
    found = _DURATION.fullmatch("".join(text.lower().split()))
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{flag} is {text!r} and must be a time above 0 with its unit, such as 90s, 30m, 1h30m or 2h")
    return seconds
