import csv
import dataclasses
import json
from pathlib import Path

from search.reporting.rows import (
    NetworkRow,
    front_columns,
    front_rows,
    network_row,
    quantised,
    widths_table,
    write_csv,
)
from search.reporting.wording import ROWS_SHOWN
from search.results.result import SearchResult
from spaces.widths import Widths


def test_the_dense_network_comes_first_then_the_front_most_accurate_first(finished_search: SearchResult) -> None:
    def shown(row: NetworkRow) -> tuple[str, str, str, bool]:
        return row.name, row.of_dense, row.validation, row.chosen

    assert [shown(row) for row in front_rows(finished_search)] == [
        ("dense", "100.0%", "97.00%", False),
        ("trial 1: di", "56.2%", "96.00%", True),
        ("trial 0: l2 (uniform widths)", "25.0%", "90.00%", False),
        ("trial 3: di", "6.2%", "85.00%", False),
    ]


def test_a_width_that_the_result_does_not_know_before_is_a_question_mark(finished_search: SearchResult) -> None:
    unknown = dataclasses.replace(finished_search, space={"groups": [{"group": "conv1", "width": 16}]})
    row = network_row(unknown, unknown.results[1])
    assert row.width_changes == ["conv1 16→12", "layer1.conv1 ?→24", "layer2.conv1 ?→48"]
    assert widths_table(unknown, unknown.results[1]).rows[1] == ("layer1.conv1", "", "24", "24", "100%", "#" * 20)


def test_stored_weights_of_other_sizes_than_float32_are_noticed(
    finished_search: SearchResult, quantised_search: SearchResult
) -> None:
    assert not quantised(front_rows(finished_search))
    assert quantised(front_rows(quantised_search))


def test_widths_are_shown_before_and_after(finished_search: SearchResult) -> None:
    chosen = finished_search.chosen
    assert chosen is not None
    table = widths_table(finished_search, chosen)
    assert table.rows[-1] == ("layer2.conv1", "1", "64", "48", "75%", "#" * 15)
    many = dataclasses.replace(chosen, widths=Widths({f"g{i}": 8 for i in range(ROWS_SHOWN + 5)}))
    assert widths_table(finished_search, many).rows[-1][0] == "... and 5 more"


def test_the_csv_holds_exact_numbers_cheapest_first(finished_search: SearchResult, tmp_path: Path) -> None:
    write_csv(finished_search, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["flops"], row["params"]) for row in rows] == [
        ("3", "160000", "160"),
        ("0", "640000", "640"),
        ("1", "1440000", "1440"),
    ]
    assert float(rows[2]["val_accuracy"]) == 0.96
    assert Widths.from_json(rows[2]["widths"]) == finished_search.front.members[2].widths
    assert json.loads(rows[2]["settings"]) == {"ridge": 0.1}


def test_an_intermediate_network_is_named_after_its_trial(
    search_with_intermediates: SearchResult, tmp_path: Path
) -> None:
    write_csv(search_with_intermediates, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["3", "0", "3.2", "1"]
    member = search_with_intermediates.results[3].intermediate_networks[1]
    assert widths_table(search_with_intermediates, member).title == "Widths of trial 3.2"
    assert network_row(search_with_intermediates, member).name == "trial 3.2: di"


def test_mlflow_gets_the_front_as_columns(finished_search: SearchResult) -> None:
    columns = front_columns(finished_search)
    assert columns["trial"] == ["3", "0", "1"]
    assert columns["percent_of_dense"] == [6.25, 25.0, 56.25]
    assert columns["baseline"] == ["", "uniform", ""]
    assert columns["chosen"] == [False, False, True]
    assert front_columns(dataclasses.replace(finished_search, results=())) == {}
