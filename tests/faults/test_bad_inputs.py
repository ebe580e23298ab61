"""Generated inputs that nobody can use: one line on standard error, exit code 2, and nothing left behind."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bad_inputs import Input, flags, image_folders, networks, run_folders, yaml_files
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tiny_search import tiny_config

import search
from search.cli import main
from search.tracking.mlflow_tracker import MlflowTracker
from spaces.errors import ExitCode, SlimfrontError


class UsableError(BaseException):
    """The search would begin: the input is a good one."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("good") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.export._write_program", lambda net, input_shape, folder: (None, 0.0))
        patch.setattr(MlflowTracker, "on_search_start", lambda *_: None)
        patch.setattr(MlflowTracker, "on_dense_evaluated", lambda *_: None)
        patch.setattr(MlflowTracker, "on_trial_end", lambda *_: None)
        patch.setattr(MlflowTracker, "on_search_end", lambda *_: None)
        search.run(tiny_config(folder, trials=3))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _begins_no_search() -> Iterator[None]:
    begin = MlflowTracker.on_search_start

    def on_search_start(tracker: MlflowTracker, plan: object) -> None:
        if not tracker._local:
            begin(tracker, plan)
        raise UsableError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowTracker, "on_search_start", on_search_start)
        yield


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """Make a folder the current one, with temporary files in another; modules that are imported there are forgotten."""
    before, modules, paths = os.getcwd(), set(sys.modules), list(sys.path)
    with tempfile.TemporaryDirectory() as outer, pytest.MonkeyPatch.context() as patch:
        folder, temporary = Path(outer) / "here", Path(outer) / "temporary"
        folder.mkdir()
        temporary.mkdir()
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        try:
            yield folder
        finally:
            os.chdir(before)
            sys.path[:] = paths
            for name in set(sys.modules) - modules:
                if name.startswith("odd_"):
                    del sys.modules[name]


def files_in(folder: Path) -> dict[str, int]:
    """Return what lies below the folder that holds this one, but for what Python keeps of imported modules."""
    found = {}
    for place, folders, files in os.walk(folder.parent):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in (*folders, *files):
            path = os.path.join(place, name)
            found[path] = os.lstat(path).st_size
    return found


def outcome(given: Input, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and what was written to standard error."""
    capsys.readouterr()
    if given.arguments[0] != "load":
        code = main(list(given.arguments))
        return code, capsys.readouterr().err
    try:
        search.load("run", trust=True)
    except SlimfrontError as error:
        return ExitCode.USAGE, f"error: {error}\n"
    return ExitCode.RESULT, ""


def check(given: Input, capsys: pytest.CaptureFixture[str], refused: list[str]) -> None:
    with empty_folder() as folder:
        given.make(folder)
        before, children = files_in(folder), {child.pid for child in psutil.Process().children()}
        try:
            code, errors = outcome(given, capsys)
        except UsableError:
            code, errors = ExitCode.RESULT, ""
        assume(code != ExitCode.RESULT)  # it can be used
        assert code == ExitCode.USAGE, errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, errors
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", errors), repr(errors)
        assert files_in(folder) == before
        assert {child.pid for child in psutil.Process().children()} <= children
        refused.append(errors)


QUICK = settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
QUICK = settings(QUICK, suppress_health_check=list(HealthCheck))
SLOW = settings(QUICK, max_examples=200, derandomize=False, phases=[Phase.generate, Phase.shrink])
KINDS = ["flags", "yaml", "images", "networks", "runs"]


def inputs(kind: str, run: Path) -> st.SearchStrategy[Input]:
    weights = (run / "dense.safetensors").read_bytes()
    strategies = {"flags": flags(), "yaml": yaml_files(), "images": image_folders(), "networks": networks(weights)}
    return (strategies | {"runs": run_folders(run)})[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_sixty_bad_inputs_are_refused_in_one_line(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused: list[str] = []
    QUICK(given(inputs(kind, run))(lambda drawn: check(drawn, capsys, refused)))()
    assert len(refused) == QUICK.max_examples


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_bad_inputs_are_refused_in_one_line(
    kind: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: list[str] = []
    SLOW(given(inputs(kind, run))(lambda drawn: check(drawn, capsys, refused)))()
    assert len(refused) == SLOW.max_examples
