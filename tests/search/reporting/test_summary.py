import csv
import dataclasses
import io
import json
from pathlib import Path

from rich.console import Console, RenderableType

from pruning.base import METHODS
from runners.trial import Confirmation
from search.reporting.rows import front_table, write_csv
from search.reporting.summary import summary, summary_json, top5_statements
from search.results.result import SearchResult


def text_of(*parts: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    for part in parts:
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def line_with(text: str, *words: str) -> str:
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, (words, text)
    return " ".join(lines[0].split())


def test_the_front_starts_with_the_dense_net_and_marks_the_chosen_one(finished_search: SearchResult) -> None:
    text = text_of(front_table(finished_search))
    rows = [" ".join(line.split()) for line in text.splitlines() if "%" in line]
    assert rows == [
        "2.560 M 100.0% 2.560 k 97.00% 96.50% dense",
        "1.440 M 56.2% 1.440 k 96.00% 95.00% di 1 chosen",
        "640.0 k 25.0% 640 90.00% 89.00% uniform l2 0",
        "160.0 k 6.2% 160 85.00% 84.00% di 3",
    ]


def columns_of(part: RenderableType) -> int:
    """Return how wide a part is where it may be as wide as it likes."""
    return Console(file=io.StringIO(), width=200).measure(part).maximum


def longest_named(search: SearchResult) -> SearchResult:
    """Return the search with its chosen net made by the method of the longest name."""
    chosen = search.results[1]
    return search.with_results(
        [dataclasses.replace(chosen, trial=dataclasses.replace(chosen.trial, method=max(METHODS, key=len)))]
    )


def confirmed(search: SearchResult) -> SearchResult:
    seeds = Confirmation((1, 2, 3), (0.91, 0.93, 0.95), (1, 1, 1), 360)
    return search.with_results([dataclasses.replace(member, confirmation=seeds) for member in search.front])


def test_the_front_fits_a_terminal_of_80_columns(
    finished_search: SearchResult, search_with_intermediates: SearchResult, quantised_search: SearchResult
) -> None:
    for search in (
        longest_named(finished_search),
        search_with_intermediates,
        confirmed(finished_search),
        quantised_search,
    ):
        assert columns_of(front_table(search)) <= 80


def test_a_front_too_wide_for_a_terminal_wraps_methods_and_keeps_numbers_whole(quantised_search: SearchResult) -> None:
    widest = confirmed(longest_named(quantised_search))
    assert columns_of(front_table(widest)) > 80
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(widest))
    text = str(console.file.getvalue())  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    row = line_with(text, "chosen")
    assert row.startswith("1.440 M 56.2% 1.440 k 0.00115 96.00% 93.00±2.00% ")
    assert row.endswith(" 1 chosen")


def test_sizes_are_shown_where_a_network_is_quantised(quantised_search: SearchResult) -> None:
    text = text_of(front_table(quantised_search))
    rows = [" ".join(line.split()) for line in text.splitlines() if "%" in line]
    assert "params MB val test" in " ".join(text.split())
    assert rows[:3] == [
        "2.560 M 100.0% 2.560 k 0.01024 97.00% 96.50% dense",
        "1.440 M 56.2% 1.440 k 0.00115 96.00% 95.00% di 1 chosen",
        "640.0 k 25.0% 640 0.00256 90.00% 89.00% uniform l2 0",
    ]


def test_the_summary_ends_with_paths_and_the_command_for_mlflow(finished_search: SearchResult) -> None:
    parts = summary(finished_search, Path("/runs/one"), "mlflow ui --backend-store-uri x")
    lines = [part for part in parts if isinstance(part, str)]
    assert "  front  /runs/one/front.csv" in lines
    assert "MLflow: mlflow ui --backend-store-uri x" in lines
    assert finished_search.baseline_comparison.statement in lines
    assert not any(line.startswith("Stopped early") for line in lines)


def test_an_interrupted_search_says_what_is_kept(finished_search: SearchResult) -> None:
    stopped = dataclasses.replace(finished_search, interrupted=True)
    lines = [part for part in summary(stopped, Path("/runs/one"), "") if isinstance(part, str)]
    assert "Stopped early: 5 finished trials, the front and the report are kept." in lines


def test_a_search_without_any_result_still_reports(finished_search: SearchResult) -> None:
    empty = dataclasses.replace(finished_search, results=())
    assert "Pareto front: 0 networks" in text_of(*summary(empty, Path("/runs/one"), ""))


def test_a_latency_that_a_method_noted_is_in_the_summary(finished_search: SearchResult) -> None:
    slow = dataclasses.replace(finished_search.front.members[0], note={"flops_ratio": 0.2, "latency_ratio": 1.4})
    text = text_of(*summary(finished_search.with_results([slow]), Path("runs/one"), ""))
    assert "20% of the FLOPs, 1.4x the dense latency: fewer FLOPs, not faster here" in text


def test_top5_stands_in_the_terminal_the_table_and_the_json(finished_search: SearchResult, tmp_path) -> None:
    assert not top5_statements(finished_search)  # it was not read
    dense = dataclasses.replace(finished_search.dense, test_top5=0.999)
    chosen = dataclasses.replace(finished_search.chosen, val_top5=0.9925, test_top5=0.9875)
    result = dataclasses.replace(finished_search.with_results([chosen]), dense=dense)
    assert top5_statements(result) == ["Top-5 on test: 98.75% (dense 99.90%)."]
    network = json.loads(summary_json(result, tmp_path))["networks"][chosen.label]
    assert (network["val_top5"], network["test_top5"]) == (0.9925, 0.9875)
    write_csv(result, tmp_path / "front.csv")
    rows = list(csv.DictReader((tmp_path / "front.csv").read_text().splitlines()))
    assert ("0.9925", "0.9875") in {(row["val_top5"], row["test_top5"]) for row in rows}
