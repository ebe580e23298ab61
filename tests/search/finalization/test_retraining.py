"""The front trained again: what is trained, what is read, and what a stop leaves."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from search.reporting.live import SilentDisplay
from tiny_search import tiny_config

from pruning.base import Goal
from runners.base import RUNNERS
from runners.config import LatencyConfig, RunnerConfig
from runners.evaluation.evaluate import SearchContext, evaluate
from runners.local import LocalRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search import SearchResult, run
from search.finalization.retraining import Reader, Retraining, again, roster
from search.planning import _retrainings, forecast_time
from search.problem import prepare
from search.results.result import DenseResult
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
    """A uniform arm; a net at widths of the search, chosen; one from budgets that has passed another."""
    limit = LIMIT.resolve(tiny_search_context.space.dense_cost)
    uniform = Trial(0, "l2", Goal(Widths({"0": 4, "3": 4}), (limit,)), baseline="uniform")
    baseline = member(tiny_search_context, 0, uniform, (4, 4), 0.6)
    given = Trial(0, "random", Goal(Widths({"0": 3, "3": 8}), (limit,)))
    chosen = member(tiny_search_context, 1, given, (3, 8), 0.9)
    found = member(tiny_search_context, 2, Trial(0, "l2", Goal(None, (limit,))), (2, 2), 0.3)
    intermediate_networks = dataclasses.replace(
        found, widths=Widths({"0": 2, "3": 4}), accuracy=0.4, intermediate_index=1
    )
    intermediate_networks = dataclasses.replace(
        intermediate_networks, cost=tiny_search_context.space.cost(Widths({"0": 2, "3": 4}))
    )
    results = (baseline, chosen, dataclasses.replace(found, intermediate_networks=(intermediate_networks,)))
    return SearchResult({}, (limit,), DenseResult(1.0, 1.0, tiny_search_context.space.dense_cost), results)


@pytest.fixture
def retraining(tiny_search_context: SearchContext, search: SearchResult) -> Callable[..., Retraining]:
    def make(on_done: Callable[[int, int], None] = lambda done, total: None) -> Retraining:
        read = Reader(tiny_search_context.net, tiny_search_context.data.test, torch.device("cpu"))
        return Retraining(roster(search, tiny_search_context.space), SEEDS, 3, read, on_done)

    return make


def test_every_member_is_trained_at_the_widths_that_it_has(search: SearchResult) -> None:
    goals = {each.label: again(each).goal for each in search.front}
    assert goals["1"] == search.results[1].trial.goal
    assert goals["2"].widths == search.results[2].widths
    assert goals["2.1"].widths == search.results[2].intermediate_networks[0].widths


def test_a_method_that_takes_no_widths_works_within_the_cost_of_the_network(search: SearchResult) -> None:
    intermediate_networks = search.results[2].intermediate_networks[0]
    trial = dataclasses.replace(
        intermediate_networks.trial, method="kse", goal=Goal(None, (*search.budgets, Budget("params", 9e9)))
    )
    assert intermediate_networks.cost is not None
    expected = (Budget("flops", intermediate_networks.cost.flops), Budget("params", intermediate_networks.cost.params))
    assert again(dataclasses.replace(intermediate_networks, trial=trial)).goal == Goal(None, expected)


def test_the_control_is_uniform_at_the_flops_of_the_chosen_net(
    search: SearchResult, tiny_search_context: SearchContext
) -> None:
    space, chosen = tiny_search_context.space, search.chosen
    assert chosen is not None
    assert chosen.cost is not None
    control = roster(search, space).control
    assert control is not None
    assert control.method == "l2"
    assert control.goal.widths == space.fit(uniform_ratios(space), [Budget("flops", chosen.cost.flops)])


def test_there_is_no_control_for_a_uniform_net_or_one_under_all_of_them(
    search: SearchResult, tiny_search_context: SearchContext
) -> None:
    alone = dataclasses.replace(search, results=search.results[:1])
    assert roster(alone, tiny_search_context.space).control is None
    chosen = search.results[1]
    assert chosen.cost is not None
    tiny = dataclasses.replace(chosen, cost=dataclasses.replace(chosen.cost, flops=1))
    assert roster(search.with_results([tiny]), tiny_search_context.space).control is None


def test_the_chosen_net_and_uniform_widths_come_first_with_the_same_seeds(
    retraining: Callable[..., Retraining],
) -> None:
    desk, asked = retraining(), []
    while (trial := desk.ask()) is not None:
        asked.append(trial)
    assert [each.number for each in asked] == list(range(3, 3 + len(asked)))
    assert [each.seed for each in asked[:4]] == [11, 11, 22, 22]
    assert {each.method for each in asked[:4:2]} == {"random"}
    assert {each.method for each in asked[1:4:2]} == {"l2"}
    assert len(asked) == 2 * 5
    assert desk.report(EpochReport(3, 0, 0.5, 0.1))
    assert not desk.report(EpochReport(3, 0, float("nan"), 0.1))


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_every_runner_gives_every_seed_a_reading(
    retraining: Callable[..., Retraining],
    search: SearchResult,
    tiny_search_context: SearchContext,
    ray_of_two: None,
    runner: str,
) -> None:
    steps: list[tuple[int, int]] = []
    desk = retraining(lambda done, total: steps.append((done, total)))
    RUNNERS[runner](RunnerConfig(), evaluate).run(desk, tiny_search_context)
    after = desk.applied(search)
    assert steps == [(done, 10) for done in range(1, 11)]
    for each in after.front:
        found = each.confirmation
        assert found is not None
        assert (found.seeds, found.images, found.at, found.errors) == (SEEDS, 32, "widths", ())
        assert all(0 <= accuracy <= 1 for accuracy in found.accuracies)
        assert each.cost is not None
        assert set(found.flops) == {each.cost.flops}
    assert after.control is not None
    assert after.control.confirmation is not None
    assert (after.control.trial.baseline, after.control.checkpoint) == ("uniform", None)
    assert after.uniform_comparison.difference is not None
    assert after.results[1].accuracy == search.results[1].accuracy
    assert after.chosen is not None
    assert search.chosen is not None
    assert after.chosen.label == search.chosen.label


def test_a_seed_gives_the_same_reading_whenever_it_is_trained(
    retraining: Callable[..., Retraining], search: SearchResult, tiny_search_context: SearchContext
) -> None:
    readings = []
    for _ in range(2):
        desk = retraining()
        LocalRunner(RunnerConfig(), evaluate).run(desk, tiny_search_context)
        readings.append([each.confirmation for each in desk.applied(search).front])
    assert readings[0] == readings[1]


def test_a_failed_training_is_named_and_its_seed_has_no_reading(
    retraining: Callable[..., Retraining], search: SearchResult
) -> None:
    desk = retraining()
    first = desk.ask()
    assert first is not None
    desk.tell(TrialResult(first, TrialState.FAILED, error="out of memory"))
    chosen = desk.applied(search).chosen
    assert chosen is not None
    assert chosen.confirmation is not None
    assert (chosen.confirmation.accuracies, chosen.confirmation.errors) == ((), ("out of memory",))
    assert "has no accuracy on test" in desk.applied(search).uniform_comparison.statement


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

    desk = retraining(stop)
    with pytest.raises(KeyboardInterrupt):
        LocalRunner(RunnerConfig(), evaluate).run(desk, tiny_search_context)
    after = desk.applied(search)
    assert after.chosen is not None
    assert after.chosen.confirmation is not None
    assert len(after.chosen.confirmation.accuracies) == readings
    assert [each.label for each in after.front if each.confirmation] == ["1"]
    assert "too few trainings" in after.uniform_comparison.statement
    assert SearchResult.from_json(after.to_json()) == after


class _Stops(SilentDisplay):
    """Ctrl-C after a phase whose name begins as said."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def phase(self, text: str) -> None:
        if text.startswith(self._phase):
            raise KeyboardInterrupt


@pytest.mark.usefixtures("without_programs")
def test_a_search_confirms_its_front_over_two_seeds(tmp_path: Path) -> None:
    result = run(tiny_config(tmp_path / "run", confirm=2))
    assert not result.interrupted
    for each in result.front:
        assert each.confirmation is not None
        assert len(set(each.confirmation.seeds) - {each.trial.seed}) == 2
        assert each.test_accuracy is not None
        metrics = json.loads((tmp_path / "run" / "front" / f"trial-{each.stem}" / "metrics.json").read_text())
        assert metrics["confirmation"]["accuracies"] == list(each.confirmation.accuracies)
    assert "2 fresh seeds" in result.uniform_comparison.statement
    assert SearchResult.from_json((tmp_path / "run" / "result.json").read_text()).to_json() == result.to_json()
    assert result.uniform_comparison.statement in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert len(result.results) == 5


@pytest.mark.usefixtures("without_programs")
def test_ctrl_c_while_the_front_is_retrainings_loses_nothing_and_measures_no_latency(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", confirm=2, latency=LatencyConfig("cpu:1thread"))
    result = run(config, _Stops("training the front again, 1/"))
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
    setup = prepare(config)
    long = dataclasses.replace(setup, config=dataclasses.replace(config, confirm=10_000))
    assert forecast_time(long).total > 10 * forecast_time(setup).total
