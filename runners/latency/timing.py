"""Time a net in turn with a reference net, and name the reasons for which the result cannot be trusted.

The core knows calls and a clock, but no trials and no devices. Net and reference take turns at several places in
memory, and the ratio is one figure per place. Ratios at different places differ by 1 to 2% (standard deviation) however
many turns are taken at each (`tests/studies/latency_repeats.py --part places`); an interval from the turns at one place
would leave that out, and two readings of one net would contradict each other.

A `Timing` names its own problem: a wide interval, a reference that drifted, or threads that waited for a core
(run-queue delay). `steady_timing` tries again a few times, and joins attempts whose intervals are only wide; a problem
that stays is told beside the interval, which is then wide. The speed of the machine as a whole is no problem: the ratio
holds.

Clock rates and other programs make a machine faster or slower for minutes; this is steady within a process and may
differ in the next. The ratio of a net to the reference hardly moves then. A latency is therefore that ratio times the
seconds of the reference on the idle machine (`runners.latency.idle_baseline`).
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

RATIO_ROUNDS = 7  # turns of `latency_ratio`; the median of so few is steady enough to tell faster from slower
FORM_SAMPLE_SECONDS = 0.001  # that one sample of `fastest` takes at least, by repeated calls
CLEARLY_FASTER = 0.97  # share of the first net's time under which another one is clearly faster
WARM_UP_CALLS = 2  # at least
WARM_UP_SECONDS = 0.3
TURNS = 5  # at one place
PLACES = 9  # the fewest whose inner seven make a 95% interval
MAX_PLACES = 32
MORE_PLACES = 1.5  # times as many in all, while the interval is not narrow
BRIEF_PLACES, BRIEF_TURNS, BRIEF_CALLS = 8, 3, 9  # of a brief timing
SAMPLE_SECONDS = 0.01  # that one sample takes at least, by repeated calls
ATTEMPT_SECONDS = 20.0  # that one attempt should take; slower nets get fewer turns
SINGLE_SECONDS = 4.0  # the same where one attempt is all
TRIES = 3  # attempts at most
NARROW_WIDTH, MAX_WIDTH = 0.03, 0.05  # of an interval over its median: aimed at, and accepted afterwards
DRIFT_PARTS = 4  # of an attempt, one after the other
MAX_DRIFT = 0.25  # of the reference from part to part, over its least median
IDLE_BLOCKS, IDLE_BLOCK_SAMPLES = 6, 9  # in which the idle machine is looked for
IDLE_BLOCK_PAUSE = 0.5  # seconds between blocks, so that load from other programs may come and go
MAX_QUEUE_SHARE = 0.05  # share of the time in which a thread that could have run waited for a core
CONFIDENCE = 0.95  # of the interval of a median

Call = Callable[[], object]
Place = Callable[[], Call]  # gives the inference of a net anew, where the engine can at another place in memory


@dataclass(frozen=True)
class Watch:
    """The clocks that a timing reads.

    Attributes:
        clock: returns seconds.
        run_queue_delay: returns the seconds so far in which threads of this process could have run and had no core.
        pause: waits for the given seconds.
    """

    clock: Callable[[], float] = time.perf_counter
    run_queue_delay: Callable[[], float] = lambda: 0.0
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a net on the idle machine, derived from its ratios to a reference in turn with it.

    Attributes:
        median: median over places of the ratio to the reference, times `idle_seconds`; the ratio of a place is the
            median over its turns.
        low, high: distribution-free 95% interval of the median over places, from order statistics.
        reference_seconds: median of the reference over the same places, as the clock showed it.
        idle_seconds: of the reference on the idle machine; equal to `reference_seconds` where there is no baseline.
        problem: reason for which the interval is wide or may be too narrow; empty when there is none.
        tries: number of attempts.
    """

    median: float
    low: float
    high: float
    reference_seconds: float
    idle_seconds: float
    problem: str = ""
    tries: int = 1

    @property
    def ratio(self) -> float:
        """Seconds of the net over those of the reference."""
        return self.median / self.idle_seconds

    @property
    def width(self) -> float:
        """Width of the interval over the median."""
        return (self.high - self.low) / self.median

    @property
    def slowdown(self) -> float:
        """Seconds of the reference during the timing over those on the idle machine."""
        return self.reference_seconds / self.idle_seconds


def steady_timing(net: Place, reference: Place, watch: Watch, idle: float | None = None) -> Timing:
    """Time a net until the timing has no problem, at most TRIES times; the last problem stays in the result.

    Attempts whose only problem is a wide interval are joined: the places of all of them give a narrower one.

    Args:
        net: gives one inference; on an accelerator that waits for the result.
        reference: the same for the reference; the same object as `net` has ratio 1.
        idle: seconds of the reference on the idle machine; None takes the speed of the machine as it is.
    """
    pooled = _Places((), ())
    for tries in range(1, TRIES + 1):
        attempt = _attempt(net, reference, watch, ATTEMPT_SECONDS)
        timing = _timing(attempt, idle)
        if timing.problem and not attempt.disturbance:
            pooled = _Places(pooled.ratios + attempt.ratios, pooled.reference_seconds + attempt.reference_seconds)
        if timing.problem and pooled.ratios:
            timing = _timing(pooled, idle)
        if not timing.problem or tries == TRIES:
            break
        watch.pause(0.5 * 2 ** (tries - 1))
    return dataclasses.replace(timing, tries=tries)


def measure_idle_seconds(call: Call, watch: Watch) -> tuple[float, bool]:
    """Return the seconds of a call on the idle machine, from a few seconds of samples, and whether it was idle.

    The seconds are the second least of the medians of IDLE_BLOCKS blocks: the least may come from a clock that jumped.
    """
    calls, _ = _warm_up(call, watch)
    sample, medians, delay, elapsed = _repeated(call, calls), list[float](), 0.0, 0.0
    for block in range(IDLE_BLOCKS):
        if block:
            watch.pause(IDLE_BLOCK_PAUSE)
        start, start_delay = watch.clock(), watch.run_queue_delay()
        medians.append(statistics.median(_seconds(sample, watch) for _ in range(IDLE_BLOCK_SAMPLES)) / calls)
        delay, elapsed = delay + watch.run_queue_delay() - start_delay, elapsed + watch.clock() - start
    return sorted(medians)[1], delay <= MAX_QUEUE_SHARE * elapsed


def latency_ratio(narrow: nn.Module, dense: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """Return the latency of `narrow` over that of `dense` for one image in evaluation mode: a ratio of medians.

    The two nets take turns, so that load from other programs meets both. The modes of all modules are restored.

    Args:
        input_shape: (C, H, W) of the image.
        device: where both nets are.
    """
    nets = (narrow, dense)
    modes = [(module, module.training) for net in nets for module in net.modules()]
    image = torch.zeros(1, *input_shape, device=device)
    watch = Watch(latency_clock(device))
    calls = [inference(net.eval(), image) for net in nets]
    try:
        with torch.no_grad():
            for call in calls * WARM_UP_CALLS:
                call()
            narrow_seconds, dense_seconds = _take_turns(calls[0], calls[1], RATIO_ROUNDS, watch)
    finally:
        for module, training in modes:
            module.training = training
    return statistics.median(narrow_seconds) / statistics.median(dense_seconds)


def brief_ratio(net: Place, reference: Place, watch: Watch) -> float:
    """Return the seconds of a net over those of the reference from few places, each with few turns.

    It serves where many nets are timed, as for the calibration of a model. It is not exact enough to be reported.
    """
    calls = _placed(net, reference)
    for call in calls * WARM_UP_CALLS:
        call()
    times = [max(1, math.ceil(0.5 * SAMPLE_SECONDS / max(_seconds(call, watch), 1e-6))) for call in calls]
    ratios = [place_ratio(calls, times, BRIEF_TURNS, watch)[0]]
    while len(ratios) < BRIEF_PLACES:
        calls = _placed(net, reference)
        for call in calls:
            call()
        ratios.append(place_ratio(calls, times, BRIEF_TURNS, watch, first=len(ratios))[0])
    return statistics.median(ratios)


def single_ratio(net: Place, reference: Place, watch: Watch) -> float:
    """Return the seconds of a net over those of the reference from one short attempt, whatever disturbed it.

    It is closer to a reading than `brief_ratio` and takes several times as long.
    """
    return statistics.median(_attempt(net, reference, watch, SINGLE_SECONDS).ratios)


def place_ratio(
    calls: tuple[Call, Call], times: Sequence[int], turns: int, watch: Watch, first: int = 0
) -> tuple[float, float]:
    """Return the median ratio of net to reference at one place, and the median seconds of the reference.

    Args:
        calls: net and reference; times: how many calls make a sample of each.
        first: which of them is first in the first turn, even for the net.
    """
    net, reference = (_repeated(call, count) for call, count in zip(calls, times, strict=True))
    samples = _take_turns(net, reference, turns, watch, first)
    ratios = [own / max(beside, 1e-12) for own, beside in zip(*samples, strict=True)]
    return statistics.median(ratios) * times[1] / times[0], statistics.median(samples[1]) / times[1]


def brief_seconds(call: Call, watch: Watch) -> float:
    """Return the median seconds of BRIEF_CALLS calls; two of these tell whether the machine has changed its speed."""
    for _ in range(WARM_UP_CALLS):
        call()
    return statistics.median(_seconds(call, watch) for _ in range(BRIEF_CALLS))


def fastest(nets: Sequence[nn.Module], images: torch.Tensor) -> int:
    """Return the index of the fastest of several nets in evaluation mode; 0 unless another one is clearly faster.

    The nets take turns, so that load from other programs meets all of them.

    Args:
        images: input of all of them, on their device.
    """
    watch, samples = Watch(latency_clock(images.device)), list[tuple[Call, int]]()
    for call in (inference(net, images) for net in nets):
        call()
        times = max(1, round(FORM_SAMPLE_SECONDS / max(_seconds(call, watch), 1e-6)))
        samples.append((_repeated(call, times), times))
    turns = [[_seconds(sample, watch) / times for sample, times in samples] for _ in range(RATIO_ROUNDS)]
    ratios = [statistics.median(turn[i] / max(turn[0], 1e-12) for turn in turns) for i in range(len(nets))]
    best = min(range(len(nets)), key=ratios.__getitem__)
    return best if ratios[best] < CLEARLY_FASTER else 0


def latency_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock for networks on a device.

    With one thread of the processor it is the CPU time of that thread: it leaves out the time of others on its core.
    """
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def inference(net: Callable[[torch.Tensor], object], images: torch.Tensor) -> Call:
    """Return a call that runs a net on images and waits for the result."""

    def call() -> None:
        synchronize(images.device)
        net(images)
        synchronize(images.device)

    return call


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that holds the median with 95% confidence.

    The k-th smallest and k-th largest of n hold it with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the
    distribution (David and Nagaraja, Order Statistics, section 7.1). No pair of fewer than six samples does; the
    least and the largest are returned for them.
    """
    ordered, count = sorted(samples), len(samples)
    outside, k = 0.0, 0
    while k < count // 2:
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    k = max(1, k)
    return ordered[k - 1], ordered[-k]


def run_queue_delay() -> float:
    """Return the seconds so far in which threads of this process waited for a core, summed; 0 where nothing counts it.

    Such a delay reveals other programs that slow everything evenly. Linux counts it: the second number of
    /proc/self/task/*/schedstat, in nanoseconds.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has just ended, or a kernel without this count
            continue
    return total / 1e9


@dataclass(frozen=True)
class _Places:
    """What was measured, one figure per place.

    Attributes:
        ratios: median ratio of the net to the reference.
        reference_seconds: median seconds of the reference.
        disturbance: what else went on meanwhile, for which the ratios cannot be trusted; empty when nothing did.
    """

    ratios: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    disturbance: str = ""


def _attempt(net: Place, reference: Place, watch: Watch, limit: float) -> _Places:
    """Time at PLACES places, and at more while the interval is not narrow and less than `limit` seconds have passed."""
    calls = _placed(net, reference)
    warm = [_warm_up(call, watch) for call in calls]
    times, once = [count for count, _ in warm], sum(seconds for _, seconds in warm)
    turns = max(1, min(TURNS, int(limit / PLACES / max(once, 1e-9))))
    start, start_delay = watch.clock(), watch.run_queue_delay()
    ratios, reference_seconds, goal = list[float](), list[float](), PLACES
    while True:
        ratio, seconds = place_ratio(calls, times, turns, watch, first=len(ratios))
        ratios.append(ratio)
        reference_seconds.append(seconds)
        if len(ratios) == goal:
            low, high = median_interval(ratios)
            narrow = high - low <= NARROW_WIDTH * statistics.median(ratios)
            if narrow or net is reference or goal == MAX_PLACES or watch.clock() - start > limit:
                break
            goal = min(MAX_PLACES, math.ceil(MORE_PLACES * goal))
        calls = _placed(net, reference)
        for call in calls if once < WARM_UP_SECONDS else ():  # the first calls of a slow net differ little from others
            call()
    queue_share = (watch.run_queue_delay() - start_delay) / max(watch.clock() - start, 1e-9)
    disturbance = _disturbance(_part_medians(reference_seconds), queue_share)
    return _Places(tuple(ratios), tuple(reference_seconds), disturbance)


def _timing(places: _Places, idle: float | None) -> Timing:
    """Return the timing of a net from its ratios, with the disturbance as its problem or else a wide interval."""
    low, high = median_interval(places.ratios)
    seconds = statistics.median(places.reference_seconds)
    unit = idle or seconds
    timing = Timing(unit * statistics.median(places.ratios), unit * low, unit * high, seconds, unit)
    return dataclasses.replace(timing, problem=places.disturbance or _width_problem(timing))


def _placed(net: Place, reference: Place) -> tuple[Call, Call]:
    """Return net and reference at a new place."""
    beside = reference()
    return (beside if net is reference else net()), beside


def _part_medians(seconds: Sequence[float]) -> list[float]:
    """Return the medians of DRIFT_PARTS parts of a series."""
    ends = [len(seconds) * part // DRIFT_PARTS for part in range(DRIFT_PARTS + 1)]
    return [statistics.median(seconds[begin:end]) for begin, end in itertools.pairwise(ends)]


def _disturbance(reference_medians: Sequence[float], queue_share: float) -> str:
    """Return what disturbed a timing, as far as the clocks tell; else an empty text."""
    if queue_share > MAX_QUEUE_SHARE:
        return f"other processes held the cores: threads waited for one in {min(queue_share, 1):.0%} of the time"
    drift = max(reference_medians) / min(reference_medians) - 1
    if drift > MAX_DRIFT:
        return f"the reference net drifted by {drift:.0%} meanwhile (at most {MAX_DRIFT:.0%} is taken)"
    return ""


def _width_problem(timing: Timing) -> str:
    if timing.width <= MAX_WIDTH:
        return ""
    return f"the 95% interval is {timing.width:.1%} of the median wide (at most {MAX_WIDTH:.0%} is taken)"


def _warm_up(call: Call, watch: Watch) -> tuple[int, float]:
    """Call until warm; return how many calls make one sample, and the seconds of that sample."""
    start, least, done = watch.clock(), math.inf, 0
    while done <= WARM_UP_CALLS or watch.clock() - start < WARM_UP_SECONDS:
        least = min(least, _seconds(call, watch))
        done += 1
    calls = max(1, math.ceil(SAMPLE_SECONDS / max(least, 1e-6)))
    return calls, calls * least


def _take_turns(
    net: Call, reference: Call, rounds: int, watch: Watch, first: int = 0
) -> tuple[list[float], list[float]]:
    """Time net and reference in turn; each goes first in every other round. Returns the seconds of both, per round."""
    pair, seconds = (net, reference), ([0.0] * rounds, [0.0] * rounds)
    for turn in range(rounds):
        for which in ((0, 1), (1, 0))[(first + turn) % 2]:
            seconds[which][turn] = _seconds(pair[which], watch)
    return seconds


def _repeated(call: Call, times: int) -> Call:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def _seconds(call: Call, watch: Watch) -> float:
    start = watch.clock()
    call()
    return watch.clock() - start
