"""Whether one network is better than another, said from trainings over several seeds."""

import csv
import dataclasses
import io
import json
import math
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from runners.trial import Confirmation, TrialResult, TrialState
from search.reporting.page.report import hover_text, write_html
from search.reporting.rows import front_columns, front_table, network_row, write_csv
from search.reporting.summary import summary
from search.results.comparison import difference, failed_again, reached_on_test
from search.results.result import SearchResult

ONE_SIDED_95_AT_4 = 2.131847  # Student's t, from a printed table


def confirmed(network: TrialResult, *accuracies: float, errors: tuple[str, ...] = ()) -> TrialResult:
    flops = network.cost.flops if network.cost else 0
    count = len(accuracies)
    found = Confirmation(tuple(range(count)), accuracies, (flops,) * count, 1000, errors=errors)
    return dataclasses.replace(network, confirmation=found)


@pytest.fixture
def search(finished_search: SearchResult) -> SearchResult:
    """The chosen net three times at 0.93, 0.94, 0.95; the baseline at its FLOPs at 0.90, 0.91, 0.92."""
    results = finished_search.results
    baseline = dataclasses.replace(results[0], trial=dataclasses.replace(results[0].trial, number=5))
    found = finished_search.with_results([confirmed(results[1], 0.93, 0.94, 0.95)])
    return dataclasses.replace(found, retrained_baseline=confirmed(baseline, 0.90, 0.91, 0.92))


def test_the_noise_is_students_t_times_the_standard_error(search: SearchResult) -> None:
    gap = difference(search.chosen, search.retrained_baseline)
    assert gap is not None
    assert gap.mean == pytest.approx(0.03)
    assert gap.standard_error == pytest.approx(0.01 * math.sqrt(2 / 3))
    assert gap.noise == pytest.approx(ONE_SIDED_95_AT_4 * gap.standard_error, rel=1e-5)
    assert gap.beyond_noise


def test_equal_readings_leave_a_noise_of_one_image(search: SearchResult) -> None:
    assert search.chosen is not None
    same, other = confirmed(search.chosen, 0.9, 0.9), confirmed(search.chosen, 0.8995, 0.8995)
    gap = difference(same, other)
    assert gap is not None
    assert (gap.standard_error, gap.noise, gap.beyond_noise) == (0.0, 0.001, False)


def test_one_training_each_cannot_be_compared(search: SearchResult) -> None:
    assert search.chosen is not None
    assert difference(confirmed(search.chosen, 0.9), search.retrained_baseline) is None
    assert difference(search.chosen, None) is None


def test_a_win_beyond_the_noise_is_said_with_its_figures(search: SearchResult) -> None:
    text = search.baseline_comparison.statement
    assert (
        "Trained again from the dense network with 3 fresh seeds, the chosen one has 94.00 ± 1.00% on test, the best "
        "baseline at its FLOPs, l2 with uniform widths, 91.00 ± 1.00% (640,000 against 1,440,000 FLOPs): the "
        "difference of +3.00 points, with a standard error of 0.82, is more than the noise of training (1.74), so it "
        "beats the baseline." in text
    )
    assert "test confirms it" not in text  # one reading is no witness beside three
    assert search.baseline_comparison.difference is not None


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        (
            (0.93, 0.94, 0.94),
            "is not more than the noise of training (1.53), so it is not shown to beat the baseline",
        ),
        ((0.98, 0.99, 0.985), "is more than the noise of training (1.53), so the baseline beats it"),
        ((0.98,), "too few trainings have ended"),
    ],
)
def test_a_comparison_that_is_not_won_is_said_as_plainly(
    search: SearchResult, accuracies: tuple[float, ...], words: str
) -> None:
    assert search.retrained_baseline is not None
    other = dataclasses.replace(search, retrained_baseline=confirmed(search.retrained_baseline, *accuracies))
    assert words in other.baseline_comparison.statement


def test_a_chosen_network_without_a_baseline_of_its_size_says_why(search: SearchResult) -> None:
    alone = dataclasses.replace(search, retrained_baseline=None)
    assert "no baseline inside the budgets has as few FLOPs" in alone.baseline_comparison.statement
    results = search.results
    twin = dataclasses.replace(results[1], trial=dataclasses.replace(results[1].trial, number=5))
    same = dataclasses.replace(search, retrained_baseline=twin).baseline_comparison.statement
    assert "the best baseline at its FLOPs is the same network" in same
    baseline = dataclasses.replace(results[1], trial=dataclasses.replace(results[1].trial, baseline="uniform"))
    assert "it is a baseline itself" in alone.with_results([baseline]).baseline_comparison.statement


def test_json_keeps_seeds_accuracies_mean_and_deviation(search: SearchResult) -> None:
    after = SearchResult.from_json(search.to_json())
    assert after == search
    assert after.to_json() == search.to_json()
    data = json.loads(search.to_json())
    found = data["results"][1]["confirmation"]
    assert (found["accuracies"], found["seeds"], found["images"]) == ([0.93, 0.94, 0.95], [0, 1, 2], 1000)
    assert (found["mean"], found["std"]) == (pytest.approx(0.94), pytest.approx(0.01))
    assert data["retrained_baseline"]["confirmation"]["mean"] == pytest.approx(0.91)
    assert data["baseline_comparison"]["difference"]["mean"] == pytest.approx(0.03)


def printed(search: SearchResult, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(front_table(search))
    return file.getvalue().replace("─", "")


def test_table_page_and_csv_show_mean_and_deviation(search: SearchResult, tmp_path: Path) -> None:
    shown = printed(search, width=120)
    assert "94.00±1.00%" in shown
    assert "89.00%" in shown  # of a network that was not trained again
    assert printed(search, width=80).split() == shown.split()  # nothing is folded on a small terminal
    write_html(search, tmp_path / "report.html")
    assert "<td>94.00±1.00%</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "test 94.00±1.00%" in hover_text(network_row(search, search.results[1]))
    write_csv(search, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert float(rows["1"]["test_mean"]) == statistics.fmean((0.93, 0.94, 0.95))
    assert (rows["1"]["test_seeds"], rows["0"]["test_mean"], rows["0"]["test_accuracy"]) == ("3", "", "0.89")
    assert front_columns(search)["test_seeds"] == [None, None, 3]


def test_a_single_training_leaves_the_reading_of_the_searched_net(finished_search: SearchResult) -> None:
    assert reached_on_test(confirmed(finished_search.results[1], 0.5)) == "95.00%"


def test_failed_trainings_are_named_with_their_reason(search: SearchResult) -> None:
    broken = confirmed(search.results[1], 0.93, errors=("RuntimeError: out of\nmemory",))
    line = "trial 1 (di) trained again: 1 of 2 failed: RuntimeError: out of memory"
    assert failed_again(broken, None) == [line]
    assert line in summary(search.with_results([broken]), Path("runs/one"), "")
    lost = dataclasses.replace(confirmed(search.results[0], errors=("lost",)), state=TrialState.FAILED)
    assert "too few trainings" in dataclasses.replace(search, retrained_baseline=lost).baseline_comparison.statement
