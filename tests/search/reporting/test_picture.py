import dataclasses
from pathlib import Path

import pytest

from runners.trial import TrialResult
from search.reporting.picture import accuracy_range, cost_axis, front_steps, heading, series, write_png
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.cost import Cost


def with_flops(search: SearchResult, *counts: int) -> SearchResult:
    """The first trials of a search at other costs, the last count being the dense network's."""
    changed = [dataclasses.replace(r, cost=Cost(n, 1)) for r, n in zip(search.results, counts[:-1], strict=False)]
    dense = dataclasses.replace(search.dense, cost=Cost(counts[-1], 1))
    return dataclasses.replace(search, results=tuple(changed), dense=dense)


@pytest.mark.parametrize(
    ("counts", "unit", "ticks"),
    [
        ((50_000_000, 557_000_000), "MFLOPs", (50, 100, 200, 500)),
        ((1_000_000, 557_000_000), "MFLOPs", (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        ((3_000_000_000, 4_100_000_000), "GFLOPs", (3, 3.5, 4, 4.5)),
        ((4_111_512_576,), "GFLOPs", (3.8, 4, 4.2, 4.4)),
        ((10, 10_000_000), "MFLOPs", None),
    ],
)
def test_the_axis_has_round_ticks_in_a_fitting_unit(
    finished_search: SearchResult, counts: tuple[int, ...], unit: str, ticks: tuple[float, ...] | None
) -> None:
    axis = cost_axis(with_flops(finished_search, *counts))
    assert axis.unit == unit
    assert axis.low < counts[0] / axis.factor <= counts[-1] / axis.factor < axis.high
    if ticks:
        assert axis.ticks == pytest.approx(ticks)
    assert 3 <= len(axis.ticks) <= 9


def test_far_outliers_do_not_squash_the_front(finished_search: SearchResult) -> None:
    outlier = dataclasses.replace(finished_search.results[2], accuracy=0.10)
    low, high = accuracy_range(finished_search.with_results([outlier]))
    assert 60 < low < 85
    assert 97 < high < 100


def test_methods_and_control_arm_are_drawn_apart_and_failures_not_at_all(finished_search: SearchResult) -> None:
    drawn = {each.name: [r.trial.number for r in each.results] for each in series(finished_search)}
    assert drawn == {"di (searched)": [1, 2, 3], "uniform control arm": [0]}


def test_the_front_line_steps_up_at_each_member_and_ends_at_the_budget(finished_search: SearchResult) -> None:
    xs, ys = front_steps(finished_search, cost_axis(finished_search))
    assert xs == pytest.approx([0.16, 0.64, 1.44, 1.536])
    assert ys == pytest.approx([85, 90, 96, 96])


def test_the_heading_names_net_and_data(finished_search: SearchResult) -> None:
    assert heading(finished_search) == "cifar_resnet18 on digits: accuracy over FLOPs"


@pytest.mark.parametrize("kept", [5, 1, 0])
def test_a_picture_is_written_for_any_number_of_trials(
    finished_search: SearchResult, tmp_path: Path, kept: int
) -> None:
    results: tuple[TrialResult, ...] = finished_search.results[:kept]
    search = dataclasses.replace(finished_search, results=results, budgets=(Budget("params", 2000),))
    write_png(search, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_nets_passed_on_the_way_are_drawn_too(search_with_intermediates: SearchResult, tmp_path: Path) -> None:
    drawn = {each.name: [r.label for r in each.results] for each in series(search_with_intermediates)}
    assert drawn["di (searched; small: on the way)"] == ["1", "2", "3", "3.1", "3.2", "3.3"]
    write_png(search_with_intermediates, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
