"""Golden runs: what the project does today, as facts that can be compared after its code was moved and renamed.

    python tests/golden/golden.py write FILE.json [--only PATTERN]
    python tests/golden/golden.py compare FILE.json [--only PATTERN]

`compare` prints every difference and ends with 1 if there is one. PATTERN is a regular expression on names of cases.
"""

import argparse
import contextlib
import csv
import difflib
import importlib
import io
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cases

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"
for _name in ("LINES", "MLFLOW_TRACKING_URI", "SLIMFRONT_DEBUG"):
    os.environ.pop(_name, None)
adapter = importlib.import_module("adapter")  # which loads torch, by these settings

DIGITS = 9
TIME = r"\b\d[\d.,]* ?(s|ms|min|h|us)\b( \d+ (s|min)\b)?"
Case = Callable[[], dict[str, Any]]


class _Lines(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Collect the warnings that are logged meanwhile."""
    handler = _Lines()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.texts
    finally:
        logging.getLogger().removeHandler(handler)


def simulated(case: Mapping[str, Any]) -> dict[str, Any]:
    """Run a simulated search, the later parts of which go on with the record of the first."""
    flags, facts = case["flags"], dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) if len(flags) > 1 else None
        for part, text in enumerate(flags):
            sim = {name: value for name, value in case["sim"].items() if name != "stop" or part == 0}
            with warned() as texts:
                found = adapter.simulate(text, sim, folder, again=part > 0)
            before = f"part {part + 1}: " if folder else ""
            facts |= {before + name: value for name, value in found.items()} | {f"{before}warnings": texts}
    return facts


def real(case: Mapping[str, Any]) -> dict[str, Any]:
    """Run a search with real training; what it has written is among the facts."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        with warned() as texts:
            facts = adapter.search_for_real(folder, case["flags"], case["epochs"])
        result = json.loads((folder / "result.json").read_text())
        with (folder / "front.csv").open() as file:
            columns = next(csv.reader(file))
        files = {re.sub(r"mlartifacts/.*", "mlartifacts/...", p.relative_to(folder).as_posix()) for p in paths(folder)}
        texts = [masked(text, folder) for text in texts]
        return facts | {
            "warnings": texts,
            "files": sorted(files),
            "names in result.json": sorted(set(names(result))),
            "columns of front.csv": columns,
        }


def paths(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder."""
    return (path for path in folder.rglob("*") if path.is_file())


def names(value: Any, before: str = "") -> Iterator[str]:
    """Yield the names of what nested data holds, without indices of lists."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from names(inner, f"{before}.{name}" if before else name)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for inner in value:
            yield from names(inner, before + "[]")
    else:
        yield before


def called(arguments: str) -> dict[str, Any]:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = adapter.command_line(arguments.split())
    finally:
        root.handlers[:], root.level = kept
    pages = {name: masked(text.getvalue(), Path.cwd()).splitlines() for name, text in (("out", out), ("err", err))}
    return {"code": code, **pages}


def masked(text: str, folder: Path) -> str:
    """Take out what differs from run to run: folders, estimated times, free disk and the date."""
    for place in (str(folder), str(folder.resolve()), str(TESTS.parent)):
        text = text.replace(place, "PLACE")
    text = re.sub(r"\d{8}-\d{6}-", "DATE-", text)
    return text


def page(arguments: str) -> dict[str, Any]:
    """Return a page; in plans, times are estimated and so masked, and no dense network is cached yet."""
    os.environ["SLIMFRONT_CACHE"] = "nothing_cached"
    found = called(arguments)
    os.environ["SLIMFRONT_CACHE"] = "cache"
    if arguments.startswith("plan"):
        text = re.sub(TIME, "TIME", "\n".join(found["out"]))
        text = re.sub(r"on this\s+machine", "on this machine", re.sub("─+", "──", text))  # as wide as the times are
        found["out"] = [re.sub(r" {2,}", "  ", row).rstrip() for row in text.splitlines()]
    return found


def kept_run() -> None:
    """Write the files that refused inputs name, also a run folder with settings."""
    for name, text in cases.FILES.items():
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or "\n".join(called("--budget 50% --trials 3 --print-config")["out"]))


def all_cases() -> dict[str, Case]:
    """Return name -> what gives its facts."""
    found: dict[str, Case] = {f"sim: {name}": lambda c=case: simulated(c) for name, case in cases.simulated().items()}  # type: ignore[misc]
    found |= {name: lambda c=case: real(c) for name, case in cases.REAL.items()}  # type: ignore[misc]
    found |= {f"page: {text}": lambda t=text: page(t) for text in cases.PAGES}  # type: ignore[misc]
    found |= {f"wrong: {text}": lambda t=text: called(t) for text in cases.WRONG}  # type: ignore[misc]
    return found


def facts_of(only: str, slow: bool) -> dict[str, Any]:
    """Run the cases in a folder of their own."""
    found, before = dict[str, Any](), Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.environ["SLIMFRONT_CACHE"] = "cache"  # relative, so that pages are wrapped alike wherever this runs
        os.chdir(place)
        try:
            kept_run()
            for name, case in all_cases().items():
                if not re.search(only, name):
                    continue
                began = time.perf_counter()
                try:
                    found[name] = plain(case())
                except Exception as error:
                    traceback.print_exc()
                    found[name] = {"raised": f"{type(error).__name__}: {error}"}
                if slow and (seconds := time.perf_counter() - began) > 1:
                    print(f"{seconds:5.1f} s  {name}", flush=True)
        finally:
            os.chdir(before)
    return found


def plain(value: Any) -> Any:
    """Return what JSON holds, floats with few digits."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def line(value: Any) -> str:
    """Write a value on one line."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def lines(value: Any) -> list[str]:
    """Write each item of a list on a line, anything else on one."""
    return [line(item) for item in value] if isinstance(value, list) else [line(value)]


def text_of(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the facts as JSON: one line for each fact, and for each item of one that is a list."""
    found = []
    for name, case in sorted(facts.items()):
        rows = []
        for key, value in sorted(case.items()):
            items = ",\n".join(f"   {line(item)}" for item in value) if isinstance(value, list) and value else ""
            rows.append(f"  {line(key)}: [\n{items}\n  ]" if items else f"  {line(key)}: {line(value)}")
        found.append(f" {line(name)}: {{\n" + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(found) + "\n}\n"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs, as lines of a diff under the name of its case and fact."""
    for name in sorted(then.keys() | now.keys()):
        left, right = then.get(name, {}), now.get(name, {})
        for key in sorted(left.keys() | right.keys()):
            old, new = (
                [line(i) for i in v] if isinstance(v, list) else [line(v)] for v in (left.get(key), right.get(key))
            )
            if old != new:
                yield f"{name}: {key}"
                yield from (f"  {row}" for row in list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:])


def main() -> int:
    """Run the golden runs; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", metavar="PATTERN", help="of names of cases")
    parser.add_argument("--slow", action="store_true", help="name the cases that take more than a second")
    given = parser.parse_args()
    file = given.file.absolute()
    now = json.loads(text_of(facts_of(given.only, given.slow)))
    if given.what == "write":
        file.write_text(text_of(now), encoding="utf-8")
        raised = [name for name, case in now.items() if "raised" in case]
        print(f"{len(now)} cases, {file.stat().st_size:,} bytes; raised: {raised}")
        return 1 if raised else 0
    then = {name: case for name, case in json.loads(file.read_text("utf-8")).items() if re.search(given.only, name)}
    found = list(differences(then, now))
    print("\n".join(found) or f"{len(now)} cases, no difference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
