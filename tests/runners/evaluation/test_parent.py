"""A trial that is cut from another trial's network: its channels and its weights are the parent's."""

import dataclasses

import pytest
import torch
from tiny_trials import finish, finish_segment, trial

from pruning.base import Goal
from pruning.checkpoint import from_bytes
from runners.evaluation.context import SearchContext
from runners.trial import TrainingSegment, Trial, TrialResult, TrialState
from spaces.budget import Budget
from spaces.widths import Widths

NARROWER = Goal(Widths({"0": 2, "3": 6}))  # the second group is as wide as in the parent


def parent_of(search_context: SearchContext) -> TrialResult:
    return finish_segment(search_context, trial("l2"), TrainingSegment(1))


def heir(method: str, goal: Goal, parent: TrialResult) -> tuple[Trial, TrainingSegment]:
    a_trial = dataclasses.replace(trial(method, goal), number=8, parent=parent.label)
    return a_trial, TrainingSegment(1, start=parent.checkpoint)


@pytest.mark.parametrize("method", ["l2", "di", "csgd", "bn_scale", "taylor", "random"])
def test_given_widths_are_cut_from_the_parent(tiny_search_context: SearchContext, method: str) -> None:
    result = finish_segment(tiny_search_context, *heir(method, NARROWER, parent_of(tiny_search_context)))
    assert result.widths == NARROWER.widths
    assert result.cost == tiny_search_context.space.cost(NARROWER.widths or {})  # counted on the network itself
    assert result.checkpoint is not None
    assert from_bytes(result.checkpoint, tiny_search_context.net)(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_own_widths_lie_within_the_parent(tiny_search_context: SearchContext) -> None:
    parent = parent_of(tiny_search_context)
    assert parent.cost is not None
    goal = Goal(budgets=(Budget("flops", parent.cost.flops // 2),))
    result = finish_segment(tiny_search_context, *heir("di", goal, parent))
    assert result.widths is not None
    assert parent.widths is not None
    assert result.cost is not None
    assert all(result.widths[name] <= parent.widths[name] for name in parent.widths)
    assert result.cost.flops <= parent.cost.flops // 2


def test_its_weights_are_those_of_the_parent(tiny_search_context: SearchContext) -> None:
    parent = parent_of(tiny_search_context)
    a_trial, segment = heir("l2", NARROWER, parent)
    _, cut = finish(tiny_search_context, dataclasses.replace(a_trial, segment=dataclasses.replace(segment, epochs=1)))
    train = dataclasses.replace(tiny_search_context.train, lr=1e-9)  # so that training moves nothing
    still = dataclasses.replace(tiny_search_context, train=train)
    result = finish_segment(still, a_trial, segment)
    assert parent.checkpoint is not None
    assert result.checkpoint is not None
    wide, narrow = (
        from_bytes(data, tiny_search_context.net)[0].weight for data in (parent.checkpoint, result.checkpoint)
    )
    rows = {tuple(row.flatten().round(decimals=4).tolist()) for row in wide.detach()}
    assert {tuple(row.flatten().round(decimals=4).tolist()) for row in narrow.detach()} <= rows
    assert cut.accuracy is not None


def test_wider_than_the_parent_is_refused(tiny_search_context: SearchContext) -> None:
    a_trial, segment = heir("l2", Goal(Widths({"0": 8, "3": 8})), parent_of(tiny_search_context))
    _, result = finish(tiny_search_context, dataclasses.replace(a_trial, segment=segment))
    assert result.state is TrialState.FAILED
    assert "8" in result.error


def test_without_the_weights_of_the_parent_it_fails_and_says_so(tiny_search_context: SearchContext) -> None:
    a_trial, _ = heir("l2", NARROWER, parent_of(tiny_search_context))
    _, result = finish(tiny_search_context, a_trial)
    assert result.state is TrialState.FAILED
    assert "network 7, from which trial 8 is cut, has no weights" in result.error


def test_layers_that_are_not_plain_are_not_narrowed(tiny_search_context: SearchContext) -> None:
    shared = finish_segment(tiny_search_context, trial("kse", Goal(budgets=(Budget.parse("70%"),))), TrainingSegment(1))
    a_trial, segment = heir("l2", NARROWER, shared)
    _, result = finish(tiny_search_context, dataclasses.replace(a_trial, segment=segment))
    assert "layers that cannot be narrowed; cut the dense network" in result.error


def test_a_pool_is_cut_from_the_parent_with_statistics_of_its_own(tiny_search_context: SearchContext) -> None:
    parent = parent_of(tiny_search_context)
    first, segment = heir("di", NARROWER, parent)
    second = dataclasses.replace(first, goal=Goal(Widths({"0": 2, "3": 3})))
    started = dataclasses.replace(first, segment=segment, pool=(first, second))
    _, result = finish(tiny_search_context, started)
    assert result.error == ""
    alone = [
        finish(tiny_search_context, dataclasses.replace(candidate, segment=segment))[0][0].proxy
        for candidate in (first, second)
    ]
    assert [screened.proxy for screened in result.screened] == pytest.approx(alone, abs=0.05)  # other BatchNorm images
    dense = dataclasses.replace(first, parent="", pool=(dataclasses.replace(first, parent=""),))
    _, of_dense = finish(tiny_search_context, dense)
    assert of_dense.screened[0].proxy != pytest.approx(result.screened[0].proxy, abs=1e-6)


def test_candidates_wider_than_the_parent_lose_the_comparison(tiny_search_context: SearchContext) -> None:
    first, segment = heir("l2", NARROWER, parent_of(tiny_search_context))
    wider = dataclasses.replace(first, goal=Goal(Widths({"0": 8, "3": 8})))
    _, result = finish(tiny_search_context, dataclasses.replace(first, segment=segment, pool=(first, wider)))
    assert result.screened[0].proxy is not None
    assert result.screened[1].proxy is None
    assert "8" in result.screened[1].error
