"""How much of a search's time goes to anything but trials? python tests/benchmarks/search_overhead.py

A search under Ray, warm (Ray runs, the dense net is cached), from the start of its first trial to its last tell. All
worker-seconds of that span are accounted for: methods, training and evaluation, what else a trial does in its worker,
what a worker waits for between trials, and the end, where some have nothing left while others run (the tail; a trial
runs then, so it is time of training as far as wall time goes, and is told apart). Ends with 1 when more than 5% goes
to the rest. Latency of the front is measured after this span.
"""

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import search
from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.evaluation import evaluate
from runners.ray import runner as ray_tune
from runners.trial import EpochReport, Trial, TrialResult
from search.schedulers.screening import Screened
from search.storage.checkpoints import TrialFiles
from search.storage.study_storage import Record
from search.tracking.mlflow_tracker import MlflowTracker, _Records
from search.tuner import Study

ALLOWED = 0.05
Clock = dict[str, float]
# What a trial does in its worker besides what its train_seconds count, as it is timed there and named here.
IN_WORKER = {"count_cost": "cost recounted with fvcore", "to_bytes": "checkpoint to bytes"}
ANSWER = "waiting for the answer to a report"
# What the controller does while a worker waits for its next trial; whoever is timed inside of another counts there.
CONTROLLER = (
    (Study, "ask", "proposals"),
    (Study, "tell", "tell, with the next three"),
    (TrialFiles, "keep", "  checkpoint written"),
    (Record, "add", "  record written"),
    (MlflowTracker, "trial", "  MLflow, handing over"),
)
BESIDE = ((_Records, "trial"), (_Records, "log"))  # in a thread of its own


@dataclasses.dataclass(frozen=True)
class Span:
    """A trial as its worker saw it; times are of the machine's clock."""

    worker: int
    began: float
    ended: float
    train_seconds: float
    parts: Clock


@contextmanager
def timed(owner: Any, name: str, clock: Clock, label: str) -> Iterator[None]:
    """Add to the clock what calls of a function take inside the block."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def measured(*args: Any, **kwargs: Any) -> Any:
        entered = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            clock[label] += time.perf_counter() - entered

    with patch.object(owner, name, measured):
        yield


def watched(trial: Trial, search_context: Any) -> Generator[EpochReport, bool | None, TrialResult]:
    """Evaluate a trial, and note in its result when and where that was, and what it took besides."""
    began, clock, answer = time.time(), defaultdict(float), None
    running = evaluate.evaluate(trial, search_context)
    with ExitStack() as stack:
        for name in IN_WORKER:
            stack.enter_context(timed(evaluate, name, clock, name))
        while True:
            try:
                report = running.send(answer)
            except StopIteration as end:
                result: TrialResult = end.value
                break
            entered = time.perf_counter()
            answer = yield report
            clock[ANSWER] += time.perf_counter() - entered
    span = Span(os.getpid(), began, time.time(), result.train_seconds, dict(clock))
    return dataclasses.replace(result, note={**result.note, "span": dataclasses.asdict(span)})


def account(spans: Sequence[Span], end: float, workers: int) -> Clock:
    """Return what the worker-seconds from the first start to `end` went to; they add up to all of them."""
    first = min(span.began for span in spans)
    parts: Clock = defaultdict(float)
    by_worker: dict[int, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda each: each.began):
        by_worker[span.worker].append(span)
        inside = {IN_WORKER.get(name, name): seconds for name, seconds in span.parts.items()}
        parts["methods, training, evaluation"] += span.train_seconds
        for name, seconds in inside.items():
            parts[name] += seconds
        parts["in the trial, rest"] += span.ended - span.began - span.train_seconds - sum(inside.values())
    last = max(span.ended for span in spans)
    for mine in by_worker.values():
        parts["until a worker's first trial"] += mine[0].began - first
        parts["between trials"] += sum(b.began - a.ended for a, b in zip(mine, mine[1:], strict=False))
        parts["tail"] += last - mine[-1].ended
    parts["until the last tell"] = (end - last) * len(by_worker)
    parts["workers without a trial"] = (end - first) * (workers - len(by_worker))
    return parts


def searched(config: RunConfig, controller: Clock, beside: Clock) -> tuple[list[Span], float]:
    """Search with watched trials; return their spans and when the last one was told.

    What is compared before training, and each leg of a trial, has a span of its own: all of it is told to `Screened`.
    """
    told: list[TrialResult] = []
    ends: list[float] = []
    tell: Callable[..., None] = Screened.tell

    def noted(screened: Screened, result: TrialResult) -> None:
        tell(screened, result)
        told.append(result)
        ends.append(time.time())

    with ExitStack() as stack:
        stack.enter_context(patch.object(Screened, "tell", noted))
        stack.enter_context(patch("search.orchestrator.evaluate", watched))
        for owner, name, label in CONTROLLER:
            stack.enter_context(timed(owner, name, controller, label))
        for owner, name in BESIDE:
            stack.enter_context(timed(owner, name, beside, "MLflow"))
        search.run(config)
    failed = [each.error for each in told if "span" not in each.note]
    if failed:
        sys.exit(f"{len(failed)} trials failed, the first with: {failed[0]}")
    return [Span(**each.note["span"]) for each in told], ends[-1]


def print_table(parts: Clock, controller: Clock, beside: Clock) -> float:
    """Print where the time went; return the share of it that went neither to trials nor to the tail."""
    total = sum(parts.values())
    print("| worker-seconds | s | share |\n|---|---|---|")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.2f} | {seconds / total:.2%} |")
    work, tail = parts["methods, training, evaluation"], parts["tail"]
    print(f"| all | {total:.2f} | {1:.2%} |\n\n| controller, meanwhile | s |\n|---|---|")
    for _, _, label in CONTROLLER:
        print(f"| {label} | {controller[label]:.2f} |")
    print(f"| MLflow, in its own thread | {beside['MLflow']:.2f} |\n")
    rest = (total - work - tail) / total
    print(f"{rest:.2%} goes to anything but methods, training and evaluation (allowed {ALLOWED:.0%}); "
          f"with the tail {(total - work) / total:.2%}")  # fmt: skip
    return rest


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2, help="trials at once, of one thread each")
    parser.add_argument("--data", default="cluttered_digits", help="or digits, whose trials are a quarter as long")
    parser.add_argument("--epochs", type=int, default=1, help="of a trial")
    parser.add_argument("--budget", default="50%", help="of every candidate")
    return parser.parse_args()


def main() -> None:
    chosen = parsed()
    config = RunConfig(
        budget=(chosen.budget,),
        model="resnet20",
        method="di",  # passes no nets, whose recount would be in train_seconds too
        trials=chosen.trials,
        data=DataConfig(name=chosen.data),
        train=TrainConfig(epochs=chosen.epochs, dense_epochs=2, batch_size=64, device="cpu"),
        runner=RunnerConfig(name="ray"),
        latency=LatencyConfig("none"),
    )
    controller: Clock = defaultdict(float)
    beside: Clock = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder, patch.object(ray_tune, "fitting_workers", lambda _: chosen.workers):
        with ray_tune.connected(config.runner):
            warm = dataclasses.replace(config, trials=1, out=str(Path(folder, "warm")))
            search.run(warm)  # trains and caches the dense net, and loads every library
            config = dataclasses.replace(config, out=str(Path(folder, "run")))
            spans, end = searched(config, controller, beside)
    span = end - min(each.began for each in spans)
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{len(spans)} evaluations on {chosen.data}, {chosen.workers} workers, {span:.1f} s from the first start to "
          f"the last tell; load of the machine {loads}\n")  # fmt: skip
    if print_table(account(spans, end, chosen.workers), controller, beside) > ALLOWED:
        sys.exit(1)


if __name__ == "__main__":
    main()
