"""A search with rungs: the same under every runner, and what becomes of its trials."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chain_space import chain
from search.reporting.live import SilentDisplay
from search.searchers.study_settings import StudySettings
from tiny_search import tiny_config

from configs.loading import RUN_FILE, load
from runners.base import Evaluation
from runners.config import RunnerConfig, TrainConfig
from runners.local import LocalRunner
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search import run
from search.results.pareto import ParetoFront
from search.schedulers.asha import NOT_CONTINUED
from search.schedulers.segments import KEPT_AFTER
from search.storage.checkpoints import TrialFiles
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import SearchSpace

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

    pass

RUNGS = (1, 2, 4)
BENCH: Any = None  # formulas need none


def needs(space: SearchSpace) -> SaturatingAccuracy:
    return SaturatingAccuracy(space, rates={group.name: 2.0 + i for i, group in enumerate(space.variable)})


def study_of(space: SearchSpace, trials: int = 24, **changes: Any) -> Study:
    settings = StudySettings(("l2", "geometric_median"), trials=trials, rungs=RUNGS, **changes)
    return Study(settings, space, [Budget("flops", 200_000)])


class Legs:
    """Counts the legs that a study gives out."""

    def __init__(self, study: Study) -> None:
        self.study, self.given, self.report, self.tell = study, [], study.report, study.tell

    def ask(self) -> Trial | None:
        if (trial := self.study.ask()) is not None:
            self.given.append(trial)
        return trial

    @property
    def epochs(self) -> int:
        return sum(trial.segment.epochs for trial in self.given if trial.segment)


def formula(trial: Trial, outcome: SaturatingAccuracy) -> Evaluation:
    """What a trainer that knows a formula would do, with weights that say how often they were trained."""
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
def searched(request: pytest.FixtureRequest) -> Legs:
    space = chain(8, 64)
    segments = Legs(study_of(space))
    if request.param == "simulated":
        SimulatedRunner(outcome=needs(space), epochs=RUNGS[-1]).run(segments, BENCH)
    else:
        LocalRunner(RunnerConfig(), lambda trial, search_context: formula(trial, needs(space))).run(segments, BENCH)
    return segments


def test_trials_grow_through_rungs_and_the_front_is_trained_to_the_end(searched: Legs) -> None:
    study = searched.study
    assert len(study.results) == 24
    assert all(member.trained == RUNGS[-1] for member in study.front)
    assert all(each.trained == RUNGS[-1] for each in study.results if each.trial.baseline == "uniform")
    reached = Counter(each.trained for each in study.results)
    assert reached.keys() == set(RUNGS)  # and nearly all networks of this formula end on the front
    assert searched.epochs == sum((each.trained or 0) for each in study.results) < 24 * RUNGS[-1]
    assert not study.unfinished


def test_a_trial_that_goes_on_keeps_its_number_and_adds_up_its_legs(searched: Legs) -> None:
    (first, *_), segments = searched.study.results, [each.segment for each in searched.given if each.number == 0]
    assert [(segment.trained, segment.epochs) for segment in segments if segment] == [(0, 1), (1, 1), (2, 2)]
    assert [epochs for epochs, _ in first.rungs] == [1, 2, 4]
    assert [report.epoch for report in first.curve if report.epoch] == [1, 2, 3, 4]
    seconds = [report.seconds for report in first.curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[0]  # since the trial began, not since its leg did
    assert first.accuracy == max(accuracy for _, accuracy in first.rungs)
    assert first.trial.segment is None
    if first.checkpoint is not None:
        assert first.checkpoint == b"++++"  # each leg has gone on from the weights of the one before


def legs_of(study: Study, number: int) -> Iterator[Trial]:
    """Tell every trial but this one as the formula says, and yield each leg of this one for the caller to tell."""
    while (trial := study.ask()) is not None:
        if trial.number == number:
            yield trial
        else:
            study.tell(finished(trial))


def finished(trial: Trial, **changes: Any) -> TrialResult:
    evaluation = formula(trial, needs(chain(8, 64)))
    while True:
        try:
            next(evaluation)
        except StopIteration as ended:
            return dataclasses.replace(ended.value, **changes)


def test_a_leg_that_fails_keeps_what_was_finished_and_ends_the_trial() -> None:
    study = study_of(chain(8, 64))
    segments = legs_of(study, 0)
    study.tell(finished(next(segments)))
    before = study.results[0]
    study.tell(TrialResult(next(segments), TrialState.FAILED, error="OutOfMemoryError: no more\nmemory", seconds=2.0))
    assert next(segments, None) is None
    after = study.results[0]
    assert (after.state, after.accuracy, after.rungs) == (TrialState.COMPLETE, before.accuracy, before.rungs)
    assert after.checkpoint == before.checkpoint
    assert after.seconds == before.seconds + 2.0
    assert after.note[NOT_CONTINUED] == "to 2 epochs: OutOfMemoryError: no more memory"


def test_a_longer_training_that_comes_out_worse_leaves_the_better_network() -> None:
    study = study_of(chain(8, 64))
    segments = legs_of(study, 0)
    study.tell(finished(next(segments)))
    before = study.results[0]
    study.tell(finished(next(segments), accuracy=0.01))
    after = study.results[0]
    assert (after.accuracy, after.checkpoint, after.trained) == (before.accuracy, b"+", 2)
    assert after.note[KEPT_AFTER] == 1
    assert after.rungs[1] == (2, 0.01)
    study.tell(finished(next(segments), accuracy=0.99))
    last = study.results[0]
    assert (last.accuracy, last.checkpoint, last.trained) == (0.99, b"+++", 4)  # from the better network
    assert KEPT_AFTER not in last.note


def test_a_leg_that_the_time_limit_cuts_short_can_be_made_up_for() -> None:
    study = study_of(chain(8, 64))
    segments = legs_of(study, 0)
    study.tell(finished(next(segments)))
    study.tell(finished(next(segments), state=TrialState.STOPPED, accuracy=0.01))
    assert study.results[0].trained == 1
    again = next(segments)
    assert again.segment is not None
    assert (again.segment.trained, again.segment.end, again.segment.start) == (1, 2, b"+")
    assert study.unfinished


def test_with_the_trials_given_out_there_is_none_yet_while_one_runs_that_may_go_on() -> None:
    study = study_of(chain(8, 64), trials=8)
    waiting: list[Trial] = []
    while (trial := study.ask()) is not None:
        waiting.append(trial)
    assert len(waiting) == 8
    while waiting:
        study.tell(finished(waiting.pop(0)))
        while (trial := study.ask()) is not None:
            waiting.append(trial)
    assert all(member.trained == RUNGS[-1] for member in study.front)
    assert study.ask() is None


def test_workers_of_ray_go_on_from_the_weights_of_other_workers(
    tiny_search_context: "SearchContext", ray_of_two: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from runners.evaluation.evaluate import evaluate
    from runners.ray.runner import RayRunner

    monkeypatch.setattr("runners.ray.runner.fitting_workers", lambda config: 2)
    search_context = dataclasses.replace(
        tiny_search_context, train=dataclasses.replace(tiny_search_context.train, epochs=2)
    )
    settings = StudySettings(("l2",), trials=8, rungs=(1, 2), storage=f"sqlite:///{tmp_path / 'study.db'}")
    study = Study(settings, search_context.space, [Budget.parse("70%")], archive=TrialFiles(tmp_path))
    (tmp_path / "trials").mkdir()
    segments = Legs(study)
    RayRunner(RunnerConfig(name="ray"), evaluate).run(segments, search_context)
    assert [each.error for each in study.results if each.error] == []
    assert not any(NOT_CONTINUED in each.note for each in study.results)
    assert len(study.results) == 8
    assert all(member.trained == 2 for member in study.front)
    assert {each.number for each in segments.given if each.segment and each.segment.start} >= {0, 1}
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {Path(r.path).name for r in study.results}
    again = Study(settings, search_context.space, [Budget.parse("70%")], archive=TrialFiles(tmp_path))
    assert again.results == study.results
    assert not again.unfinished


class Watching(SilentDisplay):
    """Notes phases, and stops the search once trials have gone on."""

    def __init__(self, stop_after: int) -> None:
        self.phases: list[str] = []
        self._left = stop_after

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def trial_done(self, result: TrialResult, front: ParetoFront, done: int, total: int) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("without_programs")
def test_a_real_search_with_rungs_is_stopped_resumed_and_reported(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    train = TrainConfig(epochs=2, batch_size=32, precision="float32", device="cpu")
    config = tiny_config(folder, budget=("60%",), train=train, trials=8, rungs="1")
    display = Watching(stop_after=7)
    stopped = run(config, display)
    assert stopped.interrupted
    assert "trial 0 goes on to 2 epochs" in display.phases
    before = {each.trial.number: each.rungs for each in stopped.results}
    assert any(len(rungs) == 2 for rungs in before.values())

    result = run(dataclasses.replace(load(str(folder / RUN_FILE)), resume=str(folder)))

    after = {each.trial.number: each.rungs for each in result.results}
    assert len(after) == 8
    assert all(after[number][: len(rungs)] == rungs for number, rungs in before.items())  # none was trained twice
    assert all(member.trained == 2 for member in result.front)
    assert result.rungs == (1, 2)
    assert {path.name for path in (folder / "trials").iterdir()} == {Path(each.path).name for each in result.results}
    text = (folder / "report.html").read_text()
    assert "Rungs after 1 of 2 epochs: trials ended " in text
    assert "Proxy audit" in text
    client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    runs = client.search_runs([client.get_experiment_by_name("slimfront").experiment_id])
    children = {each.info.run_name: each for each in runs if "mlflow.parentRunId" in each.data.tags}
    assert len(runs) == 9
    for each in result.results:
        metrics = children[f"trial {each.trial.number:04d}"].data.metrics
        assert (metrics["accuracy"], metrics["epochs"]) == (each.accuracy, each.trained)
