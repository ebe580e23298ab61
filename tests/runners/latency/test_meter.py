import dataclasses
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from filelock import Timeout
from torch import Tensor, nn

from runners.config import LatencyConfig
from runners.latency import meter as latency
from runners.latency.engines import parse_device
from runners.latency.meter import LatencyMeter, Reading, exclusive, to_plain
from runners.latency.timing import Watch

CONFIG = LatencyConfig("cpu:1thread")
TWO_SIZES = LatencyConfig("cpu:1thread", (1, 8))
SHAPE = (1, 2, 2)


class Clock:
    """Moves with the nets below only; `queue_share` is the share of the time in which threads wait for a core."""

    def __init__(self) -> None:
        self.now, self.queue_share = 0.0, 0.0
        self.watch = Watch(lambda: self.now, lambda: self.now * self.queue_share, lambda seconds: None)


CLOCK = Clock()  # a global: the meter copies nets, and a copy must move the same clock


class Takes(nn.Module):
    """Takes some milliseconds per image of the made-up clock."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds

    def forward(self, images: Tensor) -> Tensor:
        CLOCK.now += len(images) * self.milliseconds / 1000
        return images


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock at zero, on a machine that no process has measured on."""
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    CLOCK.now = CLOCK.queue_share = 0.0
    return CLOCK


def meter(config: LatencyConfig = CONFIG, dense: nn.Module | None = None) -> LatencyMeter:
    return LatencyMeter(config, dense or Takes(20), SHAPE, CLOCK.watch)


def test_the_dense_net_is_exported_once_for_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = list[tuple[nn.Module, int]]()

    def prepare(net: nn.Module, images: Tensor, *_: object) -> latency.Placement:
        prepared.append((net, len(images)))
        return lambda: (net, images)

    monkeypatch.setattr(latency, "prepare", prepare)
    monkeypatch.setattr(latency, "versions", lambda _: {})
    dense, first, second = Takes(20), Takes(5), Takes(10)
    read = meter(dataclasses.replace(TWO_SIZES, engine="onnxruntime"), dense).read
    ratios = [reading.ratio for net in (first, second) for reading in read("7", net)]
    assert ratios == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert prepared.count((dense, 1)) == prepared.count((dense, 8)) == 1
    assert prepared.count((first, 1)) == prepared.count((second, 8)) == 1


def test_a_net_is_read_at_every_batch_size_beside_the_dense_one() -> None:
    one, eight = meter(TWO_SIZES).read("7", Takes(5))
    assert (one.network, one.refused, one.tries) == ("7", "", 1)
    assert one.seconds == pytest.approx(0.005)
    assert one.ratio == pytest.approx(0.25)
    assert eight.seconds == pytest.approx(0.04)
    assert [reading.conditions.batch for reading in (one, eight)] == [1, 8]


def test_every_reading_has_its_conditions() -> None:
    for reading in meter().read("7", Takes(5)):
        conditions = reading.conditions
        assert (conditions.device, conditions.threads, conditions.engine) == ("cpu:1thread", 1, "eager")
        assert conditions.device_name
        assert conditions.versions["torch"] == torch.__version__
        assert Reading.from_plain(to_plain([reading])[0]) == reading


def test_a_busy_machine_gives_figures_and_says_that_they_are_unsteady(clock: Clock) -> None:
    clock.queue_share = 0.4
    for reading in meter().read("7", Takes(5)):
        assert "threads waited for one in 40%" in reading.unsteady
        assert reading.tries > 1
        assert (reading.refused, reading.ratio) == ("", pytest.approx(0.25))


@pytest.mark.parametrize("changes", [{"refused": "noise"}, {"ratio": None}, {"seconds": None, "ratio": None}])
def test_a_reading_is_either_refused_or_has_all_figures(changes: dict[str, object]) -> None:
    good = meter().read("7", Takes(5))[0]
    with pytest.raises(ValueError, match="either refused or has every figure"):
        dataclasses.replace(good, **changes)


ONE = LatencyConfig("cpu:1thread", (1,))


def test_later_readings_are_in_the_seconds_of_the_first() -> None:
    dense = Takes(20)
    timed = meter(ONE, dense)
    assert timed.read("dense", dense)[0].slowdown == pytest.approx(1.0)
    dense.milliseconds = 60  # the machine is slower now
    reading = timed.read("7", Takes(15))[0]
    assert (reading.unsteady, reading.seconds, reading.slowdown) == ("", pytest.approx(0.005), pytest.approx(3.0))


def test_a_process_that_meets_a_slower_machine_corrects_for_it() -> None:
    first = meter(ONE, Takes(20)).read("7", Takes(5))[0]
    later = meter(ONE, Takes(21)).read("7", Takes(5.25))[0]
    assert (first.seconds, first.slowdown) == (pytest.approx(0.005), pytest.approx(1.0))
    assert (later.seconds, later.slowdown) == (pytest.approx(0.005), pytest.approx(1.05))
    assert (first.ratio, later.ratio) == (pytest.approx(0.25), pytest.approx(0.25))


def test_one_lucky_process_has_no_later_ones_refused() -> None:
    assert meter(ONE, Takes(10)).read("7", Takes(2.5))[0].seconds == pytest.approx(0.0025)
    found = [meter(ONE, Takes(20)).read("7", Takes(5))[0] for _ in range(3)]
    assert [reading.refused + reading.unsteady for reading in found] == ["", "", ""]
    assert found[-1].seconds == pytest.approx(0.005)  # of four processes, the lucky one no longer decides


def test_other_conditions_have_an_idle_baseline_of_their_own() -> None:
    assert meter(ONE, Takes(20)).read("7", Takes(5))[0].slowdown == pytest.approx(1.0)
    other = dataclasses.replace(ONE, dtype="bfloat16")
    assert meter(other, Takes(40)).read("7", Takes(5))[0].slowdown == pytest.approx(1.0)


def test_a_busy_machine_sets_no_speed_for_later_processes(clock: Clock) -> None:
    clock.queue_share = 0.4
    assert meter(ONE, Takes(30)).read("7", Takes(15))[0].seconds == pytest.approx(0.015)
    clock.queue_share = 0.0
    assert meter(ONE, Takes(20)).read("7", Takes(10))[0].slowdown == pytest.approx(1.0)


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this\nand more")


def test_a_net_that_does_not_run_is_refused_with_the_reason() -> None:
    reading = meter().read("7", Broken())[0]
    assert reading.refused == "eager cannot run it: no kernel for this"


def test_the_net_and_the_number_of_threads_stay_as_they_are() -> None:
    net, threads = nn.Conv2d(1, 2, 1).train(), torch.get_num_threads()
    meter(LatencyConfig("cpu:1thread", (1,), "bfloat16", True)).read("7", nn.Sequential(net, Takes(5)))
    assert net.training
    assert net.weight.dtype is torch.float32
    assert torch.get_num_threads() == threads


def _hold(folder: str, taken: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    import os

    os.environ["SLIMFRONT_CACHE"] = folder
    with exclusive(parse_device("cpu:1thread")):
        taken.set()
        done.wait(30)


def test_one_process_measures_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    taken, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), taken, done))
    other.start()
    try:
        assert taken.wait(30)
        with pytest.raises(Timeout), exclusive(parse_device("cpu:1thread"), seconds=0.1):
            pass
    finally:
        done.set()
        other.join(30)
    with exclusive(parse_device("cpu:1thread"), seconds=0.1):
        pass


def test_a_locked_device_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(device: object) -> Sequence[object]:
        raise Timeout("a lock")

    monkeypatch.setattr(latency, "exclusive", taken)
    assert "another process has measured on cpu:1thread" in meter().read("7", Takes(5))[0].refused
