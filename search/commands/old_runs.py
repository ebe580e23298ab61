"""`python -m search show RUN` and `compare RUN RUN ...`: finished searches, read from their run folders alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from search.commands.arguments import CommandParser
from search.reporting.fronts import NamedRun, runs_report
from search.reporting.picture import write_fronts_png
from search.reporting.summary import summary, summary_json
from search.reporting.wording import make_console, print_parts
from search.results.loading import read_result
from search.tracking.store import folder_command, rebase_artifacts
from spaces.errors import ConfigError, ExitCode

PICTURE = "compare.png"


def show(arguments: Sequence[str]) -> int:
    """Print the tables of a finished search again."""
    parser = CommandParser("show", "Print the tables of a finished search again, from its run folder alone.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    parser.add_argument("--json", action="store_true", help="print the JSON object of a search with --json")
    read = parser.parse_args(arguments)
    folder, result = read.run, read_result(read.run)
    rebase_artifacts(folder)
    if read.json:
        sys.stdout.write(summary_json(result, folder) + "\n")
        return ExitCode.RESULT
    print_parts(make_console(sys.stdout), summary(result, folder, folder_command(folder)))
    return ExitCode.RESULT


def compare(arguments: Sequence[str]) -> int:
    """Put the fronts of finished searches on one table and one picture."""
    parser = CommandParser("compare", "Put the fronts of finished searches on one table and one picture.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, two or more")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(PICTURE),
        metavar="FILE",
        help=f"file of the picture, a PNG (default: {PICTURE})",
    )
    read = parser.parse_args(arguments)
    if len(read.runs) < 2:
        raise ConfigError(f"compare got one run, {str(read.runs[0])!r}; give two or more, or use show for one")
    if read.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {str(read.out)!r} is no PNG; give a file name that ends in .png")
    runs = named_runs(read.runs)
    write_fronts_png(runs, read.out)
    print_parts(make_console(sys.stdout), [*runs_report(runs), f"Picture: {read.out}"])
    return ExitCode.RESULT


def named_runs(folders: Sequence[Path]) -> list[NamedRun]:
    """Read the results of run folders.

    Raises:
        ResultError: a folder holds no result that can be read.
        ConfigError: more runs than letters.
    """
    if len(folders) > len(ascii_uppercase):
        raise ConfigError(f"got {len(folders)} runs; a table holds {len(ascii_uppercase)}: compare fewer at once")
    return [NamedRun(*pair, read_result(pair[1])) for pair in zip(ascii_uppercase, folders, strict=False)]
