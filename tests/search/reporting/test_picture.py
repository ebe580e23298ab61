import dataclasses
from pathlib import Path

import pytest

from runners.trial import TrialResult
from search.reporting.picture import picture_of, write_png
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
    axis = picture_of(with_flops(finished_search, *counts)).axis
    assert axis.unit == unit
    assert axis.low < counts[0] / axis.factor <= counts[-1] / axis.factor < axis.high
    if ticks:
        assert axis.ticks == pytest.approx(ticks)
    assert 3 <= len(axis.ticks) <= 9


def test_far_outliers_do_not_squash_the_front(finished_search: SearchResult) -> None:
    outlier = dataclasses.replace(finished_search.results[2], accuracy=0.10)
    picture = picture_of(finished_search.with_results([outlier]))
    assert 60 < picture.accuracies[0] < 85
    assert 97 < picture.accuracies[1] < 100
    assert picture.below == 1


def labels(search: SearchResult) -> dict[str, list[str]]:
    """Series -> labels of its networks."""
    return {series.name: [network.label for network in series.networks] for series in picture_of(search).series}


def test_methods_and_baseline_are_drawn_apart_and_failures_not_at_all(finished_search: SearchResult) -> None:
    assert labels(finished_search) == {"di (searched)": ["1", "2", "3"], "baselines": ["0"]}


def test_the_front_line_steps_up_at_each_member_and_ends_at_the_budget(finished_search: SearchResult) -> None:
    xs, ys = picture_of(finished_search).steps
    assert xs == pytest.approx([0.16, 0.64, 1.44, 1.536])
    assert ys == pytest.approx([85, 90, 96, 96])


def test_the_heading_names_net_and_data(finished_search: SearchResult) -> None:
    assert picture_of(finished_search).title == "cifar_resnet18 on coloured_digits: accuracy over FLOPs"


@pytest.mark.parametrize("kept", [5, 1, 0])
def test_a_picture_is_written_for_any_number_of_trials(
    finished_search: SearchResult, tmp_path: Path, kept: int
) -> None:
    results: tuple[TrialResult, ...] = finished_search.results[:kept]
    search = dataclasses.replace(finished_search, results=results, budgets=(Budget("params", 2000),))
    write_png(search, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_targets_are_limits_too_unless_a_budget_shows_them(finished_search: SearchResult) -> None:
    budget = finished_search.budgets[0]
    answered = dataclasses.replace(finished_search, targets=(budget, Budget("flops", 512_000), Budget("params", 9)))
    assert [label for _, label in picture_of(answered).limits] == ["budget 1.536 MFLOPs", "target 0.512 MFLOPs"]


def test_intermediate_networks_are_drawn_smaller(search_with_intermediates: SearchResult, tmp_path: Path) -> None:
    name = "di (searched; small: intermediate)"
    assert labels(search_with_intermediates)[name] == ["1", "2", "3", "3.1", "3.2", "3.3"]
    assert picture_of(search_with_intermediates).series[0].sizes(2, 1) == [2, 2, 2, 1, 1, 1]
    write_png(search_with_intermediates, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
