"""The settings of a method, declared where they are: as fields of its dataclass.

`setting(...)` gives a field its default and the bounds between which a search may move it, so defaults, search space
and documentation have one place.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter of a method: its default and the bounds a search stays within.

    Numbers have `low` and `high` (both included), names have `choices`. A setting with neither is not searched, nor
    is one with `searched=False`, whose bounds only say what it may be set to.
    """

    name: str
    default: float | int | str | bool
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | bool, ...] = ()
    help: str = ""
    searched: bool = True

    @property
    def searchable(self) -> bool:
        """Whether a search may vary it."""
        return self.searched and (bool(self.choices) or (self.low is not None and self.high is not None))


def setting(default: Any, **bounds: Any) -> Any:
    """Declare a dataclass field as a method's setting; see `Setting` for the bounds."""
    return field(default=default, metadata={"setting": bounds})


def declared_settings(method: Any) -> tuple[Setting, ...]:
    """List the settings of a method (its class or an instance), in the order of its fields."""
    return tuple(
        Setting(name=each.name, default=cast(Any, each.default), **each.metadata["setting"])
        for each in dataclasses.fields(method)
        if "setting" in each.metadata
    )
