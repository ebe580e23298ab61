"""What a notebook shows of a result, and the table, picture and networks that it gives."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from pruning import checkpoint
from search import orchestrator
from search.results.result import SearchResult
from search.results.serialization import ResultError


def test_a_row_per_network_says_what_is_on_the_front(finished_search: SearchResult) -> None:
    frame = finished_search.to_dataframe().set_index("network")
    assert list(frame.index) == ["0", "1", "2", "3", "4"]
    assert set(frame.index[frame["on_front"]]) == {network.label for network in finished_search.front}
    assert list(frame.index[frame["chosen"]]) == [finished_search.chosen.label]
    first = finished_search.results[0]
    assert frame.loc["0", "flops"] == first.cost.flops
    assert [frame.loc["0", f"width.{name}"] for name in first.widths] == list(first.widths.values())
    assert frame.loc["4"].isna()[["accuracy", "flops", "latency"]].all()


def test_the_front_is_shown_with_its_figures(finished_search: SearchResult) -> None:
    shown = finished_search._repr_html_()
    chosen = finished_search.chosen
    assert f"{chosen.cost.flops:,}" in shown
    assert "96.00%" in shown
    assert shown.count("<tr") == 1 + len(finished_search.front)


def test_the_picture_has_every_measured_network(finished_search: SearchResult, monkeypatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    axes = finished_search.plot()
    (points,) = axes.collections
    measured = {(network.cost.flops, network.accuracy) for network in finished_search.results[:4]}
    assert {tuple(point) for point in points.get_offsets().tolist()} == measured
    assert len(axes.lines[0].get_xdata()) == len(finished_search.front)
    axes.figure.clear()


def test_a_network_is_loaded_by_its_number(finished_search: SearchResult, tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    checkpoint.save(tmp_path / "one.safetensors", net, None, {})
    first = dataclasses.replace(finished_search.results[0], path="one.safetensors")
    result = dataclasses.replace(finished_search.with_results([first]), folder=str(tmp_path))
    assert result.load(0, nn.Linear(3, 2)).weight.tolist() == net.weight.tolist()
    with pytest.raises(ResultError, match="no network '9'"):
        result.load(9)
    with pytest.raises(ResultError, match="no weights"):
        result.load(1)
    with pytest.raises(ResultError, match="read_result"):
        finished_search.load(0)
    assert "folder" not in result.to_dict()


def test_a_notebook_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=shell))
    assert orchestrator._in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not orchestrator._in_notebook()
