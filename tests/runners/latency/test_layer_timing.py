"""Layers timed alone, by a clock that the layers move."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from runners.latency.kernels import Kernel, Slots
from runners.latency.layer_timing import LayerTimer, basis, fit, grid
from runners.latency.timing import Watch


class Clock:
    def __init__(self) -> None:
        self.now, self.shaky = 0.0, 0

    def __call__(self) -> float:
        return self.now


def kernel_of(clock: Clock, seconds: Callable[[Slots], float], *, two: bool = True) -> Kernel:
    def call(slots: Slots, *_: object) -> Callable[[], object]:
        def run() -> None:
            clock.shaky -= 1
            clock.now += seconds(slots) * (3 if clock.shaky > 0 and clock.shaky % 2 else 1)

        return run

    return Kernel("made up", two, call)


def timer_of(clock: Clock) -> LayerTimer:
    return LayerTimer(torch.device("cpu"), torch.float32, torch.contiguous_format, Watch(clock))


def staircase(slots: Slots) -> float:
    """What a layer takes whose channels are padded to 16: 17 written ones take as long as 32."""
    return 2e-6 + 1e-8 * slots[0] * (16 * -(-slots[1] // 16))


def at(coefficients: np.ndarray, slots: Slots) -> float:
    read, written = (basis(np.array([float(each)]))[0] for each in slots)
    return float(read @ coefficients @ written)


def test_the_stairs_of_vector_widths_are_found_from_a_small_grid() -> None:
    clock = Clock()
    (found,) = timer_of(clock).fitted([kernel_of(clock, staircase)], [((4, 4), (64, 128))], 10.0)
    for slots in ((5, 17), (20, 32), (20, 33), (64, 128), (7, 100), (33, 49)):
        assert at(found, slots) == pytest.approx(staircase(slots), rel=0.02)
    assert at(found, (40, 17)) == pytest.approx(at(found, (40, 32)), rel=0.02)
    assert at(found, (40, 33)) > 1.3 * at(found, (40, 32))


def test_the_grid_has_the_ends_stairs_and_points_beside_them() -> None:
    kernel = kernel_of(Clock(), staircase, two=False)
    channels = [read for read, _ in grid(kernel, (6, 6), (160, 160), 9)]
    assert (channels[0], channels[-1]) == (6, 160)
    assert {each % 16 == 0 for each in channels[1:-1]} == {True, False}
    assert grid(kernel, (8, 8), (8, 8), 9) == [(8, 8)]


def test_little_time_gives_a_coarser_grid() -> None:
    counts = []
    for seconds in (100.0, 0.001):
        clock = Clock()
        timer = timer_of(clock)
        timer.fitted([kernel_of(clock, staircase)], [((4, 4), (64, 128))], seconds)
        counts.append(timer.timings)
    assert counts[0] >= 64
    assert counts[1] == 9


def test_an_unsteady_timing_is_repeated() -> None:
    clock = Clock()
    timer, kernel = timer_of(clock), kernel_of(clock, lambda slots: 0.002)
    clock.shaky = 9  # every other one of the first calls takes three times as long
    assert timer.time(kernel, (8, 8)) == pytest.approx(0.002)
    clock.shaky = 1000
    timer.time(kernel, (8, 8))
    assert (timer.timings, timer.repeated > 0) == (2, True)


def test_what_does_not_run_alone_is_named_and_counts_nothing() -> None:
    def call(*_: object) -> Callable[[], object]:
        raise RuntimeError("needs more than shapes")

    timer = timer_of(Clock())
    found = timer.fitted([Kernel("odd", False, call)], [((1, 1), (8, 8))], 1.0)
    assert timer.failed == ["odd"]
    assert not found.any()


def test_coefficients_are_never_negative() -> None:
    noisy = [1.0, 0.4, 2.0, 0.7]
    assert (fit([(8, 8), (16, 16), (24, 24), (33, 33)], noisy, two=False) >= 0).all()
