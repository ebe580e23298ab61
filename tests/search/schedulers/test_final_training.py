"""Final training: which networks are trained on after a search, and what they are cut from; a stop loses nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chain_space import chain
from made_up_search import MadeUpSearch, problem_of, search_of

from runners.config import TrainConfig
from runners.trial import (
    DISTILL_WEIGHT,
    TEACHER,
    EpochReport,
    ScreenedCandidate,
    Teaching,
    TrainingSegment,
    Trial,
    TrialResult,
    TrialState,
)
from search.schedulers.asha import Promotion
from search.schedulers.final_training import DenseAccuracy, FinalTraining, split_epochs
from search.schedulers.segments import NOT_CONTINUED
from search.searchers.candidate_space import CandidateSpace
from search.storage.checkpoints import CheckpointStore
from search.time_left import FinalCost, time_share
from spaces.errors import WeightsError
from spaces.space import uniform_ratios

SPACE = chain(6, 32)
TARGETS = (50, 20, 8)
Outcome = Callable[[Trial], TrialResult]


def search(
    final_epochs: int = 8,
    url: str = "",
    checkpoints: CheckpointStore | None = None,
    *,
    inherit: bool = True,
    epochs: int = 1,
) -> MadeUpSearch:
    shares = ",".join(f"{target}%" for target in TARGETS)
    problem = problem_of(
        SPACE,
        ["50%"],
        ["di", "l2"],
        final_epochs=str(final_epochs),
        trials=12,
        inherit=inherit,
        train=TrainConfig(epochs=epochs),
    )
    config = replace(problem.config, targets=shares, budget=())
    return search_of(type(problem).resolve(config, SPACE), url=url, checkpoints=checkpoints or Kept())


class Kept(CheckpointStore):
    """Has weights for every result."""

    def read(self, result: TrialResult) -> bytes:
        return f"weights of {result.trial.number}".encode()


def outcome(trial: Trial) -> TrialResult:
    """Networks gain by width and with every epoch; what a network is cut from counts most."""
    widths = trial.goal.widths or SPACE.fit(uniform_ratios(SPACE), trial.goal.budgets)
    cost = SPACE.cost(widths)
    begin = trial.segment.trained if trial.segment else 0
    end = trial.segment.end if trial.segment else 1
    base = 0.3 + 0.3 * cost.flops / SPACE.dense_cost.flops + 0.1 * bool(trial.parent) + 0.01 * (trial.method == "di")
    curve = tuple(EpochReport(trial.number, epoch, base + 0.002 * epoch, 1.0) for epoch in range(begin + 1, end + 1))
    return TrialResult(trial, TrialState.COMPLETE, curve[-1].accuracy, cost, widths, curve, 1.0, 1.0)


def finish(made_up: MadeUpSearch, outcome: Outcome = outcome, most: int = 1000) -> list[Trial]:
    """Run trials one after the other; return those of the final training."""
    final = []
    for _ in range(most):
        if (trial := made_up.ask()) is None:
            break
        if trial.segment is not None and trial.segment.final:
            final.append(trial)
        made_up.tell(outcome(trial))
    return final


def test_every_target_is_trained_for_its_epochs_from_the_largest_down() -> None:
    made_up = search()
    final = finish(made_up)
    spent = dict.fromkeys(TARGETS, 0)
    order = []
    for trial in final:
        share = 100 * outcome(trial).cost.flops / SPACE.dense_cost.flops  # type: ignore[union-attr]
        target = min(target for target in TARGETS if share <= target)
        spent[target] += trial.segment.epochs  # type: ignore[union-attr]
        order.append(target)
    assert [spent[target] for target in TARGETS] == [9, 6, 9]  # 8 on average
    assert order == sorted(order, reverse=True)


def test_networks_are_cut_from_the_winner_of_the_target_above() -> None:
    made_up = search()
    heirs = [trial for trial in finish(made_up) if trial.parent and not trial.segment.trained]  # type: ignore[union-attr]
    results = {result.label: result for result in made_up.results}
    assert heirs
    for trial in heirs:
        parent = results[trial.parent]
        assert trial.segment is not None
        assert trial.segment.start == f"weights of {trial.parent}".encode()
        assert parent.final_epochs > 4  # the winner of its target
        assert parent.cost.flops > results[str(trial.number)].cost.flops  # type: ignore[union-attr]
    best = [made_up.history.best_at(target) for target in made_up.problem.targets]
    assert [network.trial.final for network in best[1:] if network is not None] == [True, True]


def test_only_the_last_segment_of_a_target_completes_a_final_training() -> None:
    segments = [trial.segment for trial in finish(search()) if trial.segment is not None]
    completing = [segment.epochs for segment in segments if segment.completes]
    assert len(completing) == len(TARGETS)  # one network at every target; heirs are compared before, after one epoch
    assert min(completing) > 1
    assert {segment.epochs for segment in segments if not segment.completes} == {1}
    assert [segment.completes for segment in (trial.segment for trial in finish(search(2))) if segment] == [True] * 3


def test_where_heirs_are_behind_after_equal_training_the_best_of_the_search_is_trained_on() -> None:
    def behind(trial: Trial) -> TrialResult:
        result = outcome(trial)
        return replace(result, accuracy=(result.accuracy or 0.0) / 2) if trial.parent else result

    made_up = search()
    finish(made_up, behind)
    for target in made_up.problem.targets:
        best = made_up.history.best_at(target)
        assert best is not None
        assert not best.trial.parent
    spent = {result.trial.parent: result.final_epochs for result in made_up.results if result.trial.parent}
    assert set(spent.values()) == {1}  # heirs had their rung, and no more
    assert sum(result.final_epochs for result in made_up.results) == 3 * 8


@pytest.mark.parametrize(("val_images", "goes_on"), [(100, True), (1_000_000, False), (0, False)])
def test_an_heir_gives_way_only_to_a_network_that_is_ahead_by_more_than_the_noise(
    val_images: int, goes_on: bool
) -> None:
    def behind(trial: Trial) -> TrialResult:
        result = outcome(trial)
        return replace(result, accuracy=(result.accuracy or 0.0) - 0.13) if trial.parent else result

    made_up, heirs = search(), set[int]()
    while len(heirs) < 2 and (trial := made_up.ask()) is not None:  # until the heirs of a target are at the rung
        made_up.tell(behind(trial))
        heirs |= {trial.number} if trial.parent else set()
    assert len(heirs) == 2
    training = FinalTraining(CandidateSpace(made_up.problem), 8, val_images=val_images)
    step = training.next_step(made_up.results, set())
    assert isinstance(step, Promotion)
    assert step.completes
    assert (step.number in heirs) is goes_on


def test_the_search_keeps_its_number_of_trials_and_its_accuracies() -> None:
    made_up = search()
    finish(made_up)
    assert len(made_up.history.searched) == made_up.tuner.total == 12
    for result in made_up.history.searched:
        assert result.searched_accuracy == pytest.approx(outcome(replace(result.trial, segment=None)).accuracy)
    assert not made_up.tuner.unfinished


@pytest.mark.parametrize("stopped_after", range(12, 24, 2))
def test_a_stopped_final_training_goes_on_as_it_would_have(tmp_path: Path, stopped_after: int) -> None:
    whole = search()
    finish(whole)
    url = f"sqlite:///{tmp_path}/study.db"
    first = search(url=url)
    finish(first, most=stopped_after)
    first.ask()  # a worker has it when the process is stopped
    first.tuner.close()
    second = search(url=url)
    finish(second)
    trained = [(result.trial.key(), result.final_epochs, result.rungs) for result in whole.results]
    assert [(result.trial.key(), result.final_epochs, result.rungs) for result in second.results] == trained


def test_without_targets_members_of_the_front_are_trained_on() -> None:
    problem = problem_of(SPACE, ["50%"], ["di"], final_epochs="6", trials=12)
    made_up = search_of(problem, checkpoints=Kept())
    final = finish(made_up)
    assert sum(trial.segment.epochs for trial in final if trial.segment) <= 4 * 6
    trained = {result.cost.flops for result in made_up.results if result.final_epochs > 3 and result.cost}
    assert len(trained) == 4
    assert max(trained) > 3 * min(trained)


def test_a_network_whose_weights_are_lost_is_passed_over() -> None:
    class Lost(Kept):
        def read(self, result: TrialResult) -> bytes:
            if result.trial.number == 0:
                raise WeightsError("gone")
            return super().read(result)

    made_up = search(checkpoints=Lost())
    assert finish(made_up)
    lost = made_up.history.result(0)
    assert lost.final_epochs == 0
    assert lost.note.get(NOT_CONTINUED, "gone") == "gone"


def test_failed_heirs_leave_the_network_of_the_search() -> None:
    def fail(trial: Trial) -> TrialResult:
        return TrialResult(trial, TrialState.FAILED, error="broken") if trial.parent else outcome(trial)

    made_up = search()
    finish(made_up, fail)
    for target in made_up.problem.targets:
        best = made_up.history.best_at(target)
        assert best is not None
        assert best.final_epochs >= 4


def test_heirs_are_trained_for_as_long_as_trials_before_they_are_compared() -> None:
    made_up = search(final_epochs=12, epochs=3)

    def three(trial: Trial) -> TrialResult:
        whole = replace(trial, segment=trial.segment or TrainingSegment(3))
        return replace(outcome(whole), trial=trial)

    first = [trial.segment.epochs for trial in finish(made_up, three) if trial.parent and not trial.segment.trained]  # type: ignore[union-attr]
    assert first
    assert set(first) == {3}


def test_few_epochs_have_one_entrant() -> None:
    made_up = search(final_epochs=2)
    final = finish(made_up)
    assert [trial.segment.epochs for trial in final if trial.segment] == [2, 2, 2]


def test_without_inheritance_only_what_was_cut_from_the_dense_network_is_trained_on() -> None:
    made_up = search(inherit=False)
    assert finish(made_up)
    assert not [result for result in made_up.results if result.trial.parent]


def test_two_workers_spend_the_same_epochs_on_the_same_networks() -> None:
    alone, together = search(), search()
    finish(alone)
    running: list[Trial] = []
    while True:
        while len(running) < 2 and (trial := together.ask()) is not None:
            running.append(trial)
        if not running:
            break
        together.tell(outcome(running.pop(0)))
    trained = {result.trial.key(): result.final_epochs for result in alone.results}
    assert {result.trial.key(): result.final_epochs for result in together.results} == trained


def test_trials_that_are_being_compared_are_finished_when_the_time_of_the_search_is_over() -> None:
    over = False
    problem = problem_of(SPACE, ["50%"], ["l2"], final_epochs="6", trials=30, sampler="random", allocation="search")
    made_up = search_of(problem, size=3, search_stop=lambda: over, checkpoints=Kept())
    final = []
    while (trial := made_up.ask()) is not None:
        over = over or bool(trial.pool)
        if trial.segment is not None and trial.segment.final:
            final.append(trial)
        screened = tuple(ScreenedCandidate(proxy=0.1) for _ in trial.pool)
        made_up.tell(TrialResult(trial, TrialState.COMPLETE, screened=screened) if trial.pool else outcome(trial))
    assert over
    assert made_up.tuner.stopped
    assert len(made_up.history.searched) < 30
    assert final


def test_none_trains_nothing_on() -> None:
    made_up = search(final_epochs=0)
    assert not finish(made_up)
    assert all(not result.final_epochs for result in made_up.results)


def test_the_dense_network_teaches_by_half_at_first_and_wholly_once_a_network_is_finished() -> None:
    made_up = search()  # the made-up networks stay behind a dense network of 100%
    final = finish(made_up)
    taught = [trial.segment.teaching for trial in final if trial.segment is not None]
    assert taught[0] == Teaching(0.5)
    assert taught[-1] == Teaching(1.0)
    weights = [teaching.weight for teaching in taught if teaching is not None]
    assert weights == sorted(weights)
    finished = [result for result in made_up.results if result.final_epochs]
    assert {result.note[TEACHER] for result in finished} == {"dense"}
    assert {result.note[DISTILL_WEIGHT] for result in finished} == {0.5, 1.0}


def teacher_of(made_up: MadeUpSearch, dense: DenseAccuracy, **config: str) -> tuple[float, str] | None:
    problem = replace(made_up.problem, config=replace(made_up.problem.config, **config))
    found = FinalTraining(CandidateSpace(problem), 8, dense).teacher(made_up.results)
    return None if found is None else (found[0], "" if found[1] is None else found[1].label)


def test_a_finished_network_teaches_where_it_is_ahead_of_the_dense_one() -> None:
    made_up = search()
    finish(made_up)
    finished = [result for result in made_up.results if result.final_epochs > 4]
    best = max(finished, key=lambda result: result.settled_accuracy or 0.0)
    reached = best.settled_accuracy or 0.0
    assert teacher_of(made_up, DenseAccuracy(reached - 0.01, 1.0)) == (1.0, best.label)
    assert teacher_of(made_up, DenseAccuracy(reached + 0.01, 1.0)) == (1.0, "")
    assert teacher_of(made_up, DenseAccuracy(reached - 0.01, 1.0), final_distill_weight="0.3") == (0.3, best.label)


def test_no_network_teaches_itself_when_it_goes_on_after_a_stop() -> None:
    made_up = search()
    finish(made_up)
    training = FinalTraining(CandidateSpace(made_up.problem), 8, DenseAccuracy(0.1, 1.0))
    found = training.teacher(made_up.results)
    assert found is not None
    assert found[1] is not None
    others = training.teacher(made_up.results, found[1].trial.number)
    assert others is not None
    assert others[1] is not None
    assert others[1].label != found[1].label
    assert training.teacher([found[1]], found[1].trial.number) == (0.5, None)


def test_what_the_final_training_makes_is_no_candidate_that_was_tried() -> None:
    made_up = search()
    finish(made_up)
    heirs = [result for result in made_up.results if result.trial.final]
    assert heirs
    for heir in heirs:
        found = made_up.history.find(heir.trial.candidate_key())
        assert found is None or not found.trial.final


def test_a_dense_network_that_has_not_learned_its_training_images_teaches_nothing() -> None:
    made_up = search()
    assert teacher_of(made_up, DenseAccuracy(0.4, 0.7)) == (0.0, "")
    assert teacher_of(made_up, DenseAccuracy(0.4, 0.95)) == (0.5, "")
    assert teacher_of(made_up, DenseAccuracy(0.4, 0.7), final_distill_weight="0.3") == (0.3, "")
    trained = replace(made_up.problem.config.train, distill_weight=0.2)
    assert teacher_of(made_up, DenseAccuracy(0.4, 0.7), train=trained) is None  # type: ignore[arg-type]


def test_the_weights_of_a_finished_teacher_go_with_the_segment() -> None:
    made_up = search()
    behind = FinalTraining(CandidateSpace(made_up.problem), 8, DenseAccuracy(0.1, 1.0))
    tuner = replace(made_up.tuner, final_training=behind)
    final = finish(replace(made_up, tuner=tuner))
    teaching = final[-1].segment.teaching if final[-1].segment is not None else None
    assert teaching is not None
    assert teaching == Teaching(1.0, teaching.teacher, f"weights of {teaching.teacher}".encode())
    assert made_up.results[-1].note[TEACHER] == teaching.teacher


@pytest.mark.parametrize("mean", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("targets", [1, 2, 3, 4, 7])
def test_the_largest_and_the_smallest_target_have_more_epochs_and_all_have_their_mean(mean: int, targets: int) -> None:
    epochs = split_epochs(mean, targets)
    assert len(epochs) == targets
    assert sum(epochs) == mean * targets
    assert max(epochs) <= math.ceil(1.1 * mean)
    assert max(epochs) in (epochs[0], epochs[-1])
    if targets > 2 and mean > 4:
        assert min(epochs[0], epochs[-1]) > mean > max(epochs[1:-1]) - 1
        assert max(epochs[1:-1]) - min(epochs[1:-1]) <= 1


def test_what_is_left_of_the_final_training_falls_from_all_of_it_to_nothing() -> None:
    made_up, left = search(), list[float]()
    while (trial := made_up.ask()) is not None:
        if trial.segment is not None and trial.segment.final:
            left.append(made_up.tuner.final_training.epochs_left(made_up.results))
        made_up.tell(outcome(trial))
    whole = [epochs * time_share(target / 100) for epochs, target in zip((9, 6, 9), TARGETS, strict=True)]
    assert left[0] == pytest.approx(sum(whole), rel=1e-4)  # limits are whole numbers
    assert left == sorted(left, reverse=True)
    assert made_up.tuner.final_training.epochs_left(made_up.results) == 0


def test_networks_that_will_be_cut_from_finished_ones_count_with_what_surrounds_their_training() -> None:
    made_up = search()
    while (trial := made_up.ask()) is not None and not (trial.segment is not None and trial.segment.final):
        made_up.tell(outcome(trial))
    tuner, results = made_up.tuner, made_up.results
    candidates = CandidateSpace(made_up.problem)
    final_training = FinalTraining(candidates, tuner.final_training.epochs, cost=FinalCost(heir_epochs=0.5))
    cuts = sum(0.5 * time_share(target / 100) for target in TARGETS[1:])  # nothing is above the first
    assert final_training.epochs_left(results) == pytest.approx(
        tuner.final_training.epochs_left(results) + cuts, rel=1e-4
    )


def test_the_answers_of_the_teacher_count_too() -> None:
    made_up = search()
    while (trial := made_up.ask()) is not None and not (trial.segment is not None and trial.segment.final):
        made_up.tell(outcome(trial))
    tuner, results = made_up.tuner, made_up.results
    without, epochs = tuner.final_training.epochs_left(results), tuner.final_training.epochs
    taught = FinalTraining(CandidateSpace(made_up.problem), epochs, cost=FinalCost(teacher_epochs=0.25))
    first, *later = split_epochs(epochs, len(TARGETS))
    # The dense network teaches at the first target, the network of the first target at the others.
    answers = 0.25 * (first + sum(later) * time_share(TARGETS[0] / 100))
    assert taught.epochs_left(results) == pytest.approx(without + answers, rel=1e-3)
