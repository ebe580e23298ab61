"""Numbers and tables are written as a person reads them."""

import io

import pytest
from rich.console import Console

from search.reporting.wording import (
    TextTable,
    counts,
    duration,
    milliseconds,
    percent,
    plural,
    scaled,
    short,
    training_text,
)
from spaces.cost import Cost


@pytest.mark.parametrize(
    ("count", "text"),
    [(557_892_000, "557.9 MFLOPs"), (4_111_512_576, "4.112 GFLOPs"), (12_500, "12.50 kFLOPs"), (999, "999 FLOPs")],
)
def test_counts_are_scaled_to_four_digits(count: int, text: str) -> None:
    assert scaled(count, "FLOPs") == text


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert percent(None) == "-"


def test_counts_come_short_and_for_a_whole_network() -> None:
    assert [short(number) for number in (13, 1_003, 557_892_000)] == ["13", "1k", "558M"]
    assert counts(Cost(557_892_000, 11_000)) == "557.9 MFLOPs, 11.00 kparams"


def test_latencies_are_milliseconds_and_numbers_have_their_noun() -> None:
    assert milliseconds(0.0123456) == "12.35"
    assert [plural(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]


def test_a_table_aligns_numbers_and_shows_brackets_as_they_are() -> None:
    table = TextTable("Title", ("name", ">count"), (("[red]", "7"), ("b", "100")))
    console = Console(file=io.StringIO(), width=60)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert (table.heads, lines[0]) == (("name", "count"), "Title")
    assert lines[-3:-1] == [" [red]      7", " b        100"]


def test_searched_fine_tuning_is_written_shortly() -> None:
    training = {"lr": 0.0123456, "epochs": 2, "distill_weight": 0.5}
    assert training_text(training) == "distill_weight 0.5, epochs 2, lr 0.0123"
    assert training_text({}) == ""
