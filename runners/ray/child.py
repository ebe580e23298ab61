"""A process of its own for Ray, so that the search survives it.

Once the head of a cluster has gone, calls of Ray do not return, and after a minute its compiled part ends the process
that made them. The search serves the AskTell to a forked process that runs the trials, and sees it end.

It is forked, not spawned, because a spawned one would import the user's script again. So the search itself never
connects to Ray: a process in which Ray has run cannot be forked safely.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from typing_extensions import override

from runners.base import AskTell
from runners.ray.lifeline import ClusterLostError, Lifeline
from runners.trial import EpochReport, Trial, TrialResult

POLL_SECONDS = 0.5  # between looks whether the head of the cluster answers
END_SECONDS = 20.0  # in which the process releases its workers before it is killed
CONNECTED, LOG, ENDED = "connected", "log", "ended"  # messages beside the names of the methods of an AskTell
Run = Callable[[AskTell, Callable[[str], None]], Any]


def run_in_child(run: Run, ask_tell: AskTell | None = None) -> Any:
    """Call `run` in a process of its own, with an AskTell that stands for this one; return what it returns.

    Args:
        run: its second argument takes the address of the head once it is connected.

    Raises:
        ClusterLostError: the process was ended by Ray, or the head no longer answers.
        Exception: what `run` raised, or a method of the AskTell.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, ours, theirs), daemon=True)
    process.start()
    theirs.close()
    with contextlib.ExitStack() as stack:
        stack.callback(_end, process, ours)
        return _serve(ask_tell, process, ours, stack)


def _serve(ask_tell: AskTell | None, process: BaseProcess, connection: Connection, stack: contextlib.ExitStack) -> Any:
    """Answer the calls of the process until it has ended; return the value of its `run`."""
    lifeline: Lifeline | None = None
    while True:
        name, argument = _receive(process, connection, lifeline)
        if name == ENDED:
            error, value = argument
            if error is not None:
                raise error
            return value
        if name == CONNECTED:
            lifeline = stack.enter_context(Lifeline(argument))
        elif name == LOG:
            logger, level, text = argument
            logging.getLogger(logger).log(level, "%s", text)
        else:
            answer = getattr(ask_tell, name)(*(() if name == "ask" else (argument,)))
            try:
                connection.send(answer)
            except ConnectionError:  # it was ended meanwhile
                raise _lost(process, lifeline) from None


def _receive(process: BaseProcess, connection: Connection, lifeline: Lifeline | None) -> tuple[str, Any]:
    """Return the next message.

    Raises:
        ClusterLostError: the process has ended, or hangs because the head of the cluster no longer answers.
    """
    try:
        while not connection.poll(POLL_SECONDS):
            if lifeline is not None:
                lifeline.check()
        name, argument = connection.recv()
        return name, argument
    except ClusterLostError:
        process.kill()
        raise
    except (EOFError, ConnectionError):
        raise _lost(process, lifeline) from None


def _lost(process: BaseProcess, lifeline: Lifeline | None) -> ClusterLostError:
    process.join()
    address = "" if lifeline is None else f" at {lifeline.address}"
    return ClusterLostError(f"the Ray cluster{address} is lost: its process ended with code {process.exitcode}")


def _end(process: BaseProcess, connection: Connection) -> None:
    """End the process; it first releases its workers."""
    connection.close()
    if process.is_alive():
        process.terminate()
        process.join(END_SECONDS)
    if process.is_alive():
        process.kill()
    process.join()


class _Remote(AskTell):
    """The AskTell of the search, in the process that runs the trials."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def ask(self) -> Trial | None:
        trial: Trial | None = self._call("ask")
        return trial

    @override
    def report(self, report: EpochReport) -> bool:
        return bool(self._call("report", report))

    @override
    def tell(self, result: TrialResult) -> None:
        self._call("tell", result)

    def _call(self, name: str, argument: Any = None) -> Any:
        self._connection.send((name, argument))
        return self._connection.recv()


class _Forward(logging.Handler):
    """Sends log lines to the search, whose live display has the terminal."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self._connection.send((LOG, (record.name, record.levelno, record.getMessage())))


def _child(run: Run, theirs_of_parent: Connection, connection: Connection) -> None:
    theirs_of_parent.close()
    _make_quiet(connection)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="end with the search", daemon=True).start()
    error: BaseException | None = None
    value = None
    try:
        value = run(_Remote(connection), lambda address: connection.send((CONNECTED, address)))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        return  # the search has ended this process, or has ended itself
    except BaseException as raised:
        error = _sendable(raised)
    with contextlib.suppress(OSError):
        connection.send((ENDED, (error, value)))


def _make_quiet(connection: Connection) -> None:
    """Let only the search end this process and write to the terminal, and one thread compute in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the search too, which decides
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger().handlers = [_Forward(connection)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    torch.set_num_threads(1)


def _end_with(search: int) -> None:
    """End this process once the search is gone: it holds the lock of the run folder too, and its workers train on.

    Without this it would notice at its next call of the AskTell, which may be a long epoch away.
    """
    while os.getppid() == search:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sendable(error: BaseException) -> BaseException:
    """Return the error; as a RuntimeError of its text where it cannot be pickled and read back."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
