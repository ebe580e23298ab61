"""CommandParser: an argument parser whose errors are those of this project, in one line."""

import argparse
import sys
from typing import NoReturn

from typing_extensions import override

from spaces.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """Reads the arguments of a subcommand; `--help` prints and raises SystemExit(0).

    Args:
        command: name of the subcommand.
        description: what it does, for `--help`.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"python -m search {command}", description=description, allow_abbrev=False)
        # Read before any subcommand runs; named here so that `--help` shows it and the parser takes it.
        self.add_argument("--debug", action="store_true", help="show tracebacks and the log")

    @override
    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of ending the process."""
        raise ConfigError(f"{message}; see {self.prog} --help") from sys.exc_info()[1]
