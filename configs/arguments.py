"""Arguments of the command line through jsonargparse, whose complaints are said in one line with the user's names."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from spaces.errors import ConfigError

_KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


def parse_arguments(parser: ArgumentParser, argv: Sequence[str], known: Sequence[str]) -> Any:
    """Return what the arguments give, and nothing of what they leave out.

    Args:
        known: the flags, of which an error names the nearest.

    Raises:
        ConfigError: an unknown flag, or a value of the wrong type.
    """
    joined: list[str] = []
    for argument in argv:
        # argparse takes "-1gflops" for a flag; the user deserves the error about a negative value instead.
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and re.match(r"-\.?\d", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    try:
        return parser.parse_args(joined, defaults=False)
    except argparse.ArgumentError as error:
        raise ConfigError(one_line(error, "--", known)) from error


def one_line(error: argparse.ArgumentError, prefix: str = "", known: Sequence[str] = ()) -> str:
    """Say in one line what jsonargparse says in several.

    Args:
        prefix: "--" where settings are flags.
        known: flags, of which one that is unknown names the nearest.
    """
    message = " ".join(str(error).split())
    wrong = re.search(r"Parser key \"(\w+)\":.*?Expected a <class '(\w+)'>\. Got value: (.*)", message)
    if wrong:
        name = prefix + (wrong[1].replace("_", "-") if prefix else wrong[1])
        return f"{name} is {wrong[3]!r} and must be {_KINDS.get(wrong[2], wrong[2])}"
    unknown = re.match(r"unrecognized arguments: (\S+)", message)
    if unknown:
        near = difflib.get_close_matches(unknown[1].partition("=")[0], known, n=2, cutoff=0.5)
        return f"unknown argument {unknown[1]!r}; " + (f"did you mean {' or '.join(near)}?" if near else "see --help")
    return message
