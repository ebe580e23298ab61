"""The trials that workers have, and the candidates that are compared under their numbers."""

from dataclasses import replace

from pruning.base import Goal
from runners.trial import TrainingSegment, Trial
from search.storage.pending import PendingTrials


def trial(number: int, setting: int = 0) -> Trial:
    return Trial(number, "l2", Goal(), {"setting": setting})


def test_a_trial_is_pending_until_it_ends() -> None:
    pending = PendingTrials()
    pending.begin(trial(0, 1))
    pending.begin(trial(1, 2))
    assert pending.trials == {0: trial(0, 1), 1: trial(1, 2)}
    assert pending.keys == {trial(0, 1).key(): 0, trial(1, 2).key(): 1}
    assert pending.end(0) == trial(0, 1)
    assert pending.keys == {trial(1, 2).key(): 1}


def test_a_promoted_trial_is_pending_and_not_new() -> None:
    pending = PendingTrials()
    pending.begin(replace(trial(0), segment=TrainingSegment(2, trained=1)))
    pending.begin(trial(1))
    assert pending.new == [trial(1)]
    assert (pending.is_promoted(0), pending.is_promoted(1)) == (True, False)
    pending.end(0)
    pending.begin(trial(0))
    assert not pending.is_promoted(0)


def test_a_winner_takes_the_number_of_its_pool_and_the_losers_must_not_be_proposed_again() -> None:
    first, second, third = (trial(4, setting) for setting in range(3))
    pending = PendingTrials()
    pending.begin(first)
    pending.screen(4, [second, third])
    assert pending.keys == {candidate.key(): 4 for candidate in (first, second, third)}
    assert pending.trials == {4: first}
    assert pending.select(second) == [first, third]
    assert pending.trials == {4: second}
    pending.end(4)
    assert pending.keys.keys() >= {first.key(), third.key()}
