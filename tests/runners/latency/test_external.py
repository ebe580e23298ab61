"""Readings of networks that a bench elsewhere measures: a board of a formula stands for one."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.formats import FORMATS
from runners.config import LatencyConfig
from runners.latency.engines import LatencyError
from runners.latency.external import AwayError, BenchError, Comparison, ExternalMeter, check_bench
from runners.latency.meter import Reading

CONFIG = LatencyConfig(command="board {model}", format="state_dict")
SHAPE = (1, 2, 2)


def wide(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, channels, 1, bias=False))


class Board:
    """Takes a millisecond per channel, times a factor per turn that tells how slow it is; fails when told to."""

    name = "board {model}"
    places = 1

    def __init__(self, *factors: float) -> None:
        self.factors: Iterator[float] = iter(factors) if factors else iter(lambda: 1.0, 0.0)
        self.failures: list[BenchError] = []
        self.own_noise, self.calls, self.files = [1.0], 0, list[Path]()

    def compare(self, network: Path, dense: Path, batch: int, rounds: int) -> Comparison:
        self.calls += 1
        self.files += [network, dense]
        if self.failures:
            raise self.failures.pop()
        own, beside = (torch.load(path, weights_only=True)["0.weight"].shape[0] / 1000 for path in (network, dense))
        slow = [next(self.factors) for _ in range(rounds)]
        noise = [self.own_noise[turn % len(self.own_noise)] for turn in range(rounds)]
        turns = tuple((own * s * n, beside * s) for s, n in zip(slow, noise, strict=True))
        return Comparison(turns, 12.0, {"celsius": 50})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))


def meter(board: Board, dense: nn.Module | None = None) -> ExternalMeter:
    return ExternalMeter(CONFIG, dense or wide(20), SHAPE, board, pause=lambda seconds: None)


def test_a_reading_is_the_ratio_to_the_dense_net_times_its_seconds() -> None:
    reading = meter(Board()).read("7", wide(5))[0]
    assert reading.seconds == reading.low == reading.high == pytest.approx(0.005)
    assert (reading.ratio, reading.tries, reading.refused, reading.unsteady) == (pytest.approx(0.25), 1, "", "")
    assert (reading.millijoules, dict(reading.details)) == (12.0, {"celsius": 50})
    assert (reading.conditions.device_name, reading.conditions.engine) == ("board {model}", "state_dict")
    assert Reading.from_plain(dataclasses.asdict(reading)) == reading


def test_a_board_that_becomes_slower_as_a_whole_changes_no_latency() -> None:
    board = Board()
    timed = meter(board)
    assert timed.read("dense", timed.dense)[0].seconds == pytest.approx(0.020)
    board.factors = iter([1.0, 3.0, 2.0, 3.0, 1.5, 3.0])
    reading = timed.read("7", wide(5))[0]
    assert reading.seconds == pytest.approx(0.005)
    assert reading.slowdown == pytest.approx(2.5)


def test_a_wide_interval_is_measured_on_and_then_told() -> None:
    board = Board()
    board.own_noise = [1.0, 1.5]
    reading = meter(board).read("7", wide(10))[0]
    assert reading.tries == 3  # 6, 6 and 12 turns
    assert "interval is 40.0% of the median wide" in reading.unsteady
    assert (reading.low, reading.high) == (pytest.approx(0.010), pytest.approx(0.015))


def test_one_failure_is_tried_again_and_two_refuse_the_reading() -> None:
    board = Board()
    board.failures = [BenchError("hiccup")]
    assert meter(board).read("7", wide(5))[0].refused == ""
    board.failures = [BenchError("second"), BenchError("first")]
    reading = meter(board).read("7", wide(5))[0]
    assert (reading.refused, reading.seconds, reading.away) == ("second", None, False)


def test_a_board_that_does_not_answer_is_away() -> None:
    board = Board()
    board.failures = [AwayError("no route"), AwayError("no route")]
    assert meter(board).read("7", wide(5))[0].away


def test_a_net_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, path: Path) -> None:
        raise RuntimeError("an operator is missing")

    monkeypatch.setitem(FORMATS, "state_dict", dataclasses.replace(FORMATS["state_dict"], write=fail))  # type: ignore[arg-type]
    assert "cannot be written as state_dict (an operator is missing)" in meter(Board()).read("7", wide(5))[0].refused


def test_files_of_networks_are_removed_and_the_dense_one_is_written_once() -> None:
    board = Board()
    timed = meter(board)
    timed.read("7", wide(5))
    timed.read("8", wide(6))
    network, dense = board.files[:2]
    assert not network.exists()
    assert dense.exists()
    assert {path.name for path in board.files} == {"network0-batch1.pt", "network1-batch1.pt", "dense-batch1.pt"}


def test_brief_ratios_and_seconds_take_few_turns() -> None:
    timed = meter(Board(2.0, 2.0, 2.0, 2.0))
    with timed.ratios() as ratio_of:
        assert ratio_of(wide(5)) == pytest.approx(0.25)
    assert timed.brief_seconds(wide(5)) == pytest.approx(0.010)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ([(1.0, 2.0), (1.1, 2.0), (0.9, 2.0)], ""),  # the intervals overlap
        ([(1.02, 2.0)] * 3, ""),  # apart, and close
        ([(0.6, 1.0)] * 3, "the smallest network takes 50.0% on a, 60.0% on b of the dense one's time; name agents"),
        ([(1.5, 3.0)] * 3, "the dense network takes 2000 ms on a, 3000 ms on b; name agents of one kind, or see"),
    ],
)
def test_boards_that_disagree_are_named(second: list[tuple[float, float]], said: str) -> None:
    class Boards(Board):
        places = 2

        def compare_all(self, network: Path, dense: Path, rounds: int) -> dict[str, Comparison]:
            assert network.exists()
            assert dense.exists()
            assert rounds >= 6
            return {"a": Comparison(((1.0, 2.0),) * 3), "b": Comparison(tuple(second))}

    found = meter(Boards()).disagreement(wide(5))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_bench_that_fails_is_refused_before_the_search() -> None:
    board = Board()
    board.failures = [BenchError("wrong token"), BenchError("wrong token")]
    with pytest.raises(LatencyError, match="a first measurement, of a small network, failed: wrong token"):
        check_bench(CONFIG, board)
