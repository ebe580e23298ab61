"""The overhead of a runner per trial, and how workers and threads share the cores.

`pytest tests/benchmarks/test_runners.py --benchmark-only -s`; prints times and ratios of one run.
"""

import multiprocessing
import time
from typing import Any

import torch

from pruning.base import Goal
from runners.config import RunnerConfig
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.local import LocalRunner
from runners.ray.runner import RayRunner
from runners.training.compute_format import ComputeFormat, step_seconds, using_threads
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from spaces.space import ModelSpec
from spaces.zoo.models import build

TRIALS = 24
WARM_UP = 4
SHAPE = (3, 32, 32)


class Desk:
    """Hands out trials of one candidate and notes the time of each result."""

    def __init__(self, search_context: SearchContext) -> None:
        self._left = [Trial(number, "l2", Goal(search_context.space.smallest), seed=number) for number in range(TRIALS)]
        self.told: list[tuple[float, TrialResult]] = []

    def ask(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def report(self, report: EpochReport) -> bool:
        return True

    def tell(self, result: TrialResult) -> None:
        assert result.state is TrialState.COMPLETE, result.error
        self.told.append((time.perf_counter(), result))

    def overhead(self) -> float:
        """Return the wall seconds per trial outside method, training and evaluation, once warm, with one worker."""
        (began, _), *rest = self.told[WARM_UP - 1 :]
        busy = sum(result.train_seconds for _, result in rest)
        return (rest[-1][0] - began - busy) / len(rest)


def test_overhead_of_a_trial(tiny_search_context: SearchContext, benchmark: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("runners.ray.runner.fitting_workers", lambda config: 1)
    ours, theirs = Desk(tiny_search_context), Desk(tiny_search_context)
    LocalRunner(RunnerConfig(), evaluate).run(ours, tiny_search_context)
    benchmark.pedantic(RayRunner(RunnerConfig(cpus_per_trial=1), evaluate).run, (theirs, tiny_search_context), rounds=1)
    local, ray = ours.overhead(), theirs.overhead()
    print(f"\noverhead of a warm trial: local {local * 1e3:.0f} ms, Ray {ray * 1e3:.0f} ms, {ray / local:.1f} times")
    assert len(ours.told) == len(theirs.told) == TRIALS


def train_steps(threads: int, answers: Any) -> None:
    """Train cifar_resnet18 in a process of its own; answer with images per second."""
    torch.set_num_threads(threads)
    net, images = build(ModelSpec("cifar_resnet18", 10, SHAPE)), torch.rand(32, *SHAPE)
    with using_threads(threads):
        answers.put(len(images) / step_seconds(net, images, ComputeFormat(torch.bfloat16, True), steps=12))


def images_per_second(processes: int, threads: int) -> float:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=train_steps, args=(threads, answers)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    total = sum(answers.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    return total


def test_two_workers_of_one_thread_against_one_of_two(benchmark: Any) -> None:
    pairs = [(images_per_second(2, 1), images_per_second(1, 2)) for _ in range(2)]
    benchmark.pedantic(lambda: None, rounds=1)
    apart, together = (max(rates) for rates in zip(*pairs, strict=True))
    print(
        f"\ncifar_resnet18, batch 32, bfloat16: 2 workers x 1 thread {apart:.0f} images/s, 1 worker x 2 threads "
        f"{together:.0f} images/s, {apart / together:.2f} times"
    )
