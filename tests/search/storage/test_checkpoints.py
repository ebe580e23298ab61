"""What stays of the weights of trials in a run folder."""

import dataclasses
from pathlib import Path

import pytest

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.storage.checkpoints import CheckpointFolder, CheckpointStore
from spaces import files
from spaces.errors import WeightsError


def with_weights(number: int, weights: bytes = b"weights") -> TrialResult:
    return TrialResult(Trial(number, "l2", Goal()), TrialState.COMPLETE, checkpoint=weights)


def test_files_that_no_trial_names_go_with_what_a_kill_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointFolder(tmp_path)
    kept, superseded, killed = (with_weights(number) for number in range(3))
    kept = store.keep(kept)
    store.keep(superseded)
    with monkeypatch.context() as patch:  # as a kill leaves it: neither moved to its place nor removed
        patch.setattr(files.os, "replace", lambda temporary, path: None)
        store.keep(killed)
    assert len(list((tmp_path / "trials").iterdir())) == 3
    store.drop_unnamed([kept])
    assert list((tmp_path / "trials").iterdir()) == [tmp_path / kept.path]


def test_weights_are_read_back_until_they_are_dropped(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    kept = store.keep(with_weights(0))
    assert kept.checkpoint is None
    assert store.read(kept) == b"weights"
    store.drop(kept)
    store.drop(kept)  # what is gone already need not be
    with pytest.raises(WeightsError):
        store.read(kept)


def test_a_longer_training_gets_a_file_of_its_own(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    result = with_weights(0)
    short = store.keep(dataclasses.replace(result, rungs=((1, 0.5),)))
    longer = store.keep(dataclasses.replace(result, rungs=((1, 0.5), (2, 0.6)), checkpoint=b"longer"))
    assert (short.path, longer.path) == ("trials/0000.safetensors", "trials/0000-e2.safetensors")
    assert (store.read(short), store.read(longer)) == (b"weights", b"longer")


def test_weights_in_memory_stay_with_their_result() -> None:
    result = with_weights(0)
    assert CheckpointStore().keep(result) is result
    assert CheckpointStore().read(result) == b"weights"
