"""A paused trial continues from its own network, without its pruning method."""

import dataclasses

import pytest
import torch
from tiny_trials import finish, finish_segment, trial

from pruning.base import Goal
from pruning.checkpoint import from_bytes
from runners.evaluation.context import SearchContext
from runners.trial import TrainingSegment, Trial, TrialState
from spaces.budget import Budget

BUDGETS = Goal(budgets=(Budget.parse("70%"),))


@pytest.mark.parametrize(
    "a_trial", [trial(), trial("di"), trial("kse", BUDGETS), trial("csgd"), trial("aofp", BUDGETS)]
)
def test_a_trial_continues_from_the_network_of_its_segment_before(
    tiny_search_context: SearchContext, a_trial: Trial
) -> None:
    search_context = dataclasses.replace(
        tiny_search_context, train=dataclasses.replace(tiny_search_context.train, epochs=4)
    )
    first = finish_segment(search_context, a_trial, TrainingSegment(1))
    assert first.curve[-1].epoch == 1
    assert first.checkpoint is not None
    again = finish_segment(search_context, a_trial, TrainingSegment(2, 1, first.checkpoint))
    assert [report.epoch for report in again.curve] == [2, 3]
    assert (again.widths, again.cost) == (first.widths, first.cost)
    assert again.checkpoint is not None
    before, after = (from_bytes(data, search_context.net).state_dict() for data in (first.checkpoint, again.checkpoint))
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("0.") for name in moved)  # its first layer too, whatever kind of layer it is
    same = finish_segment(search_context, a_trial, TrainingSegment(2, 1, first.checkpoint))
    assert same.checkpoint == again.checkpoint


def test_a_later_segment_neither_prunes_nor_starts_from_the_dense_net(
    tiny_search_context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finish_segment(tiny_search_context, trial(), TrainingSegment(1))
    monkeypatch.setattr("runners.evaluation.evaluate.METHODS", {})  # no method is needed
    again = finish_segment(tiny_search_context, trial(), TrainingSegment(1, 1, first.checkpoint))
    assert again.accuracy is not None


def test_a_later_segment_without_weights_fails_and_says_so(tiny_search_context: SearchContext) -> None:
    _, result = finish(tiny_search_context, dataclasses.replace(trial(), segment=TrainingSegment(1, 1)))
    assert result.state is TrialState.FAILED
    assert "has no weights to go on from; start its trial anew" in result.error
