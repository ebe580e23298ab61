"""Trials and their results as plain values."""

import dataclasses

import pytest

from pruning.base import Goal
from runners.trial import Confirmation, EpochReport, TrainingSegment, Trial, TrialResult, TrialState, derive_seed
from spaces.budget import Budget
from spaces.widths import Widths

TRIAL = Trial(7, "l2", Goal(Widths({"b": 2, "a": 3})), {"compensate": True}, seed=5)


def result(**changes: object) -> TrialResult:
    """Return the result of trial 7, which has two intermediate networks."""
    final = TrialResult(TRIAL, TrialState.COMPLETE, accuracy=0.9, checkpoint=b"final")
    between = tuple(dataclasses.replace(final, intermediate_index=i, checkpoint=b"%d" % i) for i in (1, 2))
    return dataclasses.replace(final, intermediate_networks=between, **changes)


def test_a_key_is_that_of_the_candidate_alone() -> None:
    same = dataclasses.replace(TRIAL, number=9, seed=1, baseline="uniform", segment=TrainingSegment(1))
    assert same.key() == TRIAL.key() == '["l2",{"compensate":true},{"a":3,"b":2},null]'
    other = [
        dataclasses.replace(TRIAL, method="l1"),
        dataclasses.replace(TRIAL, settings={}),
        dataclasses.replace(TRIAL, goal=Goal(Widths({"a": 3, "b": 3}))),
        dataclasses.replace(TRIAL, training={"learning_rate": 0.1}),
    ]
    assert len({trial.key() for trial in [TRIAL, *other]}) == 5


def test_budgets_count_in_the_key_of_a_trial_without_widths_only() -> None:
    budgets = (Budget("params", 10), Budget("flops", 20))
    free = dataclasses.replace(TRIAL, goal=Goal(None, budgets))
    assert free.key() == dataclasses.replace(TRIAL, goal=Goal(None, budgets[::-1])).key()
    assert free.key() != dataclasses.replace(TRIAL, goal=Goal(None, budgets[:1])).key()
    assert dataclasses.replace(TRIAL, goal=Goal(TRIAL.goal.widths, budgets)).key() == TRIAL.key()


def test_a_seed_follows_the_run_and_the_candidate() -> None:
    assert derive_seed(0, TRIAL.key()) == derive_seed(0, TRIAL.key())
    assert len({derive_seed(seed, key) for seed in (0, 1) for key in ("a", "b")}) == 4
    assert all(0 <= derive_seed(seed, "a") < 2**32 for seed in range(20))


def test_weights_are_the_start_of_a_segment() -> None:
    segment = TrainingSegment(epochs=2, trained=1)
    started = dataclasses.replace(TRIAL, segment=segment).started_from(b"weights")
    assert started.segment == TrainingSegment(2, 1, b"weights")
    assert started.segment.end == 3
    assert b"weights".decode() not in repr(started)
    assert TRIAL.started_from(b"weights") is TRIAL


def test_a_pool_is_no_part_of_the_candidate() -> None:
    assert dataclasses.replace(TRIAL, pool=(TRIAL, dataclasses.replace(TRIAL, method="l1"))).key() == TRIAL.key()


def test_the_networks_of_a_trial_are_its_final_one_and_the_intermediate_ones() -> None:
    assert [network.label for network in result().networks] == ["7", "7.1", "7.2"]
    assert [network.stem for network in result().networks] == ["0007", "0007-p1", "0007-p2"]
    assert result().checkpoints == {"7": b"final", "7.1": b"1", "7.2": b"2"}


def test_checkpoints_are_replaced_by_label() -> None:
    changed = result().with_checkpoints({"7.2": b"new"})
    assert changed.checkpoints == {"7.2": b"new"}
    assert changed.networks[2].without_checkpoint("a/b").path == "a/b"


def test_a_change_is_applied_to_every_network() -> None:
    changed = result().map_networks(lambda network: dataclasses.replace(network, path=network.stem))
    assert [network.path for network in changed.networks] == ["0007", "0007-p1", "0007-p2"]


def test_epochs_trained_come_from_the_rungs_or_the_curve() -> None:
    report = EpochReport(7, 3, 0.5, 1.0)
    assert result(rungs=((1, 0.4), (2, 0.5)), curve=(report,)).trained == 2
    assert result(curve=(report,)).trained == 3
    assert result().trained is None


@pytest.mark.parametrize(("readings", "found"), [((), None), (({"refused": "noise"},), None)])
def test_a_latency_that_was_refused_does_not_count(readings: tuple[dict[str, str], ...], found: None) -> None:
    assert result(latency=readings).timed is found
    good = {"refused": "", "milliseconds": 2.0}
    assert result(latency=(good, {"refused": "noise"})).timed is good


def test_mean_and_deviation_are_those_of_the_seeds_that_gave_a_network() -> None:
    both = Confirmation((1, 2), (0.5, 0.7), (10, 10), images=100)
    assert both.mean == pytest.approx(0.6)
    assert both.std == pytest.approx(0.2 / 2**0.5)
    assert Confirmation((1,), (0.5,), (10,), images=100).std is None
    assert Confirmation((), (), (), images=100, errors=("out of memory",)).mean is None
