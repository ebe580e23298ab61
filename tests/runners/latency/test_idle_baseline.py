import logging
from pathlib import Path

import pytest

from runners.latency.idle_baseline import PROCESSES, quietest


def test_the_least_of_all_processes_counts(tmp_path: Path) -> None:
    notes = tmp_path / "latency" / "quiet.json"
    assert quietest(notes, None) is None
    assert not notes.exists()
    assert [quietest(notes, found) for found in (3.0, 2.0, 4.0, None)] == [3.0, 2.0, 2.0, 2.0]


def test_what_a_machine_could_once_do_is_forgotten(tmp_path: Path) -> None:
    notes = tmp_path / "quiet.json"
    quietest(notes, 1.0)
    found = [quietest(notes, 2.0) for _ in range(PROCESSES)]
    assert found == [1.0] * (PROCESSES - 1) + [2.0]


@pytest.mark.parametrize("content", ["", "{", "[[1]]", "3", '{"a": 1}'])
def test_spoiled_notes_are_warned_of_and_written_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = tmp_path / "quiet.json"
    notes.write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert quietest(notes, 2.0) == 2.0
    assert str(notes) in caplog.text
    caplog.clear()
    assert quietest(notes, 3.0) == 2.0
    assert not caplog.text


def test_without_a_cache_this_process_goes_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "latency").write_text("a file where the folder should be", encoding="utf-8")
    assert quietest(tmp_path / "latency" / "quiet.json", 2.0) == 2.0
    assert "will not know how fast this machine is" in caplog.text
