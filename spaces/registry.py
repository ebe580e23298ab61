"""Registry: a table of plugin names whose objects are imported on first use; and the import of the user's own code."""

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import override

from spaces.errors import UnknownNameError

USER_ERRORS = (Exception, SystemExit)  # what the user's code may raise; its sys.exit() must not end this process


def import_code(text: str) -> Any:
    """Import what "package.module:name" names, which may lie in the current folder.

    Raises:
        ImportError: it cannot be imported, whatever its module raised.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(str(error)) from error
    except USER_ERRORS as error:
        raise ImportError(f"its module raised {error!r} on import") from error


def unknown_name(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """Build the error for an unknown name; the message lists the nearest known names, or all where none is near."""
    near = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known) or 'none at all'}"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")


class Registry(Mapping[str, Any]):
    """A mapping from name to object that imports the object when the name is first looked up.

    Args:
        kind: noun for the named things, in the singular; used in error messages.
        table: name -> "module:attribute".
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def __getitem__(self, name: str) -> Any:
        """Import and return the object registered under `name`.

        Raises:
            UnknownNameError: the name is not in the table.
        """
        if name not in self._table:
            raise unknown_name(self.kind, name, sorted(self._table))
        module, _, attribute = self._table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._table

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    @override
    def __len__(self) -> int:
        return len(self._table)


class OpenRegistry(Registry):
    """A registry that also knows classes of the user's own, by names such as "package.module:Class".

    Args:
        kind: noun for the named things, in the singular.
        table: name -> "module:attribute".
        needs: attributes that a class must have, to which its error refers.
        base: what the user's class should derive from, for the message.
    """

    def __init__(self, kind: str, table: Mapping[str, str], needs: Sequence[str], base: str) -> None:
        super().__init__(kind, table)
        self._needs, self._base = needs, base

    @override
    def __getitem__(self, name: str) -> Any:
        """Import and return the object of a name in the table, or the user's class.

        Raises:
            UnknownNameError: the name is not in the table, or its class cannot be imported or is none of this kind.
        """
        if ":" not in name:
            return super().__getitem__(name)
        try:
            found = import_code(name)
        except ImportError as error:
            raise UnknownNameError(
                f"{self.kind} {name!r} cannot be loaded ({error}); give a known name ({', '.join(sorted(self))}), or "
                "package.module:Class importable from the current folder"
            ) from error
        missing = [attribute for attribute in self._needs if not hasattr(found, attribute)]
        if not isinstance(found, type) or missing:
            given = f"a class without {', '.join(missing)}" if isinstance(found, type) else f"a {type(found).__name__}"
            raise UnknownNameError(
                f"{self.kind} {name!r} is {given}; it must be a frozen dataclass that derives from {self._base}"
            )
        return found

    @override
    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and ":" in name)
