"""The search survives the process that runs its trials."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruning.base import Goal
from runners.base import AskTell
from runners.ray.child import run_in_child
from runners.ray.lifeline import ClusterLostError, Lifeline
from runners.trial import EpochReport, Trial, TrialResult, TrialState

OnConnected = Callable[[str], None]


class Desk:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def ask(self) -> Trial | None:
        self.calls.append("ask")
        return Trial(4, "l2", Goal()) if len(self.calls) == 1 else None

    def report(self, report: EpochReport) -> bool:
        self.calls.append(f"report {report.epoch}")
        return report.epoch < 1

    def tell(self, result: TrialResult) -> None:
        self.calls.append(f"tell {result.trial.number}")


def whole(ask_tell: AskTell, _: OnConnected) -> None:
    while (trial := ask_tell.ask()) is not None:
        epoch = 0
        while ask_tell.report(EpochReport(trial.number, epoch, 0.5, 0.0)):
            epoch += 1
        logging.getLogger("runners.made_up").warning("process %d of %d", os.getpid(), os.getppid())
        ask_tell.tell(TrialResult(trial, TrialState.COMPLETE))


def test_calls_and_log_lines_come_from_another_process(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    run_in_child(whole, desk)
    assert desk.calls == ["ask", "report 0", "report 1", "tell 4", "ask"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "runners.made_up"]
    assert line.endswith(f" of {os.getpid()}")
    assert not line.startswith(f"process {os.getpid()} ")


def test_a_process_that_is_ended_is_a_lost_cluster() -> None:
    def aborts(ask_tell: AskTell, on_connected: OnConnected) -> None:
        ask_tell.ask()
        os.kill(os.getpid(), signal.SIGKILL)

    desk = Desk()
    with pytest.raises(ClusterLostError, match="is lost: its process ended with code -9"):
        run_in_child(aborts, desk)
    assert desk.calls == ["ask"]


def test_a_process_that_is_ended_before_it_has_its_answer_is_a_lost_cluster(tmp_path: Path) -> None:
    def asks(ask_tell: AskTell, _: OnConnected) -> None:
        (tmp_path / "process").write_text(str(os.getpid()))
        ask_tell.ask()

    class Slow(Desk):
        def ask(self) -> Trial | None:
            process = int((tmp_path / "process").read_text())
            os.kill(process, signal.SIGKILL)
            assert awaited(lambda: psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
            return super().ask()

    with pytest.raises(ClusterLostError, match="is lost: its process ended with code -9"):
        run_in_child(asks, Slow())


def test_the_process_ends_soon_after_a_search_that_is_killed(tmp_path: Path) -> None:
    def trains_long(ask_tell: AskTell, _: OnConnected) -> None:
        (tmp_path / "process").write_text(str(os.getpid()))
        time.sleep(600)

    search = os.fork()
    if not search:
        run_in_child(trains_long)
    child = awaited(lambda: (tmp_path / "process").is_file() and int((tmp_path / "process").read_text() or 0))
    os.kill(search, signal.SIGKILL)
    os.waitpid(search, 0)
    assert awaited(lambda: not psutil.pid_exists(child))


def awaited(condition: Callable[[], Any]) -> Any:
    """Return what is true within some seconds."""
    deadline = time.monotonic() + 15
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def test_errors_pass_in_both_directions_and_the_process_ends(tmp_path) -> None:
    def fails(ask_tell: AskTell, _: OnConnected) -> None:
        raise ValueError("no room")

    def waits(ask_tell: AskTell, _: OnConnected) -> None:
        (tmp_path / "process").write_text(str(os.getpid()))
        ask_tell.ask()
        time.sleep(60)

    class Broken(Desk):
        def ask(self) -> Trial | None:
            raise KeyboardInterrupt

    with pytest.raises(ValueError, match="no room"):
        run_in_child(fails, Desk())
    with pytest.raises(KeyboardInterrupt):
        run_in_child(waits, Broken())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


def test_a_head_that_no_longer_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.ray.lifeline.INTERVAL", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with Lifeline(address, patience=0.5) as lifeline:
            time.sleep(0.6)
            lifeline.check()
            server.close()
            time.sleep(0.6)
            with pytest.raises(ClusterLostError, match=f"the Ray cluster at {address} is lost, its head has not ans"):
                lifeline.check()
