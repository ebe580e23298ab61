import base64
import dataclasses
import gzip
import json
import random
import shutil
from pathlib import Path

import pytest

from search.reporting.page.report import hover_text, write_html
from search.reporting.page.shapes import network_shapes
from search.reporting.page.trials import HEADS, packed_rows, trial_rows
from search.reporting.rows import dense_row, network_row
from search.results.result import SearchResult
from spaces.cost import Cost
from spaces.widths import Widths


def networks_table(text: str) -> str:
    return text.partition('<table id="networks">')[2].partition("</table>")[0]


def test_the_page_stands_alone_and_shows_the_front(finished_search: SearchResult, tmp_path: Path) -> None:
    write_html(finished_search, tmp_path / "front.html")
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<script src=" not in text
    assert "Plotly.newPlot" in text
    body = networks_table(text)
    order = [body.index(words) for words in ("dense", "trial 1: di", "trial 0: l2 (uniform widths)", "trial 3: di")]
    assert order == sorted(order)
    assert "1,440,000" in body
    assert finished_search.baseline_comparison.statement in text
    assert "still improving" not in text


def test_the_page_shows_sizes_where_a_network_is_quantised(
    finished_search: SearchResult, quantised_search: SearchResult, tmp_path: Path
) -> None:
    for search, shown in ((finished_search, False), (quantised_search, True)):
        write_html(search, tmp_path / "front.html")
        body = networks_table((tmp_path / "front.html").read_text(encoding="utf-8"))
        assert (">MB</th>" in body) is shown
        assert ("<td>0.00115</td>" in body) is shown
        assert body.count("<th ") == body.partition("</tr>")[2].partition("</tr>")[0].count("<td>")


def test_hovering_shows_numbers_and_widths_before_and_after(finished_search: SearchResult) -> None:
    text = hover_text(network_row(finished_search, finished_search.results[1]))
    assert "<b>trial 1</b>, di<br>1.440 MFLOPs, 1.440 kparams<br>validation 96.00%, test 95.00%" in text
    assert "conv1 16→12, layer1.conv1 32→24, layer2.conv1 64→48" in text
    assert hover_text(dense_row(finished_search)).startswith("<b>dense network</b><br>2.560 MFLOPs, 2.560 kparams<br>")


def test_a_hover_box_stays_on_the_screen(finished_search: SearchResult) -> None:
    many = Widths({f"g{i}": 8 for i in range(30)})
    text = hover_text(network_row(finished_search, dataclasses.replace(finished_search.results[1], widths=many)))
    assert text.endswith("and 6 more groups")


def test_names_are_escaped(finished_search: SearchResult, tmp_path: Path) -> None:
    config = {**finished_search.config, "model": "<script>alert(1)</script>"}
    write_html(dataclasses.replace(finished_search, config=config), tmp_path / "front.html")
    assert "<script>alert" not in (tmp_path / "front.html").read_text(encoding="utf-8")


def test_an_intermediate_network_is_in_table_and_picture(
    search_with_intermediates: SearchResult, tmp_path: Path
) -> None:
    write_html(search_with_intermediates, tmp_path / "front.html")
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    body = networks_table(text)
    assert "trial 3.2: di" in body
    assert "trial 3.1" not in body  # above the budget: drawn, but on no front
    assert "trial 3.1" in text


def test_the_page_has_every_section_and_repeats_the_run(finished_search: SearchResult, tmp_path: Path) -> None:
    versions = {"torch": "2.15.0"}
    write_html(dataclasses.replace(finished_search, versions=versions), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(text) < 2_500_000
    assert "<pre>python -m search --budget 60%</pre>" in text
    assert "torch 2.15.0" in text
    for section in ("front", "baseline", "shapes", "curves", "trials", "repeat"):
        assert f'<section id="{section}">' in text
        assert f'href="#{section}"' in text


def test_the_shape_of_a_network_has_a_bar_per_group(finished_search: SearchResult) -> None:
    first = network_shapes(finished_search)[0]
    assert first.name.startswith("trial 1: di, 96.00%")
    # The widest group is 64: 12 of 16, 24 of 32 and 48 of 64 are 3/4 of bars of 25, 50 and 100.
    assert [(bar.dense_height, bar.kept_height) for bar in first.bars] == [(25, 18.75), (50, 37.5), (100, 75)]
    assert first.bars[0].text == "conv1: 12 of 16 channels, 75%"
    assert "keep 75% of their channels" in first.text


def test_a_trial_takes_few_bytes_of_the_page(finished_search: SearchResult) -> None:
    first, draw = finished_search.results[0], random.Random(0)
    trials = []
    for number in range(1000):
        cost = Cost(draw.randrange(10**9), draw.randrange(10**7), draw.randrange(10**7))
        trial = dataclasses.replace(first.trial, number=number, method=draw.choice(["di", "l2"]))
        trials.append(dataclasses.replace(first, trial=trial, cost=cost, accuracy=draw.random(), seconds=draw.random()))
    rows = trial_rows(dataclasses.replace(finished_search, results=tuple(trials)))
    text = packed_rows(rows)
    assert len(text) < 70 * len(rows)
    columns = json.loads(gzip.decompress(base64.b64decode(text)))["columns"]
    assert [column["texts"] for column in columns] == [
        [row.cells[place].text for row in rows] for place in range(len(HEADS))
    ]
    assert columns[HEADS.index("FLOPs")]["numbers"] == [trial.cost.flops for trial in trials]


def test_the_table_of_trials_sorts_by_number_and_filters_in_a_browser(
    search_with_intermediates: SearchResult, tmp_path: Path
) -> None:
    browser = shutil.which("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    if browser is None:
        pytest.skip("no chromium is installed")
    write_html(search_with_intermediates, tmp_path / "page.html")
    with playwright.sync_playwright() as drive:
        opened = drive.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page, errors = opened.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("#all tbody tr")
        page.wait_for_selector("#front .chart .scatterlayer .point")
        networks = page.locator("#all tbody td:first-child")
        assert networks.all_inner_texts() == ["0", "1", "2", "3", "3.1", "3.2", "3.3", "4"]
        head = page.get_by_role("region", name="all trials").get_by_role("columnheader", name="FLOPs", exact=True)
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        # By number, not by text; the failure, which has no cost, is last.
        costs = [
            float(cell.get_attribute("data-number") or "inf")
            for cell in page.locator("#all tbody td:nth-child(4)").all()
        ]
        assert costs == sorted(costs)
        assert costs[-1] == float("inf")
        assert head.get_attribute("aria-sort") == "ascending"
        page.get_by_label("Filter").fill("uniform")
        assert networks.all_inner_texts() == ["0"]
        assert page.get_by_role("status").inner_text() == "1 of 8 shown"
        opened.close()
    assert errors == []
