"""A search with rungs: the same under every runner, and what becomes of its trials."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chain_space import chain
from made_up_search import MadeUpSearch, Watched, problem_of, search_of
from tiny_search import tiny_config

from configs.loading import RUN_FILE, load
from runners.base import Evaluation
from runners.config import RunnerConfig, TrainConfig
from runners.local import LocalRunner
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search import run
from search.callbacks import Progress, SearchCallback
from search.results.rank_correlation import PROXY, SCREENED
from search.schedulers.segments import KEPT_AFTER, NOT_CONTINUED
from search.storage.checkpoints import CheckpointFolder
from spaces.budget import Budget
from spaces.space import SearchSpace

if TYPE_CHECKING:
    from runners.evaluation.context import SearchContext

RUNGS = (1, 2, 4)
BENCH: Any = None  # formulas need no search context


def needs(space: SearchSpace) -> SaturatingAccuracy:
    return SaturatingAccuracy(space, rates={group.name: 2.0 + i for i, group in enumerate(space.variable)})


def search_with_rungs(space: SearchSpace, trials: int = 36) -> MadeUpSearch:
    methods = ("l2", "geometric_median")
    return search_of(problem_of(space, (Budget("flops", 200_000),), methods, trials=trials, rungs=RUNGS))


def formula(trial: Trial, outcome: SaturatingAccuracy) -> Evaluation:
    """Train by a formula, with weights that say how often they were trained."""
    final = outcome(trial)
    segment = trial.segment
    assert segment is not None
    assert (segment.start is None) == (segment.trained == 0)
    weights = (segment.start or b"") + b"+" * segment.epochs
    curve = []
    for epoch in range(segment.trained + 1, segment.end + 1):
        curve.append(EpochReport(trial.number, epoch, final.accuracy * epoch / (epoch + 1), 1.0))
        yield curve[-1]
    state, reached = TrialState.COMPLETE, curve[-1].accuracy
    return TrialResult(trial, state, reached, final.cost, final.widths, tuple(curve), 1.0, 1.0, checkpoint=weights)


@pytest.fixture(params=["local", "simulated"])
def searched(request: pytest.FixtureRequest) -> Watched:
    space = chain(8, 64)
    segments = Watched(search_with_rungs(space))
    if request.param == "simulated":
        SimulatedRunner(outcome=needs(space), epochs=RUNGS[-1]).run(segments, BENCH)
    else:
        LocalRunner(RunnerConfig(), lambda trial, search_context: formula(trial, needs(space))).run(segments, BENCH)
    return segments


def test_trials_are_promoted_through_rungs_and_the_front_is_trained_to_the_end(searched: Watched) -> None:
    search = searched.search
    assert len(search.results) == 36
    assert all(member.trained == RUNGS[-1] for member in search.front)
    assert all(result.trained == RUNGS[-1] for result in search.results if result.trial.baseline)
    reached = Counter(result.trained for result in search.results)
    assert {RUNGS[0], RUNGS[-1]} <= reached.keys() <= set(RUNGS)  # nearly all networks of this formula end on the front
    assert searched.epochs == sum((result.trained or 0) for result in search.results) < 36 * RUNGS[-1]
    assert not search.tuner.unfinished


def test_a_promoted_trial_keeps_its_number_and_adds_up_its_segments(searched: Watched) -> None:
    first, *_ = searched.search.results
    segments = [trial.segment for trial in searched.given if trial.number == 0]
    assert [(segment.trained, segment.epochs) for segment in segments if segment] == [(0, 1), (1, 1), (2, 2)]
    assert [epochs for epochs, _ in first.rungs] == [1, 2, 4]
    assert [report.epoch for report in first.curve if report.epoch] == [1, 2, 3, 4]
    seconds = [report.seconds for report in first.curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0]  # since the trial began, not since its segment did
    assert first.accuracy == max(accuracy for _, accuracy in first.rungs)
    assert first.trial.segment is None
    if first.checkpoint is not None:
        assert first.checkpoint == b"++++"  # every segment has gone on from the weights of the one before


def segments_of(search: MadeUpSearch, number: int) -> Iterator[Trial]:
    """Tell every other trial by the formula, and yield every segment of this one for the caller to tell."""
    while (trial := search.ask()) is not None:
        if trial.number == number:
            yield trial
        else:
            search.tell(finished(trial))


def finished(trial: Trial, **changes: Any) -> TrialResult:
    evaluation = formula(trial, needs(chain(8, 64)))
    while True:
        try:
            next(evaluation)
        except StopIteration as ended:
            return dataclasses.replace(ended.value, **changes)


def test_a_segment_that_fails_keeps_the_network_of_before_and_ends_the_trial() -> None:
    search = search_with_rungs(chain(8, 64))
    segments = segments_of(search, 0)
    search.tell(finished(next(segments)))
    before = search.results[0]
    search.tell(TrialResult(next(segments), TrialState.FAILED, error="OutOfMemoryError: no more\nmemory", seconds=2.0))
    assert next(segments, None) is None
    after = search.results[0]
    assert (after.state, after.accuracy, after.rungs) == (TrialState.COMPLETE, before.accuracy, before.rungs)
    assert after.checkpoint == before.checkpoint
    assert after.seconds == before.seconds + 2.0
    assert after.note[NOT_CONTINUED] == "to 2 epochs: OutOfMemoryError: no more memory"


def test_a_longer_training_that_comes_out_worse_leaves_the_better_network() -> None:
    search = search_with_rungs(chain(8, 64))
    segments = segments_of(search, 0)
    search.tell(finished(next(segments)))
    before = search.results[0]
    search.tell(finished(next(segments), accuracy=0.01))
    after = search.results[0]
    assert (after.accuracy, after.checkpoint, after.trained) == (before.accuracy, b"+", 2)
    assert after.note[KEPT_AFTER] == 1
    assert after.rungs[1] == (2, 0.01)
    search.tell(finished(next(segments), accuracy=0.99))
    last = search.results[0]
    assert (last.accuracy, last.checkpoint, last.trained) == (0.99, b"+++", 4)  # from the better network
    assert KEPT_AFTER not in last.note


def test_a_segment_that_the_time_limit_cuts_short_can_be_made_up_for() -> None:
    search = search_with_rungs(chain(8, 64))
    segments = segments_of(search, 0)
    search.tell(finished(next(segments)))
    search.tell(finished(next(segments), state=TrialState.STOPPED, accuracy=0.01))
    assert search.results[0].trained == 1
    again = next(segments)
    assert again.segment is not None
    assert (again.segment.trained, again.segment.end, again.segment.start) == (1, 2, b"+")
    assert search.tuner.unfinished


def test_with_all_trials_handed_out_there_is_none_yet_while_one_runs_that_may_be_promoted() -> None:
    search = search_with_rungs(chain(8, 64), trials=8)
    running: list[Trial] = []
    while (trial := search.ask()) is not None:
        running.append(trial)
    assert len(running) == 8
    while running:
        search.tell(finished(running.pop(0)))
        while (trial := search.ask()) is not None:
            running.append(trial)
    assert all(member.trained == RUNGS[-1] for member in search.front)
    assert search.ask() is None


def test_a_trial_whose_weights_are_gone_keeps_its_result_and_is_not_promoted(tmp_path: Path) -> None:
    problem = problem_of(chain(8, 64), (Budget("flops", 200_000),), trials=8, rungs=RUNGS)
    (tmp_path / "trials").mkdir()
    search = search_of(problem, checkpoints=CheckpointFolder(tmp_path))
    trial = search.ask()
    assert trial is not None
    search.tell(finished(trial))
    (tmp_path / search.results[0].path).unlink()
    following = search.ask()
    assert following is not None
    assert following.number == 1
    assert "cannot be read" in search.results[0].note[NOT_CONTINUED]
    assert search.results[0].state is TrialState.COMPLETE


def test_workers_of_ray_compare_before_they_train_and_go_on_from_the_weights_of_other_workers(
    tiny_search_context: "SearchContext", ray_of_two: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from runners.evaluation.evaluate import evaluate
    from runners.ray.runner import RayRunner

    monkeypatch.setattr("runners.ray.runner.fitting_workers", lambda config: 2)
    search_context = dataclasses.replace(
        tiny_search_context, train=dataclasses.replace(tiny_search_context.train, epochs=2)
    )
    settings: dict[str, Any] = {"sampler": "random", "lowest_fraction": 0.4, "allocation": "search"}
    problem = problem_of(search_context.space, ("70%",), ("l1",), trials=8, rungs=(1, 2), **settings)
    url = f"sqlite:///{tmp_path / 's.db'}"
    (tmp_path / "trials").mkdir()
    segments = Watched(search_of(problem, url=url, size=3, checkpoints=CheckpointFolder(tmp_path)))
    RayRunner(RunnerConfig(name="ray"), evaluate).run(segments, search_context)
    search = segments.search
    assert [result.error for result in search.results if result.error] == []
    assert not any(NOT_CONTINUED in result.note for result in search.results)
    assert len(search.results) == 8
    winners = [result for result in search.results if SCREENED in result.note]
    by_dense = [trial for trial in segments.compared if not trial.parent]
    assert sum(winner.note[SCREENED] for winner in winners) == len(by_dense) > len(winners)
    assert len(segments.compared) > len(by_dense)  # some are cut from a trained network too
    assert all(winner.curve[0].proxy == winner.note[PROXY] for winner in winners)
    assert all(member.trained == 2 for member in search.front)
    assert {trial.number for trial in segments.given if trial.segment and trial.segment.start} >= {0, 1}
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {Path(r.path).name for r in search.results}
    again = search_of(problem, url=url, checkpoints=CheckpointFolder(tmp_path))
    assert again.results == search.results
    assert not again.tuner.unfinished


class Watching(SearchCallback):
    """Remembers promotions, and stops the search once trials were promoted."""

    def __init__(self, stop_after: int) -> None:
        self.promotions: list[tuple[int, int]] = []
        self._left = stop_after

    def on_promotion(self, number: int, epochs: int) -> None:
        self.promotions.append((number, epochs))

    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("without_programs")
def test_a_real_search_with_rungs_is_stopped_resumed_and_reported(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    train = TrainConfig(epochs=2, batch_size=32, precision="float32", device="cpu")
    config = tiny_config(folder, budget=("60%",), train=train, trials=8, rungs="1")
    watching = Watching(stop_after=7)
    stopped = run(config, [watching])
    assert stopped.interrupted
    assert (0, 2) in watching.promotions
    before = {result.trial.number: result.rungs for result in stopped.results}
    assert any(len(rungs) == 2 for rungs in before.values())

    result = run(dataclasses.replace(load(str(folder / RUN_FILE)), resume=str(folder)))

    after = {trial.trial.number: trial.rungs for trial in result.results}
    assert len(after) == 8
    assert all(after[number][: len(rungs)] == rungs for number, rungs in before.items())  # none was trained twice
    assert all(member.trained == 2 for member in result.front)
    assert result.rungs == (1, 2)
    written = {path.name for path in (folder / "trials").iterdir()}
    assert written == {Path(trial.path).name for trial in result.results}
    text = (folder / "report.html").read_text()
    assert "Rungs after 1 of 2 epochs: " in text
    assert "Proxy audit" in text
    client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("slimfront").experiment_id])
    children = {child.info.run_name: child for child in runs if "mlflow.parentRunId" in child.data.tags}
    assert len(runs) == 9
    for trial in result.results:
        metrics = children[f"trial {trial.trial.number:04d}"].data.metrics
        assert (metrics["accuracy"], metrics["epochs"]) == (trial.accuracy, trial.trained)
