"""A Ctrl-C that something dropped comes up again at the next step of the tuner, and no result is lost by it."""

import contextlib
import os
import signal
import threading

import pytest
from chain_space import chain
from made_up_search import problem_of, result_of, search_of

from runners.trial import EpochReport
from search.interrupts import Interrupts


def dropped_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # where Python delivers it
            pass


@pytest.mark.parametrize("step", ["ask", "report", "tell"])
def test_a_dropped_interrupt_is_raised_again_and_the_result_recorded(step: str) -> None:
    problem, interrupts = problem_of(chain(), ("20kflops",)), Interrupts()
    search = search_of(problem, interrupts=interrupts)
    with interrupts:
        trial = search.ask()
        assert trial is not None
        report, result = EpochReport(trial.number, 1, 0.5, 1.0), result_of(trial, problem.space)
        assert search.report(report)
        dropped_interrupt()
        arguments = {"ask": [], "report": [report], "tell": [result]}[step]
        with pytest.raises(KeyboardInterrupt):
            getattr(search.tuner, step)(*arguments)
    assert search.results == ((result,) if step == "tell" else ())


def test_afterwards_the_handler_of_before_gets_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_without_a_dropped_interrupt_nothing_is_raised() -> None:
    interrupts = Interrupts()
    interrupts.check()
    with interrupts:
        interrupts.check()
    interrupts.check()


def test_in_another_thread_it_remembers_nothing() -> None:
    found = list[bool]()

    def work() -> None:
        with Interrupts() as interrupts:
            interrupts.check()
            search = search_of(problem_of(chain(), ("20kflops",)), interrupts=interrupts)
            found.append(search.ask() is not None)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
    assert signal.getsignal(signal.SIGINT) == before
