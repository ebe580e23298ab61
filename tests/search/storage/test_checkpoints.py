"""What stays of the weights of trials in a run folder."""

from pathlib import Path

import pytest

from pruning.base import Goal
from runners.trial import Trial, TrialResult, TrialState
from search.storage.checkpoints import TrialFiles
from spaces import files


def test_files_that_no_trial_names_go_with_what_a_kill_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = TrialFiles(tmp_path)
    trials = [Trial(number, "l2", Goal()) for number in range(3)]
    kept, superseded, killed = (TrialResult(each, TrialState.COMPLETE, checkpoint=b"weights") for each in trials)
    kept = archive.keep(kept)
    archive.keep(superseded)
    with monkeypatch.context() as patch:  # as a kill leaves it: neither moved to its place nor removed
        patch.setattr(files.os, "replace", lambda temporary, path: None)
        archive.keep(killed)
    assert len(list((tmp_path / "trials").iterdir())) == 3
    archive.drop_unnamed([kept])
    assert list((tmp_path / "trials").iterdir()) == [tmp_path / kept.path]
