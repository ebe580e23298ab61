"""How long a net takes, measured where it will run, beside a reference that tells whether the machine kept still.

The core knows calls and a clock, no trials and no devices: `latency_ratio` serves methods, `runners.latency.meter` the rest.
A net and a reference take turns, and the reference is timed before and after too. A timing says itself what speaks
against it: a wide interval, a reference that drifted, threads that had to wait for a core. `steady` repeats such a
timing a few times; what still has a `problem` then must not be given out as a figure.

Clocks and neighbours make a machine faster or slower for minutes, steadily within a process and otherwise in the next.
What a net takes beside the reference hardly moves then, so figures are that ratio times what the reference takes when
the machine is quiet (`quiet_seconds`).
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from runners.latency.intervals import median_interval

REPETITIONS = 7  # of each net for a ratio; the median of few is steady enough to tell faster from slower
WARM_UPS = 2  # calls at least
ROUNDS, LEAST_ROUNDS = 31, 9  # of turns; nine are the fewest whose inner seven make a 95% interval
MOST_ROUNDS = 8 * ROUNDS
EDGE = 7  # samples of the reference before, and as many after
SAMPLE_SECONDS = 0.01  # that one sample takes at least, by repeated calls
WARM_SECONDS = 0.3
ATTEMPT_SECONDS = 20.0  # that the turns of one attempt should take; slower nets get fewer rounds
TRIES, AIMED = 5, 3  # attempts, and those of them that aim at a narrow interval where one that will do is there
NARROW, WIDEST = 0.03, 0.05  # of an interval over its median: what is aimed at, and what will do after that
DRIFT = 0.25  # of the reference within a timing, over its least median
MOVED = 0.25  # of it from what it takes on the quiet machine, either way; up to here ratios were seen to hold within 4%
BLOCKS, BLOCK_SAMPLES = 6, 9  # in which the quiet machine is looked for
BLOCK_PAUSE = 0.5  # seconds between them, so that neighbours may come and go
STALLED = 0.05  # share of the time in which a thread that could have run had to wait

Call = Callable[[], object]


@dataclass(frozen=True)
class Watch:
    """What tells the time.

    Attributes:
        clock: seconds.
        stalled: seconds in which threads of this process could have run and had no core, so far.
        pause: waits so many seconds.
    """

    clock: Callable[[], float] = time.perf_counter
    stalled: Callable[[], float] = lambda: 0.0
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Quiet:
    """The quiet machine.

    Attributes:
        seconds: that the reference takes on it.
        otherwise: what to do when the machine will never be as fast again.
    """

    seconds: float
    otherwise: str = ""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a net on the quiet machine, from its ratios to a reference in turn with it.

    Attributes:
        median: median ratio of neighbouring samples, times `quiet`.
        low, high: distribution-free 95% interval of that median, from order statistics.
        reference: median of the reference over the same rounds, as it was timed.
        quiet: what the reference takes on the quiet machine; where that is not known, `reference`.
        problem: what speaks against these figures; empty when nothing does.
        tries: how many attempts were made.
    """

    median: float
    low: float
    high: float
    reference: float
    quiet: float
    problem: str = ""
    tries: int = 1

    @property
    def ratio(self) -> float:
        """How many times as long as the reference it takes."""
        return self.median / self.quiet

    @property
    def width(self) -> float:
        """How wide the interval is, over the median."""
        return (self.high - self.low) / self.median

    @property
    def pace(self) -> float:
        """How many times as long as on the quiet machine everything took meanwhile."""
        return self.reference / self.quiet


def steady(net: Call, reference: Call, watch: Watch, quiet: Quiet | None = None) -> Timing:
    """Time a net until nothing speaks against the figures, a few times at most; then the problem stays in them.

    An interval that could be narrower has it timed again over twice the turns, and the narrowest one is returned.

    Args:
        net: one call; for an accelerator it waits for the result.
        reference: the same of the reference.
        quiet: None takes the machine as it is.
    """
    rounds, best = ROUNDS, None
    for tries in range(1, TRIES + 1):
        timing = _attempt(net, reference, watch, quiet, rounds)
        if not timing.problem and (best is None or timing.width < best.width):
            best = timing
        noisy = timing.width > NARROW and timing.problem in ("", _too_wide(timing))
        if tries == TRIES or (best is not None and (not noisy or tries >= AIMED)):
            break
        rounds = min((1 + noisy) * rounds, MOST_ROUNDS)  # more of them average it out
        if timing.problem:
            watch.pause(0.5 * 2 ** (tries - 1))
    return dataclasses.replace(best or timing, tries=tries)


def quiet_seconds(call: Call, watch: Watch) -> float | None:
    """Return what a call takes when the machine is at its quietest within a few seconds; None while others hold it.

    It is the second least of a few medians: the least may be a clock that jumped.
    """
    calls, _ = _warm(call, watch)
    sample, medians, stalled, passed = _repeated(call, calls), list[float](), 0.0, 0.0
    for block in range(BLOCKS):
        if block:
            watch.pause(BLOCK_PAUSE)
        began, waited = watch.clock(), watch.stalled()
        medians.append(statistics.median(_seconds(sample, watch) for _ in range(BLOCK_SAMPLES)) / calls)
        stalled, passed = stalled + watch.stalled() - waited, passed + watch.clock() - began
    return None if stalled > STALLED * passed else sorted(medians)[1]


def latency_ratio(narrow: nn.Module, dense: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """Return how many times as long as `dense` a net takes for one image, in evaluation mode: a ratio of medians.

    The two take turns, so that what else the machine does meets both. The modes of all modules are restored.

    Args:
        input_shape: channels, height and width of the image.
        device: where both nets are.
    """
    nets = (narrow, dense)
    modes = [(module, module.training) for net in nets for module in net.modules()]
    image = torch.zeros(1, *input_shape, device=device)
    # With one thread the thread's own time is what counts: it leaves out what other trials take meanwhile.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    watch = Watch(time.thread_time if alone else time.perf_counter)
    calls = [inference(net.eval(), image) for net in nets]
    try:
        with torch.no_grad():
            for call in calls * WARM_UPS:
                call()
            taken, reference = _turns(calls[0], calls[1], REPETITIONS, watch)
    finally:
        for module, training in modes:
            module.training = training
    return statistics.median(taken) / statistics.median(reference)


def brief_ratio(net: Call, reference: Call, watch: Watch, rounds: int = LEAST_ROUNDS) -> float:
    """Return how many times as long as the reference a net takes, from few turns: the median ratio of neighbours.

    For many nets at once, such as those that a model is calibrated with; no figure to give out.
    """
    for call in (net, reference) * WARM_UPS:
        call()
    calls = [max(1, math.ceil(0.5 * SAMPLE_SECONDS / max(_seconds(call, watch), 1e-6))) for call in (net, reference)]
    taken, beside = _turns(_repeated(net, calls[0]), _repeated(reference, calls[1]), rounds, watch)
    ratios = [one / max(other, 1e-12) for one, other in zip(taken, beside, strict=True)]
    return statistics.median(ratios) * calls[1] / calls[0]


def brief_seconds(call: Call, watch: Watch) -> float:
    """Return the median seconds of a few calls, to see whether a machine is as fast as before."""
    for _ in range(WARM_UPS):
        call()
    return statistics.median(_seconds(call, watch) for _ in range(LEAST_ROUNDS))


def inference(net: Callable[[torch.Tensor], object], images: torch.Tensor) -> Call:
    """Return the call that takes images through a net and waits for the result."""

    def call() -> None:
        wait(images.device)
        net(images)
        wait(images.device)

    return call


def _attempt(net: Call, reference: Call, watch: Watch, quiet: Quiet | None, most: int) -> Timing:
    net_calls, net_seconds = _warm(net, watch)
    reference_calls, reference_seconds = _warm(reference, watch)
    rounds = int(ATTEMPT_SECONDS / max(net_seconds + reference_seconds, 1e-9))
    rounds = min(most, max(LEAST_ROUNDS, rounds))
    net, reference = _repeated(net, net_calls), _repeated(reference, reference_calls)
    edge = max(3, EDGE * rounds // ROUNDS)
    began, stalled = watch.clock(), watch.stalled()
    before = [_seconds(reference, watch) for _ in range(edge)]
    taken, beside = _turns(net, reference, rounds, watch)
    after = [_seconds(reference, watch) for _ in range(edge)]
    share = (watch.stalled() - stalled) / max(watch.clock() - began, 1e-9)
    half = len(beside) // 2
    parts = [statistics.median(part) / reference_calls for part in (before, beside[:half], beside[half:], after)]
    calls = reference_calls / net_calls
    ratios = [calls * one / max(other, 1e-12) for one, other in zip(taken, beside, strict=True)]
    together = statistics.median(beside) / reference_calls
    quiet = quiet or Quiet(together)
    low, high = median_interval(ratios)
    unit = quiet.seconds
    timing = Timing(unit * statistics.median(ratios), unit * low, unit * high, together, unit)
    return dataclasses.replace(timing, problem=_problem(timing, parts, share, quiet.otherwise))


def _problem(timing: Timing, parts: Sequence[float], stalled: float, otherwise: str) -> str:
    """Say what speaks against a timing: the cause where it is known, else what was seen."""
    if stalled > STALLED:
        return f"other processes held the cores: threads waited for one in {min(stalled, 1):.0%} of the time"
    drift = max(parts) / min(parts) - 1
    if drift > DRIFT:
        return f"the reference net drifted by {drift:.0%} meanwhile (at most {DRIFT:.0%} is taken)"
    if max(timing.pace, 1 / timing.pace) - 1 > MOVED:
        return (
            f"the reference net takes {timing.pace:.2f} times as long as on the quiet machine "
            f"(up to {MOVED:.0%} off is corrected{otherwise})"
        )
    return _too_wide(timing)


def _too_wide(timing: Timing) -> str:
    if timing.width <= WIDEST:
        return ""
    return f"the 95% interval is {timing.width:.1%} of the median wide (at most {WIDEST:.0%} is taken)"


def _warm(call: Call, watch: Watch) -> tuple[int, float]:
    """Call until warm; return how many calls make one sample, and the seconds of that."""
    began, least, done = watch.clock(), math.inf, 0
    while done <= WARM_UPS or watch.clock() - began < WARM_SECONDS:
        least = min(least, _seconds(call, watch))
        done += 1
    calls = max(1, math.ceil(SAMPLE_SECONDS / max(least, 1e-6)))
    return calls, calls * least


def _turns(net: Call, reference: Call, rounds: int, watch: Watch) -> tuple[list[float], list[float]]:
    """Time both in turn, each first in every other round; return the seconds of each."""
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
    begin = watch.clock()
    call()
    return watch.clock() - begin


def wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
