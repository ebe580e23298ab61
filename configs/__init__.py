"""Describe a run: start with `RunConfig`, which checks itself, and `load`, which reads one from YAML.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from spaces.lazy import attach

if TYPE_CHECKING:
    from configs.loading import check_resumed, effective_yaml, load, parse_flags
    from configs.schema import RunConfig

__all__ = ["RunConfig", "check_resumed", "effective_yaml", "load", "parse_flags"]

_HOMES = {
    "RunConfig": "configs.schema",
    **dict.fromkeys(("check_resumed", "effective_yaml", "load", "parse_flags"), "configs.loading"),
}

__getattr__, __dir__ = attach(__name__, _HOMES)
