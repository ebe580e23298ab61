"""A Ctrl-C that something dropped comes up again at the next trial, and no result is lost by it."""

import contextlib
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from search.interrupts import Interruptible


class Trials:
    def __init__(self) -> None:
        self.told: list[object] = []

    def ask(self) -> str:
        return "trial"

    def report(self, report: object) -> bool:
        return True

    def tell(self, result: object) -> None:
        self.told.append(result)


def dropped_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # where Python delivers it
            pass


@pytest.mark.parametrize("what", ["ask", "report", "tell"])
def test_a_dropped_interrupt_is_raised_again_and_the_result_told(what: str) -> None:
    trials, result = Trials(), SimpleNamespace()
    with Interruptible(trials) as interruptible:
        assert (interruptible.ask(), interruptible.report(result)) == ("trial", True)
        dropped_interrupt()
        with pytest.raises(KeyboardInterrupt):
            getattr(interruptible, what)(*[] if what == "ask" else [result])
    assert trials.told == ([result] if what == "tell" else [])


def test_afterwards_ctrl_c_belongs_to_whom_it_did_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruptible(Trials()):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_it_only_hands_on() -> None:
    found = []

    def work() -> None:
        with Interruptible(Trials()) as interruptible:
            found.append(interruptible.ask())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["trial"]
