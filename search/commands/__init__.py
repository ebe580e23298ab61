"""The subcommands of `python -m search`: a function of the arguments after its name that returns the exit code.

`search.cli: COMMANDS` names them. `plan` is none of them: it takes the flags of a search.
"""

from search.commands.arguments import CommandParser

__all__ = ["CommandParser"]
