"""`python -m search sync RUN`: what MLflow lacks of a search, sent from its run folder alone."""

import sys
from collections.abc import Sequence
from pathlib import Path

from search.commands.arguments import CommandParser
from search.reporting.wording import make_console, plural, print_parts
from search.storage.run_folder import locked, resume_command
from search.tracking.journal import journal_file
from search.tracking.sync import send_missing
from spaces.errors import ExitCode


def sync(arguments: Sequence[str]) -> int:
    """Send the records that MLflow lacks, and print how many those were."""
    parser = CommandParser(
        "sync",
        "Send MLflow what it lacks of a search: after an outage of its server, after a kill, or to another server. "
        "Nothing is sent twice.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    parser.add_argument(
        "--tracking-uri",
        default="",
        metavar="URI",
        help="of the MLflow server (default: that of the search, else MLFLOW_TRACKING_URI, else the run folder)",
    )
    parser.add_argument(
        "--trust-code", action="store_true", help="import and call the code that the run names, to log its networks"
    )
    read = parser.parse_args(arguments)
    journal_file(read.run)
    with locked(read.run):
        done = send_missing(read.run, read.tracking_uri, trust=read.trust_code)
    state = f"MLflow at {done.uri} had all {plural(done.total, 'record')} of the search."
    if done.sent:
        state = f"MLflow at {done.uri} lacked {done.sent} of {plural(done.total, 'record')}; it has them now."
    parts = [state, *done.refused]
    if not done.ended:
        parts.append(f"The search has not ended, its run is marked as killed; {resume_command(read.run)} goes on.")
    print_parts(make_console(sys.stdout), [*parts, done.command])
    return ExitCode.RESULT
