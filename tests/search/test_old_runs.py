import dataclasses
import json
from pathlib import Path

import pytest

from runners.trial import TrialResult
from search.cli import main
from search.commands.old_runs import named_runs
from search.reporting.fronts import runs_report
from search.reporting.wording import TextTable
from search.results.result import SearchResult


@pytest.fixture
def runs(finished_search: SearchResult, tmp_path: Path) -> list[Path]:
    """Two run folders; in the second the chosen network of the first is less accurate, and a cheap one is better."""

    def changed(result: TrialResult) -> TrialResult:
        accuracy = {1: 0.94, 3: 0.88}.get(result.trial.number, result.accuracy)
        return dataclasses.replace(result, accuracy=accuracy)

    other = dataclasses.replace(finished_search, results=tuple(map(changed, finished_search.results)))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, result in zip(folders, (finished_search, other), strict=True):
        folder.mkdir()
        (folder / "result.json").write_text(result.to_json())
    return folders


def test_an_old_run_is_shown_from_its_folder_alone(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    moved = runs[0].rename(runs[0].with_name("moved"))
    assert main(["show", str(moved)]) == 0
    text = capsys.readouterr().out
    assert "Pareto front: 3 networks" in text
    assert "Widths of trial 1" in text
    assert str(moved / "front.csv") in text
    assert "mlflow" not in text  # the folder holds no store


def test_an_old_run_is_shown_as_json(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(runs[1]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["folder"], shown["chosen"]) == (str(runs[1]), "1")
    assert shown["networks"]["1"]["accuracy"] == 0.94


def test_compared_runs_share_a_table_in_which_the_best_of_all_are_marked(runs: list[Path]) -> None:
    overview, table = (part for part in runs_report(named_runs(runs)) if isinstance(part, TextTable))
    assert [row[0] for row in overview.rows] == ["A", "B"]
    # Cheapest first: run, val, mark. 0.85 of A gives way to 0.88 of B, 0.94 of B to 0.96 of A; both have the 0.90.
    shown = [(row[0], row[4], row[-1]) for row in table.rows]
    assert shown == [
        ("A", "85.00%", ""),
        ("B", "88.00%", "*"),
        ("A", "90.00%", "*"),
        ("B", "90.00%", "*"),
        ("A", "96.00%", "*"),
        ("B", "94.00%", ""),
    ]
    # The areas under the steps between the costs 160k, 640k, 1,440k and that of the dense network, 2,560k FLOPs.
    costs = [160, 640, 1440, 2560]
    for row, accuracies in zip(overview.rows, ((0.85, 0.90, 0.96), (0.88, 0.90, 0.94)), strict=True):
        area = sum((right - left) * y for left, right, y in zip(costs[:-1], costs[1:], accuracies, strict=True))
        assert row[-1] == f"{area / 2560:.4f}"


def test_compare_prints_fronts_and_draws_them(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "both.png"
    assert main(["compare", *map(str, runs), "--out", str(picture)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The joint front has 4 networks: 2 of A, 2 of B." in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_that_do_not_compare_are_told_apart(runs: list[Path], finished_search: SearchResult) -> None:
    data = {**finished_search.config["data"], "name": "cluttered_digits"}
    other = dataclasses.replace(finished_search, config={**finished_search.config, "data": data, "model": "resnet20"})
    (runs[1] / "result.json").write_text(other.to_json())
    text = "\n".join(part for part in runs_report(named_runs(runs)) if isinstance(part, str))
    assert "different images" in text
    assert "different networks" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{empty}"], "has no result.json; give the run folder of a finished search"),
        (["show", "{unfinished}"], "the search has not ended: finish it with --resume"),
        (["show"], "required: RUN; see python -m search show --help"),
        (["compare", "{empty}"], "give two or more, or use show for one"),
        (["compare", "a", "b", "--out", "picture.gif"], "give a file name that ends in .png"),
        (["shwo", "{empty}"], "unknown command 'shwo'; did you mean show?"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty": tmp_path / "empty", "unfinished": tmp_path / "unfinished"}
    for folder in places.values():
        folder.mkdir()
    (places["unfinished"] / "config.yaml").touch()
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
