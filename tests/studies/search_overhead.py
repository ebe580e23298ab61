"""How much of a search's time goes to anything but trials? python tests/studies/search_overhead.py

The study runs a search under Ray that is warm (Ray runs, the dense network is cached), and accounts for all worker-
seconds from the start of its first trial to its last tell: methods, training and evaluation; the rest of a trial in its
worker; the wait of a worker between two trials; and the tail, in which some workers have nothing left while others run.
In the tail a trial still runs, so it counts as training in wall time, and it is shown apart. The study ends with exit
code 1 when more than 5% goes to the rest. The latency of the front is measured after this span.
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

from harness import print_table

import search
from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.evaluation import evaluate
from runners.ray import runner as ray_tune
from runners.trial import EpochReport, Trial, TrialResult
from search.storage.checkpoints import CheckpointFolder
from search.storage.study_storage import StudyStorage
from search.tracking.mlflow_tracker import MlflowTracker
from search.tracking.runs import SearchRuns
from search.tuner import Tuner

ALLOWED = 0.05
Clock = dict[str, float]
# Functions that a trial calls in its worker outside its train_seconds -> their name in the table.
IN_WORKER = {"count_cost": "cost recounted with fvcore", "to_bytes": "checkpoint to bytes"}
ANSWER = "waiting for the answer to a report"
# Work of the controller while a worker waits for its next trial. An indented label is a part of the one above it.
CONTROLLER = (
    (Tuner, "ask", "proposals"),
    (Tuner, "tell", "tell, with the next three"),
    (CheckpointFolder, "keep", "  checkpoint written"),
    (StudyStorage, "add", "  record written"),
    (MlflowTracker, "on_trial_end", "  MLflow, handing over"),
)
BESIDE = ((SearchRuns, "send"), (SearchRuns, "confirm"))  # in a thread of its own


@dataclasses.dataclass(frozen=True)
class Span:
    """A trial as its worker timed it; times are in seconds of the machine's clock."""

    worker: int
    began: float
    ended: float
    train_seconds: float
    parts: Clock


@contextmanager
def timed(owner: Any, name: str, clock: Clock, label: str) -> Iterator[None]:
    """Add to the clock the time that calls of a function take inside the block."""
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
    """Evaluate a trial, and store its `Span` in the note of its result."""
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
    """Return the worker-seconds from the first start to `end` by their use; they add up to all worker-seconds."""
    first = min(span.began for span in spans)
    parts: Clock = defaultdict(float)
    by_worker: dict[int, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.began):
        by_worker[span.worker].append(span)
        inside = {IN_WORKER.get(name, name): seconds for name, seconds in span.parts.items()}
        parts["methods, training, evaluation"] += span.train_seconds
        for name, seconds in inside.items():
            parts[name] += seconds
        parts["in the trial, rest"] += span.ended - span.began - span.train_seconds - sum(inside.values())
    last = max(span.ended for span in spans)
    for own in by_worker.values():
        parts["until a worker's first trial"] += own[0].began - first
        parts["between trials"] += sum(b.began - a.ended for a, b in zip(own, own[1:], strict=False))
        parts["tail"] += last - own[-1].ended
    parts["until the last tell"] = (end - last) * len(by_worker)
    parts["workers without a trial"] = (end - first) * (workers - len(by_worker))
    return parts


def searched(config: RunConfig, controller: Clock, beside: Clock) -> tuple[list[Span], float]:
    """Search with watched trials; return their spans and the time of the last tell.

    Parts of screening pools and training segments of a trial have spans of their own: the tuner is told all of them.
    """
    told: list[TrialResult] = []
    ends: list[float] = []
    tell: Callable[..., None] = Tuner.tell

    def noted(tuner: Tuner, result: TrialResult) -> None:
        tell(tuner, result)
        told.append(result)
        ends.append(time.time())

    with ExitStack() as stack:
        stack.enter_context(patch.object(Tuner, "tell", noted))
        stack.enter_context(patch("search.orchestrator.evaluate", watched))
        for owner, name, label in CONTROLLER:
            stack.enter_context(timed(owner, name, controller, label))
        for owner, name in BESIDE:
            stack.enter_context(timed(owner, name, beside, "MLflow"))
        search.run(config)
    failed = [result.error for result in told if "span" not in result.note]
    if failed:
        sys.exit(f"{len(failed)} trials failed, the first with: {failed[0]}")
    return [Span(**result.note["span"]) for result in told], ends[-1]


def print_results(parts: Clock, controller: Clock, beside: Clock) -> float:
    """Print the use of the time; return the share of it that went neither to trials nor to the tail."""
    total = sum(parts.values())
    used = [[name, f"{seconds:.2f}", f"{seconds / total:.2%}"] for name, seconds in parts.items()]
    print_table("Use of the time", ["worker-seconds", "s", "share"], [*used, ["all", f"{total:.2f}", f"{1:.2%}"]])
    meanwhile = [[label, f"{controller[label]:.2f}"] for _, _, label in CONTROLLER]
    meanwhile.append(["MLflow, in its own thread", f"{beside['MLflow']:.2f}"])
    print_table("Work of the controller", ["controller, meanwhile", "s"], meanwhile)
    work, tail = parts["methods, training, evaluation"], parts["tail"]
    rest = (total - work - tail) / total
    print(
        f"\n{rest:.2%} goes to anything but methods, training and evaluation (allowed {ALLOWED:.0%}); "
        f"with the tail {(total - work) / total:.2%}"
    )
    return rest


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2, help="concurrent trials, of one thread each")
    parser.add_argument("--data", default="cluttered_digits", help="or digits, whose trials are a quarter as long")
    parser.add_argument("--epochs", type=int, default=1, help="of a trial")
    parser.add_argument("--budget", default="50%", help="of every candidate")
    return parser.parse_args()


def main() -> None:
    chosen = parsed()
    config = RunConfig(
        budget=(chosen.budget,),
        model="resnet20",
        method="di",  # has no intermediate networks, whose recount would count in train_seconds
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
    span = end - min(trial.began for trial in spans)
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{len(spans)} evaluations on {chosen.data}, {chosen.workers} workers, {span:.1f} s from the first start to "
          f"the last tell; load of the machine {loads}\n")  # fmt: skip
    if print_results(account(spans, end, chosen.workers), controller, beside) > ALLOWED:
        sys.exit(1)


if __name__ == "__main__":
    main()
