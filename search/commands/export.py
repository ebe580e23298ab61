"""`python -m search export RUN`: a network of a finished search as files for other runtimes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pruning.formats import parse_formats
from search.commands.arguments import CommandParser
from search.finalization.exports import Export, export_from_run
from search.reporting.wording import TextTable, make_console, print_parts
from spaces.errors import ExitCode


def export(arguments: Sequence[str]) -> int:
    """Write a network in the formats that are asked for, and print how far each differs from the network."""
    parser = CommandParser("export", "Write a network of a finished search as files for other runtimes.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/NAME")
    parser.add_argument(
        "--trial", default="", metavar="LABEL", help="network, such as 9 or 7.2 (default: the chosen one)"
    )
    parser.add_argument(
        "--format",
        default="pt2",
        metavar="NAMES",
        help="one or more of pt2,onnx,safetensors,state_dict,torchscript (default: pt2); onnx needs the extra [onnx]",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the files (default: RUN/exports/trial-NNNN)")
    parser.add_argument("--trust-code", action="store_true", help="import and call the code that the run names")
    read = parser.parse_args(arguments)
    exported = export_from_run(read.run, read.trial, parse_formats(read.format), read.out, trust=read.trust_code)
    folder = f"In {exported.card.parent}, with {exported.card.name} beside them."
    print_parts(make_console(sys.stdout), [_table(exported), folder])
    return ExitCode.RESULT


def _table(exported: Export) -> TextTable:
    rows = [
        (
            file.path.name,
            f"{file.path.stat().st_size:,}",
            "weights alone" if file.max_difference is None else f"{file.max_difference:.1e}",
        )
        for file in exported.files
    ]
    heads = ("file", ">bytes", ">largest difference")
    return TextTable(f"Network {exported.network.label} ({exported.network.trial.method})", heads, rows)
