"""Kernels are timed alone, by a clock that moves with their calls."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from runners.latency.prediction.kernels import ChannelPair, Kernel
from runners.latency.prediction.layer_timing import LayerTimer, basis, fit_coefficients, grid
from runners.latency.timing import Watch


class Clock:
    """Moves with calls of kernels only; every other call takes three times as long while `unsteady` counts down."""

    def __init__(self) -> None:
        self.now, self.unsteady = 0.0, 0

    def __call__(self) -> float:
        return self.now


def kernel_of(clock: Clock, seconds: Callable[[ChannelPair], float], *, independent: bool = True) -> Kernel:
    def call(channels: ChannelPair, *_: object) -> Callable[[], object]:
        def run() -> None:
            clock.unsteady -= 1
            clock.now += seconds(channels) * (3 if clock.unsteady > 0 and clock.unsteady % 2 else 1)

        return run

    return Kernel("made up", "made up", independent, call)


def timer_of(clock: Clock) -> LayerTimer:
    return LayerTimer(torch.device("cpu"), torch.float32, torch.contiguous_format, Watch(clock))


def staircase(channels: ChannelPair) -> float:
    """Return the seconds of a layer whose output channels are padded to 16: 17 take as long as 32."""
    return 2e-6 + 1e-8 * channels[0] * (16 * -(-channels[1] // 16))


def at(coefficients: np.ndarray, channels: ChannelPair) -> float:
    inputs, outputs = (basis(np.array([float(number)]))[0] for number in channels)
    return float(inputs @ coefficients @ outputs)


def test_the_steps_of_vector_widths_are_found_from_a_small_grid() -> None:
    clock = Clock()
    (coefficients,) = timer_of(clock).fit([kernel_of(clock, staircase)], [((4, 4), (64, 128))], 10.0)
    for channels in ((5, 17), (20, 32), (20, 33), (64, 128), (7, 100), (33, 49)):
        assert at(coefficients, channels) == pytest.approx(staircase(channels), rel=0.02)
    assert at(coefficients, (40, 17)) == pytest.approx(at(coefficients, (40, 32)), rel=0.02)
    assert at(coefficients, (40, 33)) > 1.3 * at(coefficients, (40, 32))


def test_the_grid_has_its_ends_and_channels_on_the_steps_and_beside_them() -> None:
    kernel = kernel_of(Clock(), staircase, independent=False)
    channels = [in_channels for in_channels, _ in grid(kernel, (6, 6), (160, 160), 9)]
    assert (channels[0], channels[-1]) == (6, 160)
    assert {number % 16 == 0 for number in channels[1:-1]} == {True, False}
    assert grid(kernel, (8, 8), (8, 8), 9) == [(8, 8)]


def test_little_time_gives_a_coarser_grid() -> None:
    counts = []
    for seconds in (100.0, 0.001):
        clock = Clock()
        timer = timer_of(clock)
        timer.fit([kernel_of(clock, staircase)], [((4, 4), (64, 128))], seconds)
        counts.append(timer.timings)
    assert counts[0] >= 64
    assert counts[1] == 9


def test_an_unsteady_timing_is_repeated() -> None:
    clock = Clock()
    timer, kernel = timer_of(clock), kernel_of(clock, lambda channels: 0.002)
    clock.unsteady = 9  # every other one of the first calls takes three times as long
    assert timer.time(kernel, (8, 8)) == pytest.approx(0.002)
    clock.unsteady = 1000
    timer.time(kernel, (8, 8))
    assert (timer.timings, timer.repeated > 0) == (2, True)


def test_a_kernel_that_does_not_run_alone_is_named_and_has_no_seconds() -> None:
    def call(*_: object) -> Callable[[], object]:
        raise RuntimeError("needs more than shapes")

    timer = timer_of(Clock())
    coefficients = timer.fit([Kernel("odd", "odd", False, call)], [((1, 1), (8, 8))], 1.0)
    assert timer.failed == ["odd"]
    assert not coefficients.any()


def test_coefficients_are_never_negative() -> None:
    noisy = [1.0, 0.4, 2.0, 0.7]
    assert (fit_coefficients([(8, 8), (16, 16), (24, 24), (33, 33)], noisy, independent=False) >= 0).all()
