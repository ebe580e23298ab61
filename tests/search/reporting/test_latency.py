import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from runners.latency.meter import Conditions, Reading, to_plain
from search.reporting.latency import (
    FASTER,
    latency_cells,
    latency_columns,
    latency_heads,
    latency_metrics,
    latency_statements,
    latency_table,
)
from search.reporting.page.report import write_html
from search.reporting.picture import picture_of, write_png
from search.reporting.rows import front_columns, write_csv
from search.reporting.summary import summary
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.cost import Cost

CONDITIONS = Conditions("cpu:1thread", "Made-up 3000", 1, 1, "float32", False, "eager", {"torch": "2.6"})
MILLISECONDS = {"dense": 10.0, "1": 8.0, "0": 9.8, "3": None}  # None: refused


def reading(network: str, batch: int) -> Reading:
    conditions = dataclasses.replace(CONDITIONS, batch=batch)
    milliseconds = MILLISECONDS[network]
    if milliseconds is None:
        return Reading(network, conditions, "the machine was busy", tries=4)
    seconds = batch * milliseconds / 1000
    ratio = milliseconds / 10
    return Reading(network, conditions, "", seconds, 0.99 * seconds, 1.01 * seconds, ratio)


@pytest.fixture
def timed_search(finished_search: SearchResult) -> SearchResult:
    """The made-up search with its front (1, 0 and 3) measured: faster, no faster, and refused."""
    measured = {network: to_plain([reading(network, batch) for batch in (1, 8)]) for network in MILLISECONDS}
    return dataclasses.replace(finished_search, latency=measured)


def text_of(result: SearchResult, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in summary(result, Path("runs/one"), ""):
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_latency_survives_the_round_trip(timed_search: SearchResult) -> None:
    assert SearchResult.from_json(timed_search.to_json()) == timed_search


def test_a_result_of_before_has_no_latency(finished_search: SearchResult) -> None:
    data = finished_search.to_dict()
    del data["latency"]
    assert SearchResult.from_json(json.dumps(data)) == finished_search


def test_the_terminal_shows_latency_beside_flops(timed_search: SearchResult) -> None:
    lines = [" ".join(line.split()) for line in text_of(timed_search).splitlines()]
    assert "Latency on cpu:1thread (Made-up 3000), eager, float32" in lines
    assert "dense 100.0% 1 10 9.9 to 10.1 100.0%" in lines
    assert "1 56.2% 8 64 63.36 to 64.64 80.0%" in lines
    assert "3 6.2% 1 refused - -" in lines


def test_the_table_fits_a_terminal_of_80_columns(timed_search: SearchResult) -> None:
    console = Console(file=io.StringIO(), width=200)  # a narrower one would bound what it measures
    table = latency_table(timed_search)
    assert table is not None
    assert console.measure(table).maximum <= 80


def test_a_correction_for_a_slower_machine_is_told(timed_search: SearchResult) -> None:
    def at_slowdown(slowdown: float) -> list[str]:
        timed = to_plain([dataclasses.replace(reading("1", 1), slowdown=slowdown)])
        return latency_statements(dataclasses.replace(timed_search, latency={**timed_search.latency, "1": timed}))

    assert any("the dense net took 1.06 to 1.06 times as long" in line for line in at_slowdown(1.06))
    assert at_slowdown(1.01) == latency_statements(timed_search)


def test_a_saving_that_is_no_speed_and_a_refusal_are_named(timed_search: SearchResult) -> None:
    slow = "l2 trial 0: 25% of the FLOPs, 0.98x the dense latency at batch"
    refused = "refused after 4 tries: the machine was busy"
    assert latency_statements(timed_search) == [
        f"{slow} 1: fewer FLOPs, not faster on cpu:1thread",
        f"{slow} 8: fewer FLOPs, not faster on cpu:1thread",
        f"di trial 3: latency at batch 1 {refused}",
        f"di trial 3: latency at batch 8 {refused}",
    ]
    assert MILLISECONDS["0"] is not None
    assert MILLISECONDS["0"] / 10 > FASTER


def test_what_is_measured_wins_over_what_a_method_noted(timed_search: SearchResult) -> None:
    noted = [dataclasses.replace(m, note={"flops_ratio": 0.2, "latency_ratio": 1.4}) for m in timed_search.front]
    assert latency_statements(timed_search.with_results(noted)) == latency_statements(timed_search)
    assert len(latency_statements(dataclasses.replace(timed_search.with_results(noted), latency={}))) == len(noted)


def test_a_refused_reading_gives_no_number_anywhere(timed_search: SearchResult, tmp_path: Path) -> None:
    assert latency_metrics(timed_search, "3") == {}
    found = latency_columns(timed_search, "3")
    assert {name for name, value in found.items() if value is not None} == {
        "latency_refused_batch1",
        "latency_refused_batch8",
    }
    assert latency_cells(timed_search, "3") == ["refused", "-", "refused", "-"]


def test_a_refused_dense_net_is_said(timed_search: SearchResult) -> None:
    busy = [dataclasses.replace(reading("3", batch), network="dense") for batch in (1, 8)]
    lines = latency_statements(
        dataclasses.replace(timed_search, latency={**timed_search.latency, "dense": to_plain(busy)})
    )
    assert lines[0] == "dense net: latency at batch 1 refused after 4 tries: the machine was busy"


def test_the_csv_has_a_column_per_number(timed_search: SearchResult, tmp_path: Path) -> None:
    write_csv(timed_search, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open() as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert float(rows["1"]["latency_ms_batch8"]) == 64
    assert float(rows["1"]["latency_of_dense_batch8"]) == 0.8
    assert rows["3"]["latency_ms_batch8"] == ""
    assert rows["3"]["latency_refused_batch8"] == "the machine was busy"


def test_the_page_has_columns_and_sentences(
    timed_search: SearchResult, finished_search: SearchResult, tmp_path: Path
) -> None:
    for search, shown in ((timed_search, True), (finished_search, False)):
        write_html(search, tmp_path / "report.html")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        body = text.partition('<table id="networks">')[2].partition("</table>")[0].replace(' scope="col"', "")
        assert ("<th>ms, batch 8</th><th>of dense</th>" in body) is shown
        assert ("<td>64</td><td>80.0%</td>" in body) is shown
        assert ("fewer FLOPs, not faster on cpu:1thread" in text) is shown
        assert body.count("<th>") == body.partition("</tr>")[2].partition("</tr>")[0].count("<td>")


def test_mlflow_gets_columns_and_metrics(timed_search: SearchResult) -> None:
    table = front_columns(timed_search)
    assert table["latency_ms_batch1"] == [None, 9.8, 8.0]
    assert len({len(column) for column in table.values()}) == 1
    assert latency_metrics(timed_search, "1")["latency_of_dense_batch1"] == 0.8


def test_the_best_at_a_target_has_its_latency_shown_off_the_front_too(timed_search: SearchResult) -> None:
    uniform = timed_search.results[0].cost
    assert uniform is not None
    dearer = Cost(uniform.flops + 1, uniform.params - 1)  # so the uniform network beats it
    better = dataclasses.replace(timed_search.results[2], accuracy=0.88, test_accuracy=0.87, cost=dearer)
    answered = dataclasses.replace(
        timed_search.with_results([better]),
        targets=(Budget("params", dearer.params),),
        latency={**timed_search.latency, "2": timed_search.latency["0"]},
    )
    assert [member.label for member in answered.front] == ["3", "0", "1"]
    assert [member.label for member in answered.reported] == ["3", "0", "1", "2"]
    table = front_columns(answered)
    assert table["latency_ms_batch1"] == [None, 9.8, 8.0, 9.8]
    assert {len(column) for column in table.values()} == {4}
    assert any("di trial 2: " in line for line in latency_statements(answered))


def test_nothing_is_shown_where_nothing_was_measured(finished_search: SearchResult) -> None:
    assert latency_table(finished_search) is None
    assert (latency_heads(finished_search), latency_statements(finished_search)) == ([], [])
    assert (latency_columns(finished_search, "1"), latency_cells(finished_search, "1")) == ({}, [])


def test_a_net_that_was_not_measured_says_so(timed_search: SearchResult) -> None:
    left = {network: read for network, read in timed_search.latency.items() if network != "1"}
    search = dataclasses.replace(timed_search, latency=left)
    assert latency_cells(search, "1") == ["-"] * 4
    assert latency_columns(search, "1")["latency_refused_batch1"] == "not measured"


@pytest.fixture
def search_by_latency(timed_search: SearchResult) -> SearchResult:
    """Latency limited to 9 ms and the axis: 1 (8 ms) is inside, 0 (9.8 ms) over it, 3 refused, 2 never measured."""
    measured = {number: tuple(to_plain([reading(number, 1)])) for number in ("0", "1", "3")}
    results = [dataclasses.replace(r, latency=measured.get(r.label, ())) for r in timed_search.results]
    error = {"median": 0.03, "upper": 0.07, "nets": 20}
    return dataclasses.replace(
        timed_search,
        results=tuple(results),
        budgets=(*timed_search.budgets, Budget("latency", 0.009)),
        config={**timed_search.config, "objective": "accuracy,latency"},
        latency_model={"seconds": 12.0, "cached": False, "error": error, "during": {**error, "nets": 3}},
    )


def test_only_what_measured_inside_is_on_the_front_and_the_rest_is_accounted_for(
    search_by_latency: SearchResult,
) -> None:
    assert [member.label for member in search_by_latency.front] == ["1"]
    assert latency_statements(search_by_latency) == [
        "di trial 3: latency at batch 1 refused after 4 tries: the machine was busy; so it is not on the front",
        "over the latency budget by what they measured: trial 0 (9.8 ms)",
        "1 network inside the other budgets not measured: beaten by what was, predicted far over the limit, or the "
        "search was stopped before",
        "latency model, built in 12 s: off by 3.0% at the median and 7.0% at the 90% quantile over 20 random networks "
        "it had not seen, by 3.0% at the median and 7.0% at the 90% quantile over 3 of the search before it learned "
        "them",
    ]


def test_a_search_by_latency_survives_the_round_trip(search_by_latency: SearchResult) -> None:
    again = SearchResult.from_json(search_by_latency.to_json())
    assert again == search_by_latency
    assert again.results[1].timed == search_by_latency.results[1].timed


def test_the_picture_is_drawn_over_milliseconds(search_by_latency: SearchResult, tmp_path: Path) -> None:
    picture = picture_of(search_by_latency)
    assert (picture.axis.unit, picture.axis.title) == ("ms", "measured latency (ms, log scale)")
    assert sorted(network.label for series in picture.series for network in series.networks) == ["0", "1"]
    assert picture.limits == ((pytest.approx(9), "budget 9 ms"),)
    xs, ys = picture.steps
    assert xs == pytest.approx([8, 9])
    assert ys == pytest.approx([96, 96])
    assert picture.dense == pytest.approx((10, 97))
    write_png(search_by_latency, tmp_path / "front.png")
    write_html(search_by_latency, tmp_path / "report.html")
    assert "measured latency (ms, log scale)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "accuracy over latency" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_dense_net_that_was_refused_has_no_place_in_the_picture(
    search_by_latency: SearchResult, tmp_path: Path
) -> None:
    busy = to_plain([dataclasses.replace(reading("3", 1), network="dense")])
    search = dataclasses.replace(search_by_latency, latency={**search_by_latency.latency, "dense": busy})
    assert picture_of(search).dense[0] is None
    write_png(search, tmp_path / "front.png")
    write_html(search, tmp_path / "report.html")
    assert (tmp_path / "front.png").stat().st_size > 1_000


def test_a_latency_that_a_method_noted_is_said_where_nothing_was_measured(finished_search: SearchResult) -> None:
    member = finished_search.front.members[0]
    name = f"{member.trial.method} trial {member.label}"

    def noted(ratio: float) -> list[str]:
        changed = dataclasses.replace(member, note={"flops_ratio": 0.2, "latency_ratio": ratio})
        return latency_statements(finished_search.with_results([changed]))

    assert noted(1.4) == [f"{name}: 20% of the FLOPs, 1.4x the dense latency: fewer FLOPs, not faster here"]
    assert noted(0.9) == [f"{name}: 20% of the FLOPs, 0.9x the dense latency"]
