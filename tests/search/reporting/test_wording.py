"""Figures are written as a person says them."""

import pytest

from search.reporting.wording import duration, percent, scaled


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
