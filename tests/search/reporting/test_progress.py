import dataclasses
import io
import re
import time
from pathlib import Path

import pytest

from configs.schema import RunConfig
from search.callbacks import Progress
from search.environment import Environment, Plan
from search.reporting import progress
from search.reporting.progress import ConsoleProgress, ProgressEstimate, trial_text
from search.results.pareto import ParetoFront
from search.results.result import SearchResult


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def plan(environment: Environment) -> Plan:
    return Plan(environment)


def play(display: ConsoleProgress, plan: Plan, search: SearchResult) -> None:
    with display:
        display.on_search_start(plan)
        display.on_phase("training the dense net, epoch 1/2")
        for finished, result in enumerate(search.results, start=1):
            front = ParetoFront(search.results[:finished])
            display.on_trial_end(result, Progress(finished, len(search.results), front))
        display.on_promotion(3, 9)
        display.on_search_end(search, Path("long/" * 60), "mlflow ui [red]")


def test_plain_output_is_one_line_per_phase_and_trial(plan: Plan, finished_search: SearchResult) -> None:
    stream = io.StringIO()
    play(ConsoleProgress(stream), plan, finished_search)
    lines = [re.sub(r"^\[ *[\d.]+ s\] ", "", line) for line in stream.getvalue().splitlines() if line.startswith("[ ")]
    trials = [line.partition("; ") for line in lines[1:-1]]
    assert [lines[0], *[trial for trial, _, _ in trials], lines[-1]] == [
        "training the dense net, epoch 1/2",
        "1/5 trial 0 l2 (uniform widths): 90.00% at 640.0 kFLOPs in 3 s",
        "2/5 trial 1 di: 96.00% at 1.440 MFLOPs in 3 s",
        "3/5 trial 2 di: 80.00% at 512.0 kFLOPs in 3 s",
        "4/5 trial 3 di: 85.00% at 160.0 kFLOPs in 3 s",
        "5/5 trial 4 di failed: RuntimeError: out of memory [gpu]",
        "trial 3 goes on to 9 epochs",
    ]
    assert [state for _, _, state in trials] == [
        "best 90.00%, front 1, hypervolume 0.675, just grew, 12 s left",
        "best 96.00%, front 2, hypervolume 0.701, just grew, 9 s left",
        "best 96.00%, front 3, hypervolume 0.741, just grew, 6 s left",
        "best 96.00%, front 3, hypervolume 0.861, just grew, 3 s left",
        "best 96.00%, front 3, hypervolume 0.861, grew 1 trial ago",
    ]


def test_plain_output_has_no_control_codes_and_paths_are_not_broken(plan: Plan, finished_search: SearchResult) -> None:
    stream = io.StringIO()
    play(ConsoleProgress(stream), plan, finished_search)
    assert "\x1b" not in stream.getvalue()
    assert f"  front  {'long/' * 60}front.csv\n" in stream.getvalue()
    assert "MLflow: mlflow ui [red]\n" in stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(
    plan: Plan, finished_search: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    display = ConsoleProgress(stream)
    assert display._bar is not None
    play(display, plan, finished_search)
    text = stream.getvalue()
    assert "5/5" in re.sub(r"\x1b\[[\d;?]*\w", "", text)
    assert "trial 4 di failed: RuntimeError: out of memory [gpu]" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_a_phase_that_counts_its_steps_shows_its_share_and_the_time_left_in_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    now = 100.0
    monkeypatch.setattr("search.reporting.progress.time.monotonic", lambda: now)
    stream = Terminal()
    with ConsoleProgress(stream) as display:
        display.on_phase("gathering statistics of the dense network, which has a long name")
        now = 110.0
        display.on_steps(1, 4)  # 10 s for a quarter
        now = 115.0
        assert display._bar is not None
        display._bar.refresh()
        display.on_phase("searching")
        display._bar.refresh()
    lines = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue()).replace("\r", "\n").splitlines()
    shown = [line for line in lines if "25%, 25 s left" in line]
    assert shown
    assert "gathering statistics of the dense" in shown[-1]
    assert shown[-1].rstrip().endswith("25%, 25 s left")
    assert max(map(len, lines)) <= 80
    assert "left" not in [line for line in lines if "searching" in line][-1]


def test_pipes_get_nothing_of_steps() -> None:
    stream = io.StringIO()
    display = ConsoleProgress(stream)
    display.on_phase("searching")
    before = stream.getvalue()
    display.on_steps(1, 4)
    assert stream.getvalue() == before


def test_an_exception_leaves_the_cursor_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def stopped() -> None:
        with ConsoleProgress(stream) as display:
            display.on_phase("searching")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "dumb terminal"])
def test_pipes_and_dumb_terminals_get_plain_lines(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert ConsoleProgress(stream)._bar is None


def left(estimate: ProgressEstimate, finished: int, total: int) -> str:
    return estimate.left(Progress(finished, total, ParetoFront()))


def test_time_left_comes_from_the_mean_time_per_trial_and_the_workers(
    environment: Environment, finished_search: SearchResult
) -> None:
    estimate = ProgressEstimate(Plan(dataclasses.replace(environment, workers=2)), time.monotonic())
    first, second = (
        dataclasses.replace(result, seconds=seconds)
        for result, seconds in zip(finished_search.results, (10.0, 30.0), strict=False)
    )
    estimate.after(first, ParetoFront())
    assert left(estimate, 1, 5) == "20 s left"  # 10 s per trial, 4 to go, 2 at once
    estimate.after(second, ParetoFront())
    assert left(estimate, 2, 5) == "30 s left"  # 20 s per trial, 3 to go, 2 at once
    assert left(estimate, 5, 5) == ""


def test_with_rungs_time_left_comes_from_the_expected_epochs_and_a_segment_is_no_new_trial(
    environment: Environment, finished_search: SearchResult
) -> None:
    estimate = ProgressEstimate(Plan(environment, epochs=10.0), time.monotonic())
    one = dataclasses.replace(finished_search.results[0], seconds=6.0, rungs=((1, 0.8),))
    estimate.after(one, ParetoFront())
    assert left(estimate, 1, 4) == "54 s left"  # 9 more epochs of 6 s
    estimate.after(dataclasses.replace(one, seconds=9.0, rungs=((1, 0.8), (3, 0.9))), ParetoFront())
    assert left(estimate, 1, 4) == "21 s left"  # 7 of 3 s
    assert left(estimate, 4, 4) == "21 s left"
    longer = dataclasses.replace(finished_search.results[1], rungs=((8, 0.9),))
    estimate.after(longer, ParetoFront())
    assert left(estimate, 4, 4) == ""
    assert trial_text(longer) == "trial 1 di: 96.00% at 1.440 MFLOPs in 3 s, after 8 epochs"


def test_no_more_time_is_left_than_the_limit_leaves(
    environment: Environment, finished_search: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    limited = dataclasses.replace(environment.problem, config=RunConfig(time_limit="1m"))
    estimate = ProgressEstimate(Plan(dataclasses.replace(environment, problem=limited)), began=100.0)
    estimate.after(dataclasses.replace(finished_search.results[0], seconds=40.0), ParetoFront())
    for passed, text in ((0.0, "40 s left"), (35.0, "25 s left"), (90.0, "0 s left")):
        now[0] = 100.0 + passed
        assert left(estimate, 1, 2) == text


def test_the_estimate_says_when_the_hypervolume_last_grew(plan: Plan, finished_search: SearchResult) -> None:
    results, estimate = finished_search.results, ProgressEstimate(plan, time.monotonic())
    assert estimate.after(results[4], ParetoFront()) == "best -, front 0, hypervolume 0.000"
    for front, words in ((1, "just grew"), (1, "grew 1 trial ago"), (1, "grew 2 trials ago"), (2, "just grew")):
        assert estimate.after(results[0], ParetoFront(results[:front])).endswith(f", {words}")


def test_bar_and_state_fit_eighty_columns(
    plan: Plan, finished_search: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with ConsoleProgress(stream) as display:
        display.on_search_start(plan)
        display.on_phase("searching with 2 workers")
        for finished in range(90, 103):
            display.on_trial_end(
                finished_search.results[0], Progress(finished, 500, ParetoFront(finished_search.results))
            )
        assert display._bar is not None
        display._bar.refresh()
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())
    assert "trials 102/500, best 96.00%, front 3, hypervolume 0.861, grew 12 trials ago" in shown
    assert re.search("searching with 2 workers .* 19 min 54 s left", shown)


def test_where_the_cost_of_the_dense_network_is_unknown_there_is_no_hypervolume(
    environment: Environment, finished_search: SearchResult
) -> None:
    timed = dataclasses.replace(environment.problem, config=RunConfig(objective="accuracy,latency"))
    estimate = ProgressEstimate(Plan(dataclasses.replace(environment, problem=timed)), time.monotonic())
    assert estimate.after(finished_search.results[4], ParetoFront()) == "best -, front 0"


def test_a_failed_trial_says_why_in_one_line(finished_search: SearchResult) -> None:
    assert trial_text(finished_search.results[4]) == "trial 4 di failed: RuntimeError: out of memory [gpu]"


def test_a_trial_says_how_many_intermediate_networks_it_has(search_with_intermediates: SearchResult) -> None:
    text = trial_text(search_with_intermediates.results[3])
    assert text == "trial 3 di: 85.00% at 160.0 kFLOPs in 3 s and 3 intermediate networks"
