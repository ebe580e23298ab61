"""Whether any method of a run can do what `--allocation` asks for."""

from collections.abc import Sequence

from pruning.base import METHODS
from spaces.errors import ConfigError

_ABLE = {  # allocation -> what a method needs for it, in words what it then does, and what the others can do alone
    "search": ("takes_widths", "work at widths that the search chooses", "finds widths itself"),
    "method": ("finds_widths", "find widths itself", "works at given widths"),
}


def check_allocation(methods: Sequence[str], allocation: str) -> None:
    """Refuse an allocation that no method can follow; where some can, the others do what they are able to.

    Args:
        allocation: one of `configs.schema.ALLOCATIONS`.

    Raises:
        ConfigError: none can.
    """
    if allocation not in _ABLE:
        return
    ability, wanted, instead = _ABLE[allocation]
    if any(getattr(METHODS[name], ability) for name in methods):
        return
    unable = ", ".join(f"{name} only {instead}" for name in methods)
    raise ConfigError(
        f"--allocation is {allocation!r} and no method of the run can {wanted}: {unable}; "
        "leave --allocation at 'any', or add a method that can to --method"
    )
