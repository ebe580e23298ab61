"""Files and folders that the user may not read or write: one line, exit code 2, and nothing left behind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import SEARCH, png
from rights import ordinary_rights

from runners.cache import cache_root, is_cached, lock_folder, write_cached
from search.cli import main
from spaces.errors import ExitCode

PHOTOS = ("--data", "imagefolder:photos")


def photos(closed: str) -> None:
    for place in ("a", "b"):
        Path("photos", place).mkdir(parents=True)
        for number in range(6):
            Path("photos", place, f"{number}.png").write_bytes(png(8, 8))
    Path("photos", closed).chmod(0)


def closed_file(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(b"content")
    Path(name).chmod(0)


def read_only(folder: str) -> None:
    Path(folder).mkdir()
    Path(folder).chmod(0o500)


CASES: dict[str, tuple[Callable[[], None], tuple[str, ...], str]] = {
    "image": (lambda: photos("b/3.png"), (*SEARCH, *PHOTOS), "photos/b/3.png cannot be read: Permission denied"),
    "class": (lambda: photos("b"), (*SEARCH, *PHOTOS), "cannot use 'photos/b': Permission denied"),
    "images": (lambda: photos(""), (*SEARCH, *PHOTOS), "cannot use 'photos/train': Permission denied"),
    "weights": (
        lambda: closed_file("net.safetensors"),
        (*SEARCH, "--weights", "net.safetensors"),
        "net.safetensors cannot be read: Permission denied",
    ),
    "out": (lambda: read_only("mine"), (*SEARCH, "--out", "mine/run"), "mine/run': Permission denied"),
    "result": (lambda: closed_file("run/result.json"), ("show", "run"), "cannot use 'run/result.json': Permission"),
    "resumed": (lambda: closed_file("run/config.yaml"), ("--resume", "run"), "'run/config.yaml' cannot be read"),
    "storage": (
        lambda: read_only("mine"),
        (*SEARCH, "--storage", "sqlite:///mine/study.db"),
        "storage 'sqlite:///mine/study.db' cannot hold the study",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_may_not_be_read_or_written_is_named_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, arguments, told = CASES[name]
    monkeypatch.chdir(tmp_path)
    make()
    before = sorted(tmp_path.rglob("*"))
    with ordinary_rights():
        code = main(list(arguments))
    errors = capsys.readouterr().err
    assert code == ExitCode.USAGE
    assert errors.startswith("error: ")
    assert told in errors
    assert errors.count("\n") == 1, errors
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", [0, 0o500])
def test_a_cache_that_may_not_be_used_costs_nothing_but_the_cache(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"cache{mode}"
    monkeypatch.setenv("SLIMFRONT_CACHE", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_cached(folder / "kept.json", b"{}")
    folder.chmod(mode)
    with ordinary_rights():
        assert cache_root() == folder
        assert is_cached(folder / "kept.json") == bool(mode)
        write_cached(folder / "new" / "other.json", b"{}")
        assert lock_folder() == tmp_path / f"slimfront-locks-{os.getuid()}"
        assert lock_folder().is_dir()
    folder.chmod(0o700)
    assert [file.name for file in folder.iterdir()] == ["kept.json"]
    assert "cannot be written (Permission denied): the search goes on" in caplog.text
    assert lock_folder() == folder / "locks"
