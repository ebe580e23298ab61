"""Time a net in turn with a reference net, and name the reasons for which the result cannot be trusted.

The core knows calls and a clock, but no trials and no devices. Net and reference take turns, and the reference is also
timed before and after. A `Timing` names its own problem: a wide interval, a reference that drifted, or threads that
waited for a core (run-queue delay). `steady_timing` repeats a timing with a problem a few times; one that stays is told
beside the interval, which is then wide. The speed of the machine as a whole is no problem: the ratio holds.

Clock rates and other programs make a machine faster or slower for minutes; this is steady within a process and may
differ in the next. The ratio of a net to the reference hardly moves then. A latency is therefore that ratio times the
seconds of the reference on the idle machine (`runners.latency.idle_baseline`).
"""

import dataclasses
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
ROUNDS, MIN_ROUNDS = 31, 9  # of turns; nine are the fewest whose inner seven make a 95% interval
MAX_ROUNDS = 8 * ROUNDS
EDGE_SAMPLES = 7  # of the reference before ROUNDS turns, and as many after them
SAMPLE_SECONDS = 0.01  # that one sample takes at least, by repeated calls
ATTEMPT_SECONDS = 20.0  # that the turns of one attempt should take; slower nets get fewer rounds
TRIES, NARROWING_TRIES = 5, 3  # attempts at most, and attempts for a narrow interval where an acceptable one is found
NARROW_WIDTH, MAX_WIDTH = 0.03, 0.05  # of an interval over its median: aimed at, and accepted afterwards
MAX_DRIFT = 0.25  # of the reference within a timing, over its least median
IDLE_BLOCKS, IDLE_BLOCK_SAMPLES = 6, 9  # in which the idle machine is looked for
IDLE_BLOCK_PAUSE = 0.5  # seconds between blocks, so that load from other programs may come and go
MAX_QUEUE_SHARE = 0.05  # share of the time in which a thread that could have run waited for a core
CONFIDENCE = 0.95  # of the interval of a median

Call = Callable[[], object]


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
        median: median ratio of neighbouring samples, times `idle_seconds`.
        low, high: distribution-free 95% interval of that median, from order statistics.
        reference_seconds: median of the reference over the same rounds, as the clock showed it.
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


def steady_timing(net: Call, reference: Call, watch: Watch, idle: float | None = None) -> Timing:
    """Time a net until the timing has no problem, at most TRIES times; the last problem stays in the result.

    While the interval is wider than NARROW_WIDTH, the next attempt takes twice the turns. The attempt with the
    narrowest interval is returned, or the last one where all have a problem: to choose among these would favour luck.

    Args:
        net: runs one inference; on an accelerator it waits for the result.
        reference: the same for the reference.
        idle: seconds of the reference on the idle machine; None takes the speed of the machine as it is.
    """
    rounds, best = ROUNDS, None
    for tries in range(1, TRIES + 1):
        timing = _attempt(net, reference, watch, idle, rounds)
        if not timing.problem and (best is None or timing.width < best.width):
            best = timing
        noisy = timing.width > NARROW_WIDTH and timing.problem in ("", _width_problem(timing))
        if tries == TRIES or (best is not None and (not noisy or tries >= NARROWING_TRIES)):
            break
        rounds = min((1 + noisy) * rounds, MAX_ROUNDS)  # more rounds average the noise out
        if timing.problem:
            watch.pause(0.5 * 2 ** (tries - 1))
    return dataclasses.replace(best or timing, tries=tries)


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


def brief_ratio(net: Call, reference: Call, watch: Watch, rounds: int = MIN_ROUNDS) -> float:
    """Return the seconds of a net over those of the reference from few turns: the median ratio of neighbouring samples.

    It serves where many nets are timed, as for the calibration of a model. It is not exact enough to be reported.
    """
    for call in (net, reference) * WARM_UP_CALLS:
        call()
    calls = [max(1, math.ceil(0.5 * SAMPLE_SECONDS / max(_seconds(call, watch), 1e-6))) for call in (net, reference)]
    samples = _take_turns(_repeated(net, calls[0]), _repeated(reference, calls[1]), rounds, watch)
    ratios = [own / max(beside, 1e-12) for own, beside in zip(*samples, strict=True)]
    return statistics.median(ratios) * calls[1] / calls[0]


def brief_seconds(call: Call, watch: Watch) -> float:
    """Return the median seconds of MIN_ROUNDS calls; two of these tell whether the machine has changed its speed."""
    for _ in range(WARM_UP_CALLS):
        call()
    return statistics.median(_seconds(call, watch) for _ in range(MIN_ROUNDS))


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


def _attempt(net: Call, reference: Call, watch: Watch, idle: float | None, max_rounds: int) -> Timing:
    net_calls, net_seconds = _warm_up(net, watch)
    reference_calls, reference_seconds = _warm_up(reference, watch)
    rounds = int(ATTEMPT_SECONDS / max(net_seconds + reference_seconds, 1e-9))
    rounds = min(max_rounds, max(MIN_ROUNDS, rounds))
    net, reference = _repeated(net, net_calls), _repeated(reference, reference_calls)
    edge = max(3, EDGE_SAMPLES * rounds // ROUNDS)
    start, start_delay = watch.clock(), watch.run_queue_delay()
    before = [_seconds(reference, watch) for _ in range(edge)]
    net_samples, reference_samples = _take_turns(net, reference, rounds, watch)
    after = [_seconds(reference, watch) for _ in range(edge)]
    queue_share = (watch.run_queue_delay() - start_delay) / max(watch.clock() - start, 1e-9)
    half = len(reference_samples) // 2
    parts = (before, reference_samples[:half], reference_samples[half:], after)
    medians = [statistics.median(part) / reference_calls for part in parts]
    calls = reference_calls / net_calls
    pairs = zip(net_samples, reference_samples, strict=True)
    ratios = [calls * own / max(beside, 1e-12) for own, beside in pairs]
    seconds = statistics.median(reference_samples) / reference_calls
    unit = idle or seconds
    low, high = median_interval(ratios)
    timing = Timing(unit * statistics.median(ratios), unit * low, unit * high, seconds, unit)
    return dataclasses.replace(timing, problem=_problem(timing, medians, queue_share))


def _problem(timing: Timing, reference_medians: Sequence[float], queue_share: float) -> str:
    """Return why a timing is unsteady: the cause where it is known, else the symptom; else an empty text."""
    if queue_share > MAX_QUEUE_SHARE:
        return f"other processes held the cores: threads waited for one in {min(queue_share, 1):.0%} of the time"
    drift = max(reference_medians) / min(reference_medians) - 1
    if drift > MAX_DRIFT:
        return f"the reference net drifted by {drift:.0%} meanwhile (at most {MAX_DRIFT:.0%} is taken)"
    return _width_problem(timing)


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


def _take_turns(net: Call, reference: Call, rounds: int, watch: Watch) -> tuple[list[float], list[float]]:
    """Time net and reference in turn; each goes first in every other round. Returns the seconds of both, per round."""
    pair, seconds = (net, reference), ([0.0] * rounds, [0.0] * rounds)
    for turn in range(rounds):
        for which in ((0, 1), (1, 0))[turn % 2]:
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
