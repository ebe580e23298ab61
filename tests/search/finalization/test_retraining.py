"""The front trained again: its trials, their readings, and the effect of a stop."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_search import tiny_config
from typing_extensions import override

from pruning.base import Goal
from runners.base import RUNNERS
from runners.config import LatencyConfig, RunnerConfig
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.local import LocalRunner
from runners.trial import (
    DENSE,
    DISTILL_WEIGHT,
    TEACHER,
    EpochReport,
    Teaching,
    TrainingSegment,
    Trial,
    TrialResult,
    TrialState,
)
from search import SearchResult, run
from search.callbacks import SearchCallback
from search.environment import prepare
from search.finalization.retraining import Retraining, retraining_plan, retraining_trial
from search.planning import _retrainings, forecast_time
from search.results.result import DenseResult
from search.searchers.candidate_space import CandidateSpace
from spaces.budget import Budget
from spaces.space import uniform_ratios
from spaces.widths import Widths

SEEDS = (11, 22)
LIMIT = Budget.parse("60%")


def member(
    search_context: SearchContext, number: int, trial: Trial, channels: tuple[int, int], accuracy: float
) -> TrialResult:
    widths = Widths(dict(zip(("0", "3"), channels, strict=True)))
    trial = dataclasses.replace(trial, number=number)
    return TrialResult(trial, TrialState.COMPLETE, accuracy, search_context.space.cost(widths), widths)


@pytest.fixture
def search(tiny_search_context: SearchContext) -> SearchResult:
    """A baseline; the chosen network, at widths of the search; one from budgets, with an intermediate network."""
    limit = LIMIT.resolve(tiny_search_context.space.dense_cost)
    uniform = Trial(0, "l2", Goal(Widths({"0": 4, "3": 4}), (limit,)), baseline="uniform")
    baseline = member(tiny_search_context, 0, uniform, (4, 4), 0.6)
    given = Trial(0, "random", Goal(Widths({"0": 3, "3": 8}), (limit,)))
    chosen = member(tiny_search_context, 1, given, (3, 8), 0.9)
    found = member(tiny_search_context, 2, Trial(0, "l2", Goal(None, (limit,))), (2, 2), 0.3)
    widths = Widths({"0": 2, "3": 4})
    changes: dict[str, Any] = {"cost": tiny_search_context.space.cost(widths), "widths": widths, "accuracy": 0.4}
    network = dataclasses.replace(found, **changes, intermediate_index=1)
    results = (baseline, chosen, dataclasses.replace(found, intermediate_networks=(network,)))
    return SearchResult({}, (limit,), DenseResult(1.0, 1.0, tiny_search_context.space.dense_cost), results)


@pytest.fixture
def retraining(tiny_search_context: SearchContext, search: SearchResult) -> Callable[..., Retraining]:
    def make(on_done: Callable[[int, int], None] = lambda _done, _total: None) -> Retraining:
        plan = retraining_plan(search, tiny_search_context.space)
        return Retraining(plan, SEEDS, 3, tiny_search_context, lambda _: b"", on_done)

    return make


def test_every_member_is_trained_at_the_widths_that_it_has(search: SearchResult) -> None:
    goals = {member.label: retraining_trial(member).goal for member in search.front}
    assert goals["1"] == search.results[1].trial.goal
    assert goals["2"].widths == search.results[2].widths
    assert goals["2.1"].widths == search.results[2].intermediate_networks[0].widths


def test_a_finished_network_has_its_teacher_again(tiny_search_context: SearchContext, search: SearchResult) -> None:
    note = {TEACHER: "2", DISTILL_WEIGHT: 0.75}
    curve = tuple(EpochReport(1, epoch, 0.9, 1.0) for epoch in range(1, 6))
    rungs = ((1, 0.8), (5, 0.9))
    finished = dataclasses.replace(search.results[1], curve=curve, rungs=rungs, final_epochs=4, note=note)
    by_dense = dataclasses.replace(finished, note={TEACHER: DENSE, DISTILL_WEIGHT: 0.5})
    assert retraining_trial(by_dense).segment == TrainingSegment(5, teaching=Teaching(0.5), completes=True)
    assert retraining_trial(dataclasses.replace(finished, note={})).segment == TrainingSegment(5, completes=True)
    plan = retraining_plan(search.with_results([finished]), tiny_search_context.space)
    asked = Retraining(plan, SEEDS, 3, tiny_search_context, str.encode, lambda _done, _total: None).ask()
    assert asked is not None
    assert asked.segment == TrainingSegment(5, teaching=Teaching(0.75, "2", b"2"), completes=True)


def test_a_method_that_takes_no_widths_works_within_the_cost_of_the_network(search: SearchResult) -> None:
    network = search.results[2].intermediate_networks[0]
    assert network.cost is not None
    trial = dataclasses.replace(network.trial, method="kse", goal=Goal(None, (*search.budgets, Budget("params", 9e9))))
    expected = (Budget("flops", network.cost.flops), Budget("params", network.cost.params))
    assert retraining_trial(dataclasses.replace(network, trial=trial)).goal == Goal(None, expected)


def test_the_baseline_has_uniform_widths_at_the_flops_of_the_chosen_network(
    search: SearchResult, tiny_search_context: SearchContext
) -> None:
    space, chosen = tiny_search_context.space, search.chosen
    assert chosen is not None
    assert chosen.cost is not None
    baseline = retraining_plan(search, space).baselines[chosen.label]
    assert baseline is not None
    assert baseline.method == "l2"
    assert baseline.goal.widths == space.fit(uniform_ratios(space), [Budget("flops", chosen.cost.flops)])


def test_the_best_baseline_is_trained_be_it_with_widths_of_its_own(
    search: SearchResult, tiny_search_context: SearchContext
) -> None:
    chosen, weaker = search.results[1], search.results[0]
    assert chosen.cost is not None
    own = Trial(3, "di", Goal(None, search.budgets), baseline="own")
    better = dataclasses.replace(weaker, trial=own, accuracy=0.7)
    found = dataclasses.replace(search, results=(*search.results, better))
    baseline = retraining_plan(found, tiny_search_context.space).baselines[chosen.label]
    assert baseline is not None
    limits = (*search.budgets, Budget("flops", chosen.cost.flops))
    assert (baseline.method, baseline.baseline, baseline.goal) == ("di", "own", Goal(None, limits))


def test_there_is_no_baseline_for_a_uniform_network_or_one_below_all_uniform_ones(
    search: SearchResult, tiny_search_context: SearchContext
) -> None:
    alone = dataclasses.replace(search, results=search.results[:1])
    assert retraining_plan(alone, tiny_search_context.space).baselines == {"0": None}
    chosen = search.results[1]
    assert chosen.cost is not None
    tiny = dataclasses.replace(chosen, cost=dataclasses.replace(chosen.cost, flops=1))
    assert retraining_plan(search.with_results([tiny]), tiny_search_context.space).baselines == {"1": None}


def test_the_chosen_net_and_uniform_widths_come_first_with_the_same_seeds(
    retraining: Callable[..., Retraining],
) -> None:
    again, asked = retraining(), []
    while (trial := again.ask()) is not None:
        asked.append(trial)
    assert [trial.number for trial in asked] == list(range(3, 3 + len(asked)))
    assert [trial.seed for trial in asked[:4]] == [11, 11, 22, 22]
    assert {trial.method for trial in asked[:4:2]} == {"random"}
    assert {trial.method for trial in asked[1:4:2]} == {"l2"}
    assert len(asked) == 2 * 5
    assert again.report(EpochReport(3, 0, 0.5, 0.1))
    assert not again.report(EpochReport(3, 0, float("nan"), 0.1))


# Ray's workers are under the contract of runners in the normal suite (tests/contracts/test_runners.py).
@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_every_runner_gives_every_seed_a_reading(
    retraining: Callable[..., Retraining],
    search: SearchResult,
    tiny_search_context: SearchContext,
    ray_of_two: None,
    runner: str,
) -> None:
    steps: list[tuple[int, int]] = []
    again = retraining(lambda done, total: steps.append((done, total)))
    RUNNERS[runner](RunnerConfig(), evaluate).run(again, tiny_search_context)
    after = again.confirmed(search)
    assert steps == [(done, 10) for done in range(1, 11)]
    for member in after.front:
        found = member.confirmation
        assert found is not None
        assert (found.seeds, found.images, found.at, found.errors) == (SEEDS, 32, "widths", ())
        assert all(0 <= accuracy <= 1 for accuracy in found.accuracies)
        assert member.cost is not None
        assert set(found.flops) == {member.cost.flops}
    assert after.retrained_baseline is not None
    assert after.retrained_baseline.confirmation is not None
    assert (after.retrained_baseline.trial.baseline, after.retrained_baseline.checkpoint) == ("uniform", None)
    assert after.baseline_comparison.difference is not None
    assert after.results[1].accuracy == search.results[1].accuracy
    assert after.chosen is not None
    assert search.chosen is not None
    assert after.chosen.label == search.chosen.label


def test_a_seed_gives_the_same_reading_whenever_it_is_trained(
    retraining: Callable[..., Retraining], search: SearchResult, tiny_search_context: SearchContext
) -> None:
    readings = []
    for _ in range(2):
        again = retraining()
        LocalRunner(RunnerConfig(), evaluate).run(again, tiny_search_context)
        readings.append([member.confirmation for member in again.confirmed(search).front])
    assert readings[0] == readings[1]


def test_a_failed_training_is_named_and_its_seed_has_no_reading(
    retraining: Callable[..., Retraining], search: SearchResult
) -> None:
    again = retraining()
    first = again.ask()
    assert first is not None
    again.tell(TrialResult(first, TrialState.FAILED, error="out of memory"))
    chosen = again.confirmed(search).chosen
    assert chosen is not None
    assert chosen.confirmation is not None
    assert (chosen.confirmation.accuracies, chosen.confirmation.errors) == ((), ("out of memory",))
    assert "has no accuracy on test" in again.confirmed(search).baseline_comparison.statement


@pytest.mark.parametrize(("after_trainings", "readings"), [(1, 1), (3, 2)])
def test_a_stop_keeps_what_was_trained_until_then(
    retraining: Callable[..., Retraining],
    search: SearchResult,
    tiny_search_context: SearchContext,
    after_trainings: int,
    readings: int,
) -> None:
    def stop(done: int, total: int) -> None:
        if done == after_trainings:
            raise KeyboardInterrupt

    again = retraining(stop)
    with pytest.raises(KeyboardInterrupt):
        LocalRunner(RunnerConfig(), evaluate).run(again, tiny_search_context)
    after = again.confirmed(search)
    assert after.chosen is not None
    assert after.chosen.confirmation is not None
    assert len(after.chosen.confirmation.accuracies) == readings
    assert [member.label for member in after.front if member.confirmation] == ["1"]
    assert "too few trainings" in after.baseline_comparison.statement
    assert SearchResult.from_json(after.to_json()) == after


class _Stops(SearchCallback):
    """Presses Ctrl-C when a phase begins whose text starts so."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    @override
    def on_phase(self, text: str) -> None:
        if text.startswith(self._phase):
            raise KeyboardInterrupt


@pytest.mark.usefixtures("without_programs")
def test_a_search_confirms_its_front_over_two_seeds(tmp_path: Path) -> None:
    result = run(tiny_config(tmp_path / "run", confirm=2))
    assert not result.interrupted
    for network in result.front:
        assert network.confirmation is not None
        assert len(set(network.confirmation.seeds) - {network.trial.seed}) == 2
        assert network.test_accuracy is not None
        metrics = json.loads((tmp_path / "run" / "front" / f"trial-{network.stem}" / "metrics.json").read_text())
        assert metrics["confirmation"]["accuracies"] == list(network.confirmation.accuracies)
    assert "2 fresh seeds" in result.baseline_comparison.statement
    assert SearchResult.from_json((tmp_path / "run" / "result.json").read_text()).to_json() == result.to_json()
    assert result.baseline_comparison.statement in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert len(result.results) == 5


@pytest.mark.usefixtures("without_programs")
def test_ctrl_c_while_the_front_is_trained_again_loses_nothing_and_measures_no_latency(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", confirm=2, latency=LatencyConfig("cpu:1thread"))
    result = run(config, [_Stops("training the front again, 1/")])
    assert result.interrupted
    assert result.latency == {}
    assert len(result.results) == 5
    assert result.chosen is not None
    assert result.chosen.test_accuracy is not None
    assert result.chosen.confirmation is not None
    assert len(result.chosen.confirmation.accuracies) == 1
    assert SearchResult.from_json((tmp_path / "run" / "result.json").read_text()) == result


def test_the_forecast_counts_the_trainings_of_the_confirmation(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", confirm=2)
    assert _retrainings(dataclasses.replace(config, confirm=1)) == 0
    assert _retrainings(config) == pytest.approx(2 * (1 + 0.4 * 5))
    environment = prepare(config)
    problem = dataclasses.replace(environment.problem, config=dataclasses.replace(config, confirm=1_000))
    candidates = CandidateSpace(environment.problem, None)
    long = dataclasses.replace(environment, problem=problem)
    assert forecast_time(long, candidates).total > 10 * forecast_time(environment, candidates).total
