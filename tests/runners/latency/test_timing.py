import dataclasses
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from runners.latency.timing import (
    AIMED,
    BLOCK_PAUSE,
    BLOCKS,
    NARROW,
    ROUNDS,
    TRIES,
    WIDEST,
    Quiet,
    Timing,
    Watch,
    latency_ratio,
    quiet_seconds,
    steady,
)


class Busy(nn.Module):
    """Works for some milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.seconds = milliseconds / 1000
        self.shapes: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        self.modes.append(self.training)
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return x


class Machine:
    """A made-up machine whose clock moves with what is called, and only with that.

    Args:
        pace: second of the clock -> how many times as long as usual everything takes then.
        waits: share of the time in which threads wait for a core.
    """

    def __init__(self, pace: Callable[[float], float] = lambda now: 1.0, waits: float = 0.0) -> None:
        self.now, self.pauses = 0.0, list[float]()
        self._pace, self._waits, self._calls = pace, waits, 0
        self.watch = Watch(lambda: self.now, lambda: self.now * self._waits, self.pauses.append)

    def net(self, seconds: float, noise: float = 0.0) -> Callable[[], None]:
        """Return a call that takes so long, plus or minus a share that differs from call to call."""

        def call() -> None:
            self._calls += 1
            wobble = 1 + noise * (self._calls * 0.6180339887 % 1 - 0.5) * 2
            self.now += seconds * wobble * self._pace(self.now)

        return call

    def timed(self, seconds: float = 0.02, noise: float = 0.0, quiet: float | None = None) -> Timing:
        known = None if quiet is None else Quiet(quiet, "; or move")
        return steady(self.net(seconds, noise), self.net(0.04), self.watch, known)


def test_the_ratio_is_of_single_images_in_evaluation_mode():
    narrow, dense = Busy(2).train(), Busy(8).eval()
    ratio = latency_ratio(narrow, dense, (3, 4, 4), torch.device("cpu"))
    assert 0.1 < ratio < 0.6
    assert set(narrow.shapes) == {(1, 3, 4, 4)}
    assert not any(narrow.modes)
    assert narrow.training
    assert not dense.training


def test_a_machine_that_keeps_still_gives_a_figure_at_once():
    machine = Machine()
    timing = machine.timed()
    assert (timing.problem, timing.tries, machine.pauses) == ("", 1, [])
    assert timing.median == pytest.approx(0.02)
    assert timing.low <= timing.median <= timing.high
    assert timing.ratio == pytest.approx(0.5)


def test_a_net_of_microseconds_is_timed_over_many_calls():
    timing = Machine().timed(seconds=5e-6)
    assert timing.problem == ""
    assert timing.median == pytest.approx(5e-6)


def test_little_noise_is_taken():
    timing = Machine().timed(noise=0.02)
    assert timing.problem == ""
    assert timing.median == pytest.approx(0.02, rel=0.02)
    assert timing.low < timing.high


def test_noise_is_refused_after_a_few_tries():
    machine = Machine()
    timing = machine.timed(noise=0.4)
    assert "95% interval is" in timing.problem
    assert timing.tries == TRIES
    assert machine.pauses == [0.5, 1.0, 2.0, 4.0]


def test_noise_that_more_turns_average_out_is_taken_in_the_end():
    timing = Machine().timed(noise=0.12)
    assert timing.problem == ""
    assert 1 < timing.tries < TRIES
    assert timing.median == pytest.approx(0.02, rel=0.02)


def test_an_interval_that_could_be_narrower_is_taken_in_the_end():
    timing = Machine().timed(noise=0.2)
    assert timing.problem == ""
    assert AIMED <= timing.tries < TRIES
    assert NARROW < timing.width <= WIDEST


def test_the_narrowest_interval_is_kept_when_the_machine_is_disturbed_later():
    machine = Machine(pace=lambda now: 1.0 + max(0.0, now - 4.0))
    timing = machine.timed(noise=0.06)
    assert timing.problem == ""
    assert timing.tries > 1
    assert timing.median == pytest.approx(0.02, rel=0.02)


def test_a_machine_that_gets_slower_is_refused():
    timing = Machine(pace=lambda now: 1 + now).timed()
    assert "reference net drifted by" in timing.problem
    assert timing.tries == TRIES


def test_a_machine_that_was_disturbed_for_a_while_is_measured_again():
    machine = Machine(pace=lambda now: 2.0 if 1.5 < now < 5.0 else 1.0)
    timing = machine.timed()
    assert timing.problem == ""
    assert 1 < timing.tries <= TRIES
    assert timing.median == pytest.approx(0.02)


def test_an_even_load_shows_in_the_time_that_threads_wait():
    """Neither the interval nor the reference tells: everything takes twice as long, always."""
    timing = Machine(pace=lambda now: 2.0, waits=0.5).timed()
    assert "threads waited for one in 50% of the time" in timing.problem
    assert Machine(waits=0.01).timed().problem == ""


@pytest.mark.parametrize("quiet", [0.04, 0.0405, 0.033, 0.048])
def test_a_machine_a_little_off_the_quiet_one_is_corrected_for(quiet: float):
    timing = Machine().timed(quiet=quiet)
    assert timing.problem == ""
    assert timing.ratio == pytest.approx(0.5)
    assert timing.median == pytest.approx(0.5 * quiet)
    assert timing.low <= timing.median <= timing.high
    assert timing.pace == pytest.approx(0.04 / quiet)


@pytest.mark.parametrize(("quiet", "pace"), [(0.03, "1.33"), (0.06, "0.67")])
def test_a_machine_far_off_the_quiet_one_is_refused(quiet: float, pace: str):
    timing = Machine().timed(quiet=quiet)
    assert f"takes {pace} times as long as on the quiet machine" in timing.problem
    assert timing.problem.endswith("(up to 25% off is corrected; or move)")


def test_what_both_nets_meet_does_not_widen_the_interval():
    timing = Machine(pace=lambda now: 1 + 0.02 * (int(now * 5) % 2)).timed(seconds=0.04)
    assert timing.problem == ""
    assert timing.high - timing.low < 0.01 * timing.median


def test_the_quiet_machine_is_found_between_disturbances():
    machine = Machine(pace=lambda now: 1.3 if 0.6 < now < 2.0 else 1.0)
    assert quiet_seconds(machine.net(0.04), machine.watch) == pytest.approx(0.04)
    assert machine.pauses == [BLOCK_PAUSE] * (BLOCKS - 1)


def test_a_clock_that_jumped_once_is_not_the_quiet_machine():
    machine = Machine(pace=lambda now: 0.1 if 0.4 < now < 0.42 else 1.0)
    assert quiet_seconds(machine.net(0.04), machine.watch) == pytest.approx(0.04)


def test_while_others_hold_the_cores_nobody_knows_the_quiet_machine():
    machine = Machine(waits=0.3)
    assert quiet_seconds(machine.net(0.04), machine.watch) is None


def test_slow_nets_are_timed_in_fewer_rounds():
    machine = Machine()
    calls: Sequence[Timing] = [machine.timed(seconds=4.0)]
    assert calls[0].problem == ""
    assert machine.now < ROUNDS * 4.0


def test_a_timing_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Machine().timed().median = 1.0  # type: ignore[misc]
