"""`python -m search export RUN`: a network of a finished search as files for other runtimes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pruning.formats import parse_formats
from pruning.quantization.static import check_int8
from search.commands.arguments import CommandParser
from search.finalization.exports import Export, export_from_run
from search.reporting.page.int8 import int8_statements, int8_table
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
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="write model.int8.onnx too, calibrated on training images, scored and timed beside float32; needs [onnx]",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the files (default: RUN/exports/trial-NNNN)")
    parser.add_argument("--trust-code", action="store_true", help="import and call the code that the run names")
    read = parser.parse_args(arguments)
    formats, int8 = parse_formats(read.format), bool(read.quantize)
    if int8:
        check_int8()
    exported = export_from_run(read.run, read.trial, formats, read.out, int8=int8, trust=read.trust_code)
    folder = f"In {exported.card.parent}, with {exported.card.name} beside them."
    files = {exported.network.label: exported.int8} if exported.int8 is not None else {}
    tables = filter(None, [_table(exported), int8_table(files)])
    print_parts(make_console(sys.stdout), [*tables, *int8_statements(files), folder])
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
