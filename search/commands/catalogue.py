"""`python -m search methods` and `presets`: what there is to choose from."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import RenderableType

from search.commands.arguments import CommandParser
from search.reporting.catalogue import describe_methods, describe_presets, methods_page, presets_page
from search.reporting.wording import make_console
from spaces.errors import ExitCode


def methods(arguments: Sequence[str]) -> int:
    """Print the list of methods, or the page of every one that is named."""
    parser = CommandParser("methods", "Show the pruning methods with their settings, needs and papers.")
    return _print(parser, arguments, describe_methods, methods_page)


def presets(arguments: Sequence[str]) -> int:
    """Print the list of presets, or the content of every one that is named."""
    parser = CommandParser("presets", "Show the files for --config, most of them recipes of papers.")
    return _print(parser, arguments, describe_presets, presets_page)


def _print(
    parser: CommandParser,
    arguments: Sequence[str],
    describe: Callable[[Sequence[str]], Any],
    page: Callable[[Sequence[str]], RenderableType],
) -> int:
    parser.add_argument("names", nargs="*", metavar="NAME", help="what is shown in full; none lists all of them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    read = parser.parse_args(arguments)
    if read.json:
        sys.stdout.write(json.dumps(describe(read.names), indent=2) + "\n")
    else:
        make_console(sys.stdout).print(page(read.names))
    return ExitCode.RESULT
