"""Intermediate networks: which of them are measured, and what becomes of them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_trials
import torch
from torch import nn

from pruning.base import Goal, Snapshot
from pruning.checkpoint import from_bytes
from pruning.rewriting.surgery import slice_channels
from runners.evaluation.context import SearchContext
from runners.evaluation.intermediate import MOST, PER_EPOCH, IntermediateSelector, short_of
from runners.training.scoring import accuracy, reestimate_batchnorm
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.widths import Widths

CPU = torch.device("cpu")
GOAL = Widths({"0": 2, "3": 2})
STAIRS = [(8, 7), (7, 7), (7, 6), (6, 6), (6, 5), (5, 5), (5, 4), (4, 4), (4, 3), (3, 3), (3, 2), (2, 2)]
Run = Callable[..., Iterator[Snapshot]]


def narrowed(search_context: SearchContext, net: nn.Module, widths: Widths, epoch: int, **changes: Any) -> Snapshot:
    selection = {name: torch.arange(width) for name, width in widths.items()}
    return Snapshot(slice_channels(net, search_context.space, selection), widths, epoch, **changes)


def down_the_stairs(search_context: SearchContext, steps: int = len(STAIRS)) -> Run:
    """A method that removes one channel at a time and ruins the statistics of BatchNorm."""

    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        for epoch, (first, second) in enumerate(STAIRS[:steps], start=1):
            snapshot = narrowed(search_context, net, Widths({"0": first, "3": second}), epoch, note={"moves": epoch})
            if snapshot.widths != GOAL:
                snapshot.net.get_submodule("1").running_mean.fill_(1e3)
            yield snapshot

    return run


@pytest.fixture
def search_context(tiny_search_context: SearchContext) -> SearchContext:
    return dataclasses.replace(tiny_search_context, train=dataclasses.replace(tiny_search_context.train, epochs=4))


@pytest.fixture
def finish(
    monkeypatch: pytest.MonkeyPatch, search_context: SearchContext
) -> Callable[..., tuple[list[EpochReport], TrialResult]]:
    """Evaluate a method that is the given function, with `GOAL` unless another one is given."""

    def finished(
        run: Run, goal: Goal | None = None, answer: bool | None = None
    ) -> tuple[list[EpochReport], TrialResult]:
        class Custom:
            def run(self, *arguments: Any) -> Iterator[Snapshot]:
                return run(*arguments)

        monkeypatch.setattr("runners.evaluation.evaluate.METHODS", {"custom": Custom})
        return tiny_trials.finish(search_context, Trial(7, "custom", goal or Goal(GOAL)), answer)

    return finished


def test_each_intermediate_network_is_measured_and_has_its_weights(search_context, finish) -> None:
    reports, result = finish(down_the_stairs(search_context))
    assert result.state is TrialState.COMPLETE, result.error
    assert [report.epoch for report in reports] == [len(STAIRS)]  # rungs compare nets of the goal only
    assert result.curve == tuple(reports)
    assert result.widths == GOAL
    assert [network.label for network in result.networks] == [
        "7",
        *[f"7.{i + 1}" for i in range(len(result.intermediate_networks))],
    ]
    assert [network.stem for network in result.networks][:2] == ["0007", "0007-p1"]
    for network in result.intermediate_networks:
        net = from_bytes(network.checkpoint, search_context.net)
        assert count_cost(net, (1, 8, 8)) == network.cost == search_context.space.cost(network.widths)
        assert accuracy(net, search_context.data.val, device=CPU) == network.accuracy
        assert network.trial == result.trial
        assert network.note == {"moves": network.curve[0].epoch}
        assert tuple(network.widths.values()) == STAIRS[network.curve[0].epoch - 1]
        assert 0 < network.train_seconds <= network.seconds <= result.seconds
    assert result.train_seconds <= result.seconds


def test_its_batchnorm_is_re_estimated(search_context, finish) -> None:
    _, result = finish(down_the_stairs(search_context))
    for network in result.intermediate_networks:
        net, expected = (
            from_bytes(network.checkpoint, search_context.net),
            from_bytes(network.checkpoint, search_context.net),
        )
        reestimate_batchnorm(expected, search_context.data.calibration, device=CPU)
        assert torch.equal(net.get_submodule("1").running_mean, expected.get_submodule("1").running_mean)


def test_a_stopped_trial_keeps_its_intermediate_networks(search_context, finish) -> None:
    _, result = finish(down_the_stairs(search_context), answer=False)
    assert result.state is TrialState.STOPPED
    assert {network.state for network in result.intermediate_networks} == {TrialState.COMPLETE}


def test_a_trial_that_fails_later_keeps_its_intermediate_networks(search_context, finish) -> None:
    def run(*arguments: Any) -> Iterator[Snapshot]:
        yield from down_the_stairs(search_context, len(STAIRS) - 1)(*arguments)
        raise MemoryError

    _, result = finish(run)
    assert (result.state, result.accuracy, result.error) == (TrialState.FAILED, None, "MemoryError")
    assert len(result.intermediate_networks) > 1


def test_a_method_that_ends_before_its_goal_fails(search_context, finish) -> None:
    _, result = finish(down_the_stairs(search_context, len(STAIRS) - 1))
    assert result.error.startswith("EvaluationError: the narrow net has 3 channels of '0' where 2 were asked for")
    _, result = finish(down_the_stairs(search_context, 3), Goal(budgets=(Budget("params", 100),)))
    assert "params and must stay within 100params; method 'custom' must end" in result.error


def test_an_intermediate_network_whose_cost_is_not_the_stated_one_fails_the_trial(search_context, finish) -> None:
    def run(net: nn.Module, *_: Any) -> Iterator[Snapshot]:
        yield dataclasses.replace(
            narrowed(search_context, net, Widths({"0": 3, "3": 3}), 1), widths=Widths({"0": 3, "3": 4})
        )
        yield narrowed(search_context, net, GOAL, 2)

    _, result = finish(run)
    assert "must yield the net it reports" in result.error


def test_networks_within_the_budgets_are_reported_and_those_above_are_intermediate(search_context, finish) -> None:
    budget = Budget.parse("20%").resolve(search_context.space.dense_cost)
    reports, result = finish(down_the_stairs(search_context), Goal(budgets=(budget,)))
    assert all(network.cost.flops > budget.limit for network in result.intermediate_networks)
    within = [
        i
        for i, pair in enumerate(STAIRS, 1)
        if search_context.space.cost(dict(zip("03", pair, strict=True))).flops <= budget.limit
    ]
    assert [report.epoch for report in reports] == within


@pytest.mark.parametrize(("epochs", "most"), [(0, 0), (1, 2), (3, 6), (100, MOST)])
def test_no_more_are_selected_than_the_epochs_allow_and_they_lie_evenly(tiny_search_context, epochs, most) -> None:
    space = tiny_search_context.space
    selector = IntermediateSelector(Goal(GOAL), space, epochs)
    dense, last = space.dense_cost.flops, space.cost(GOAL).flops
    costs = [dataclasses.replace(space.dense_cost, flops=n) for n in range(dense, last - 1, -10)]
    taken = [cost.flops for cost in costs if selector.selects(cost)]
    assert len(taken) == most == min(MOST, PER_EPOCH * epochs)
    step = math.log(dense / last) / (most + 1)
    for dearer, cheaper in itertools.pairwise([dense, *taken]):
        assert math.log(dearer / cheaper) == pytest.approx(step, rel=0.05)


def test_of_several_budgets_the_furthest_one_counts(tiny_search_context) -> None:
    space, dense = tiny_search_context.space, tiny_search_context.space.dense_cost
    loose, tight = Budget("flops", 2 * dense.flops), Budget("params", dense.params // 8)
    selector = IntermediateSelector(Goal(budgets=(loose, tight)), space, 1)
    assert not selector.selects(dataclasses.replace(dense, flops=dense.flops // 100))
    assert selector.selects(dataclasses.replace(dense, params=dense.params // 2 - 1))


def test_a_goal_without_limits_is_met_by_anything(tiny_search_context) -> None:
    space = tiny_search_context.space
    assert short_of(Goal(), Snapshot(tiny_search_context.net, space.full, 0), space) == ""
    assert not IntermediateSelector(Goal(), space, 4).selects(space.smallest_cost)
