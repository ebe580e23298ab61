import logging
from pathlib import Path

import pytest

from runners.latency.idle_baseline import PROCESSES, shared_idle_seconds


def test_the_lower_quartile_of_all_processes_is_returned(tmp_path: Path) -> None:
    record = tmp_path / "latency" / "idle.json"
    assert shared_idle_seconds(record, None) is None
    assert not record.exists()
    assert [shared_idle_seconds(record, found) for found in (3.0, 2.0, 4.0, 5.0, None)] == [3.0, 2.0, 2.0, 3.0, 3.0]


def test_a_speed_that_the_machine_no_longer_reaches_is_forgotten(tmp_path: Path) -> None:
    record = tmp_path / "idle.json"
    for _ in range(PROCESSES):
        assert shared_idle_seconds(record, 1.0) == 1.0
    found = [shared_idle_seconds(record, 2.0) for _ in range(PROCESSES)]
    assert found.count(1.0) == PROCESSES - PROCESSES // 4 - 1
    assert found[-1] == 2.0


@pytest.mark.parametrize("content", ["", "{", "[[1]]", "3", '{"a": 1}'])
def test_an_unreadable_record_gives_a_warning_and_is_written_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "idle.json"
    record.write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert shared_idle_seconds(record, 2.0) == 2.0
    assert str(record) in caplog.text
    caplog.clear()
    assert shared_idle_seconds(record, 3.0) == 2.0
    assert not caplog.text


def test_without_a_cache_a_process_uses_its_own_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    (tmp_path / "latency").write_text("a file where the folder should be", encoding="utf-8")
    assert shared_idle_seconds(tmp_path / "latency" / "idle.json", 2.0) == 2.0
    assert f"the cache {tmp_path} cannot be written" in caplog.text
