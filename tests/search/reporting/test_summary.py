import csv
import dataclasses
import io
import json
from pathlib import Path

from rich.console import Console, RenderableType
from search.reporting.plan_table import Plan, plan_table

from configs.schema import RunConfig
from pruning.base import METHODS
from runners.trial import Confirmation
from search.reporting.latency import latency_lines
from search.reporting.summary import failure_lines, front_table, summary, widths_table, write_csv
from search.reporting.wording import ROWS_SHOWN
from search.results.result import SearchResult
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace, SpaceConfig
from spaces.widths import Widths


def text_of(*parts: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    for part in parts:
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def line_with(text: str, *words: str) -> str:
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, (words, text)
    return " ".join(lines[0].split())


def plan_of(space: SearchSpace, search: SearchResult) -> Plan:
    config = RunConfig(budget=("60%",), trials=12, set=("di.way=closed",))
    images = {"train": 1150, "val": 287, "test": 360}
    return Plan(config, space, search.budgets, images, workers=2, threads=1, folder=Path("runs/one"), seconds=190.0)


def test_the_plan_says_costs_budget_images_and_workers(chain_space: SearchSpace, finished_search: SearchResult) -> None:
    text = text_of(plan_table(plan_of(chain_space, finished_search)))
    assert line_with(text, "dense cost") == "dense cost 2.560 MFLOPs, 2.560 kparams"
    assert line_with(text, "reachable") == "reachable 2.000 kFLOPs, 2 params (0.1% of the dense FLOPs)"
    assert line_with(text, "budget") == "budget at most 1.536 MFLOPs (60.0% of dense)"
    assert "1,150 train, 287 val, 360 test" in text
    assert "2 workers with 1 thread each" in text
    assert "about 3 min 10 s" in text
    assert "di.way=closed" in text


def test_the_plan_lists_what_may_vary_and_why_the_rest_may_not(
    chain_space: SearchSpace, finished_search: SearchResult
) -> None:
    space = chain_space.restrict(SpaceConfig(skip=("conv1",), divisor=4))
    text = text_of(plan_table(plan_of(space, finished_search)))
    assert "2 groups of channels may vary (4 layers)" in text
    assert line_with(text, "layer2.conv1") == "layer2.conv1 2 64 8 64 4"
    assert line_with(text, "fc") == "keeps its width: fc (its outputs are the classes)"
    assert line_with(text, "kept by --skip") == "keeps its width: conv1, conv1.twin (kept by --skip)"


def test_an_unknown_time_is_said_to_be_unknown(chain_space: SearchSpace, finished_search: SearchResult) -> None:
    plan = dataclasses.replace(plan_of(chain_space, finished_search), seconds=None)
    assert line_with(text_of(plan_table(plan)), "time") == "time unknown"


def test_long_lists_of_groups_are_cut_and_say_so(chain_space: SearchSpace, finished_search: SearchResult) -> None:
    groups = tuple(ChannelGroup(f"g{i}", 8, 1, 8, producers=(f"g{i}",)) for i in range(ROWS_SHOWN + 5))
    names = chain_space.groups
    space = dataclasses.replace(chain_space, groups=names + groups)
    space.__dict__["dense_cost"], space.__dict__["smallest_cost"] = chain_space.dense_cost, chain_space.smallest_cost
    assert "... and 8 more" in text_of(plan_table(plan_of(space, finished_search)))


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
    return search.with_results([dataclasses.replace(each, confirmation=seeds) for each in search.front])


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


def test_a_front_too_wide_for_a_terminal_wraps_methods_and_keeps_figures_whole(quantised_search: SearchResult) -> None:
    widest = confirmed(longest_named(quantised_search))
    assert columns_of(front_table(widest)) > 80
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(widest))
    text = str(console.file.getvalue())  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    row = line_with(text, "chosen")
    assert row.startswith("1.440 M 56.2% 1.440 k 0.00115 96.00% 93.00±2.00% ")
    assert row.endswith(" 1 chosen")


def test_sizes_are_shown_where_a_net_is_quantised(quantised_search: SearchResult) -> None:
    text = text_of(front_table(quantised_search))
    rows = [" ".join(line.split()) for line in text.splitlines() if "%" in line]
    assert "params MB val test" in " ".join(text.split())
    assert rows[:3] == [
        "2.560 M 100.0% 2.560 k 0.01024 97.00% 96.50% dense",
        "1.440 M 56.2% 1.440 k 0.00115 96.00% 95.00% di 1 chosen",
        "640.0 k 25.0% 640 0.00256 90.00% 89.00% uniform l2 0",
    ]


def test_widths_are_shown_before_and_after(finished_search: SearchResult) -> None:
    chosen = finished_search.chosen
    assert chosen is not None
    text = text_of(widths_table(finished_search, chosen))
    assert line_with(text, "layer2.conv1") == "layer2.conv1 1 64 48 75% " + "#" * 15


def test_a_failure_is_one_line_with_its_reason(finished_search: SearchResult) -> None:
    assert failure_lines(finished_search.results) == [
        "1 trial failed:",
        "  trial 4 (di): RuntimeError: out of memory [gpu]",
    ]


def test_the_summary_ends_with_paths_and_the_command_for_mlflow(finished_search: SearchResult) -> None:
    parts = summary(finished_search, Path("/runs/one"), "mlflow ui --backend-store-uri x")
    lines = [part for part in parts if isinstance(part, str)]
    assert "  front  /runs/one/front.csv" in lines
    assert "MLflow: mlflow ui --backend-store-uri x" in lines
    assert finished_search.uniform_comparison.statement in lines
    assert not any(line.startswith("Stopped early") for line in lines)


def test_an_interrupted_search_says_what_is_kept(finished_search: SearchResult) -> None:
    stopped = dataclasses.replace(finished_search, interrupted=True)
    lines = [part for part in summary(stopped, Path("/runs/one"), "") if isinstance(part, str)]
    assert "Stopped early: 5 finished trials, the front and the report are kept." in lines


def test_a_search_without_any_result_still_reports(finished_search: SearchResult) -> None:
    empty = dataclasses.replace(finished_search, results=())
    assert "Pareto front: 0 networks" in text_of(*summary(empty, Path("/runs/one"), ""))


def test_the_csv_holds_exact_figures_cheapest_first(finished_search: SearchResult, tmp_path: Path) -> None:
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


def test_a_net_passed_on_the_way_is_named_after_its_trial(
    search_with_intermediates: SearchResult, tmp_path: Path
) -> None:
    text = text_of(front_table(search_with_intermediates))
    assert line_with(text, "3.2") == "1.040 M 40.6% 1.040 k 95.00% - di 3.2"
    write_csv(search_with_intermediates, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["3", "0", "3.2", "1"]
    member = search_with_intermediates.results[3].intermediate_networks[1]
    assert "Widths of trial 3.2" in text_of(widths_table(search_with_intermediates, member))


def test_measured_latency_stands_beside_flops_and_a_saving_that_is_not_speed_is_said(
    finished_search: SearchResult,
) -> None:
    member = finished_search.front.members[0]
    name = f"{member.trial.method} trial {member.label}"
    slow = dataclasses.replace(member, note={"flops_ratio": 0.2, "latency_ratio": 1.4})
    lines = latency_lines(finished_search.with_results([slow]))
    assert lines == [f"{name}: 20% of the FLOPs, 1.4x the dense latency: fewer FLOPs, not faster here"]
    compute_format = dataclasses.replace(member, note={"flops_ratio": 0.2, "latency_ratio": 0.9})
    assert latency_lines(finished_search.with_results([compute_format])) == [
        f"{name}: 20% of the FLOPs, 0.9x the dense latency"
    ]
    assert latency_lines(finished_search) == []
    assert lines[0] in text_of(*summary(finished_search.with_results([slow]), Path("runs/one"), ""))
