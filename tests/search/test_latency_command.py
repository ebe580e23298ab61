"""`python -m search latency`: tables of layers, listed and deleted."""

from pathlib import Path

import pytest

from runners.latency.prediction.layer_timing import LayerTable
from search.cli import main

CONDITIONS = {
    "device": "cpu:1thread",
    "device_name": "Made-up 3000",
    "batch": 1,
    "engine": "eager",
    "dtype": "float32",
    "versions": {"torch": "2.6"},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))


def test_tables_are_listed_and_deleted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = LayerTable.of(CONDITIONS)
    table.add("conv2d 3x3 at 32x32", {(16, 32): 1e-5, (16, 64): 2e-5})
    table.save()
    assert LayerTable.of(CONDITIONS).within("conv2d 3x3 at 32x32", (1, 1), (16, 32)) == {(16, 32): 1e-5}
    assert LayerTable.of({**CONDITIONS, "batch": 2}).seconds == {}
    (tmp_path / "latency" / "idle-0.json").write_text("{}")
    assert main(["latency", "show"]) == 0
    shown = capsys.readouterr().out
    assert "Made-up 3000" in shown
    assert shown.split()[-2:] == ["1", "2"]  # shapes of layers, timings
    assert main(["latency", "clear"]) == 0
    assert [file.name for file in (tmp_path / "latency").iterdir()] == ["idle-0.json"]
    capsys.readouterr()
    assert main(["latency", "show"]) == 0
    assert "No table of layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["latency"], ["latency", "clear", "--model"], ["latency", "measure", "--shape", "3"]]
)
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
