import dataclasses
import time
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from runners.latency.timing import (
    CONFIDENCE,
    IDLE_BLOCK_PAUSE,
    IDLE_BLOCKS,
    MAX_PLACES,
    MAX_WIDTH,
    NARROW_WIDTH,
    PLACES,
    SINGLE_SECONDS,
    TRIES,
    TURNS,
    Timing,
    Watch,
    fastest,
    latency_ratio,
    measure_idle_seconds,
    median_interval,
    run_queue_delay,
    single_ratio,
    steady_timing,
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
    """A made-up machine whose clock moves with the calls of its nets only.

    Args:
        slowdown: second of the clock -> factor on the seconds of a call that starts then.
        queue_share: share of the time in which threads wait for a core.
    """

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0, queue_share: float = 0.0) -> None:
        self.now, self.pauses, self.places = 0.0, list[float](), 0
        self._slowdown, self._queue_share, self._calls = slowdown, queue_share, 0
        self.watch = Watch(lambda: self.now, lambda: self.now * self._queue_share, self.pauses.append)

    def net(self, seconds: float, noise: float = 0.0) -> Callable[[], None]:
        """Return a call of the given seconds, plus or minus a share of them that differs from call to call."""

        def call() -> None:
            self._calls += 1
            wobble = 1 + noise * (self._calls * 0.6180339887 % 1 - 0.5) * 2
            self.now += seconds * wobble * self._slowdown(self.now)

        return call

    def place(self, seconds: float, noise: float = 0.0, of_places: float = 0.0) -> Callable[[], Callable[[], None]]:
        """Return what gives such a call; `of_places` is a share of its seconds that differs from place to place."""

        def place() -> Callable[[], None]:
            self.places += 1
            return self.net(seconds * (1 + of_places * (self.places * 0.6180339887 % 1 - 0.5) * 2), noise)

        return place

    def timed(
        self, seconds: float = 0.02, noise: float = 0.0, idle: float | None = None, of_places: float = 0.0
    ) -> Timing:
        return steady_timing(self.place(seconds, noise, of_places), lambda: self.net(0.04), self.watch, idle)


def test_the_ratio_is_of_single_images_in_evaluation_mode():
    narrow, dense = Busy(2).train(), Busy(8).eval()
    ratio = latency_ratio(narrow, dense, (3, 4, 4), torch.device("cpu"))
    assert 0.1 < ratio < 0.6
    assert set(narrow.shapes) == {(1, 3, 4, 4)}
    assert not any(narrow.modes)
    assert narrow.training
    assert not dense.training


def test_the_fastest_of_several_nets_is_found_and_a_little_faster_is_not_enough():
    image = torch.zeros(1, 1, 2, 2)
    assert fastest([Busy(2.0), Busy(4.0), Busy(0.5), Busy(1.0)], image) == 2
    assert fastest([Busy(2.0), Busy(1.99)], image) == 0


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


def test_noise_is_told_after_a_few_tries_with_the_interval():
    machine = Machine()
    timing = machine.timed(of_places=0.9)
    assert "95% interval is" in timing.problem
    assert timing.low < 0.02 < timing.high
    assert timing.tries == TRIES
    assert machine.pauses == [0.5, 1.0]
    assert TRIES * PLACES < machine.places <= TRIES * MAX_PLACES


def test_noise_that_more_places_average_out_is_taken():
    machine = Machine()
    timing = machine.timed(noise=0.06)
    assert timing.problem == ""
    assert PLACES < machine.places < MAX_PLACES
    assert timing.width <= NARROW_WIDTH
    assert timing.median == pytest.approx(0.02, rel=0.02)


def test_attempts_that_are_only_wide_are_joined():
    """One attempt of so much noise is always wider than what is taken."""
    machine = Machine()
    timing = machine.timed(of_places=0.08)
    assert timing.problem == ""
    assert 1 < timing.tries <= TRIES
    assert machine.places > MAX_PLACES
    assert timing.width <= MAX_WIDTH
    assert timing.low < 0.02 < timing.high


def test_a_disturbed_attempt_adds_nothing_to_those_before():
    machine = Machine(slowdown=lambda now: 1.0 if now < 14.0 else 0.07 * now)
    timing = machine.timed(of_places=0.9)
    assert "95% interval is" in timing.problem
    assert timing.tries == TRIES
    assert timing.reference_seconds == pytest.approx(0.04)


def test_an_interval_that_could_be_narrower_is_taken_in_the_end():
    machine = Machine()
    timing = machine.timed(noise=0.14)
    assert timing.problem == ""
    assert machine.places == MAX_PLACES
    assert NARROW_WIDTH < timing.width <= MAX_WIDTH


def test_the_interval_covers_what_differs_from_place_to_place():
    """At any one place the turns agree to the last digit."""
    timing = Machine().timed(of_places=0.02)
    assert timing.problem == ""
    assert 0.005 < timing.width <= NARROW_WIDTH
    assert timing.low < 0.02 < timing.high
    assert timing.median == pytest.approx(0.02, rel=0.01)


def test_a_single_attempt_takes_more_places_for_noise_and_a_few_seconds_for_slow_nets():
    machine = Machine()
    assert single_ratio(machine.place(0.002, of_places=0.1), lambda: machine.net(0.004), machine.watch) == (
        pytest.approx(0.5, rel=0.03)
    )
    assert PLACES < machine.places <= MAX_PLACES
    assert machine.now < 2 * SINGLE_SECONDS
    slow = Machine()
    assert single_ratio(slow.place(0.1), lambda: slow.net(0.2), slow.watch) == pytest.approx(0.5)
    assert slow.places == PLACES
    assert slow.now < 2 * SINGLE_SECONDS


def test_the_reference_beside_itself_has_ratio_one():
    machine = Machine()
    place = machine.place(0.04, of_places=0.1)
    timing = steady_timing(place, place, machine.watch, 0.05)
    assert (timing.problem, timing.ratio, timing.width) == ("", pytest.approx(1.0), pytest.approx(0.0))


def test_a_machine_that_gets_slower_is_named_and_the_ratio_holds():
    timing = Machine(slowdown=lambda now: 1 + now).timed()
    assert "reference net drifted by" in timing.problem
    assert timing.ratio == pytest.approx(0.5, rel=0.02)
    assert timing.tries == TRIES


def test_a_machine_that_was_disturbed_for_a_while_is_measured_again():
    machine = Machine(slowdown=lambda now: 2.0 if 1.5 < now < 5.0 else 1.0)
    timing = machine.timed()
    assert timing.problem == ""
    assert timing.tries == 2
    assert timing.median == pytest.approx(0.02)


def test_an_even_load_shows_in_the_time_that_threads_wait():
    """Neither the interval nor the reference shows it: all calls take twice as long, always."""
    timing = Machine(slowdown=lambda now: 2.0, queue_share=0.5).timed()
    assert "threads waited for one in 50% of the time" in timing.problem
    assert Machine(queue_share=0.01).timed().problem == ""


@pytest.mark.parametrize("idle", [0.04, 0.0405, 0.01, 0.1])
def test_a_machine_slower_or_faster_as_a_whole_is_corrected_for(idle: float):
    timing = Machine().timed(idle=idle)
    assert timing.problem == ""
    assert timing.ratio == pytest.approx(0.5)
    assert timing.median == pytest.approx(0.5 * idle)
    assert timing.low <= timing.median <= timing.high
    assert timing.slowdown == pytest.approx(0.04 / idle)


def test_a_slowdown_of_both_nets_does_not_widen_the_interval():
    timing = Machine(slowdown=lambda now: 1 + 0.02 * (int(now * 5) % 2)).timed(seconds=0.04)
    assert timing.problem == ""
    assert timing.high - timing.low < 0.01 * timing.median


def test_the_idle_machine_is_found_between_disturbances():
    machine = Machine(slowdown=lambda now: 1.3 if 0.6 < now < 2.0 else 1.0)
    assert measure_idle_seconds(machine.net(0.04), machine.watch) == (pytest.approx(0.04), True)
    assert machine.pauses == [IDLE_BLOCK_PAUSE] * (IDLE_BLOCKS - 1)


def test_a_clock_that_jumped_once_is_not_the_idle_machine():
    machine = Machine(slowdown=lambda now: 0.1 if 0.4 < now < 0.42 else 1.0)
    assert measure_idle_seconds(machine.net(0.04), machine.watch) == (pytest.approx(0.04), True)


def test_a_machine_whose_cores_others_hold_is_not_idle():
    machine = Machine(queue_share=0.3)
    assert measure_idle_seconds(machine.net(0.04), machine.watch) == (pytest.approx(0.04), False)


def test_slow_nets_are_timed_in_fewer_rounds():
    machine = Machine()
    assert machine.timed(seconds=4.0).problem == ""
    assert machine.places == PLACES
    assert machine.now < PLACES * TURNS * 4.0


def test_a_timing_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Machine().timed().median = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("count", [6, 7, 9, 20, 31, 100])
def test_the_interval_is_the_narrowest_pair_of_order_statistics_that_covers_the_median(count: int):
    low, high = median_interval([float(number) for number in range(count, 0, -1)])  # the k-th smallest is k
    assert low + high == count + 1
    assert 1 - 2 * binom.cdf(low - 1, count, 0.5) >= CONFIDENCE
    assert 1 - 2 * binom.cdf(low, count, 0.5) < CONFIDENCE


def test_the_interval_of_few_samples_is_their_range():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([3.0]) == (3.0, 3.0)


def test_the_wait_for_a_core_is_counted_where_the_system_has_a_count():
    first = run_queue_delay()
    assert 0 <= first <= run_queue_delay()
