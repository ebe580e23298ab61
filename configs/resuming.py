"""What a resumed search may change of the search it goes on with, and what it may not.

Trials can be compared only when they come from one network, one set of images and one way of training.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from configs.loading import load, run_config_file
from configs.schema import RunConfig, setting_key
from spaces.errors import ConfigError

FIXED = (
    "objective",
    "model",
    "weights",
    "method",
    "set",
    "search_training",
    "allocation",
    "rungs",
    "screen",
    "seed",
    "storage",
)
FIXED_SECTIONS = ("space", "data", "train")
FREE = ("data_dir", "device")  # where images lie and nets are trained, not what they are


def check_resumed(config: RunConfig) -> None:
    """Compare a config that resumes a run folder with the one in there.

    Raises:
        ConfigError: no run folder, or settings differ that must not; names each with both values.
    """
    if not config.resume:
        return
    stored = dict(_fixed(load(run_config_file(config.resume))))
    differing = [
        f"--{name.replace('_', '-')} is {stored[name]!r} there and {value!r} here"
        for name, value in _fixed(config)
        if stored[name] != value
    ]
    if differing:
        raise ConfigError(
            f"--resume {config.resume!r} cannot go on with other settings: {', '.join(differing)}; "
            "leave them as they are there, or start a new search without --resume"
        )


def _fixed(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what may not change."""
    for name in FIXED:
        yield name, getattr(config, name)
    for section in FIXED_SECTIONS:
        values = dataclasses.asdict(getattr(config, section))
        yield from ((setting_key(section, name), value) for name, value in values.items() if name not in FREE)
