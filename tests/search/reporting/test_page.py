import dataclasses
from pathlib import Path

from search.reporting.page import hover_text, write_html
from search.reporting.rows import dense_row, network_row
from search.results.result import SearchResult
from spaces.widths import Widths


def test_the_page_stands_alone_and_shows_the_front(finished_search: SearchResult, tmp_path: Path) -> None:
    write_html(finished_search, tmp_path / "front.html")
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<script src=" not in text
    assert "Plotly.newPlot" in text
    body = text[text.rindex("<table>") :]
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
        body = (tmp_path / "front.html").read_text(encoding="utf-8").rpartition("<table>")[2]
        assert ("<th>MB</th>" in body) is shown
        assert ("<td>0.00115</td>" in body) is shown
        assert body.count("<th>") == body.partition("</tr>")[2].partition("</tr>")[0].count("<td>")


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
    body = text[text.rindex("<table>") :]
    assert "trial 3.2: di" in body
    assert "trial 3.1" not in body  # above the budget: drawn, but on no front
    assert "trial 3.1" in text
