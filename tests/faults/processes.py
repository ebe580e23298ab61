"""Processes of a search: forks of this one that search, what they start, and how they are killed.

A search is a fork, so that starting one takes no imports; `import_everything` comes before the first.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "SLIMFRONT_FAULT_CASE"  # variable by which the processes of a search are found, whoever their parent is now


def import_everything() -> None:
    """Import what a search imports late; no thread may run afterwards."""
    import alembic  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import mlflow.tracking  # noqa: F401
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401
    import optuna.storages._rdb.models  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import psycopg  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch._dynamo
    import torch.export  # noqa: F401

    import runners.ray.runner  # noqa: F401
    import search.orchestrator  # noqa: F401


class ForkedSearch:
    """`python -m search` with these arguments, in a fork; both its outputs go to the end of a log.

    Args:
        environment: variables beside those of this process.
        folder: the current folder of the search.

    Attributes:
        began: when it was started, in seconds since the epoch.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path) -> None:
        self._code: int | None = None
        self.began = time.time()
        self.arguments, self.log = list(arguments), log
        log.touch()
        self._seen = log.stat().st_size
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.environ.update(environment)
                os.chdir(folder)
                code = _search(arguments, log)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code once the search has ended, negative for a signal."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def text(self) -> str:
        """Return what this search has written so far."""
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._seen)
            return file.read()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def driver_of_ray(self) -> int | None:
        """Return the process that drives Ray, a fork of the search; None while there is none."""
        ours = psutil.Process().cmdline()
        return next((child.pid for child in _children(self.pid) if _command(child) == ours), None)

    def workers(self) -> list[int]:
        """Return the workers of a Ray that the search has started."""
        return [child.pid for child in _children(self.pid, recursive=True) if _is_worker(child)]


def workers_below(raylets: Iterable[int]) -> list[int]:
    """Return the workers that these raylets have."""
    return [child.pid for raylet in raylets for child in _children(raylet) if _is_worker(child)]


def left_behind(mark: str, sessions: Collection[int], seconds: float) -> list[str]:
    """Return the processes of searches that are still there after so many seconds, and kill them.

    Args:
        mark: their value of MARK; what they have forked has none, but is in one of these sessions.
    """
    deadline = time.monotonic() + seconds
    while (found := _belonging(mark, sessions)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = []
    for process in found:
        try:
            names.append(" ".join(_command(process))[:80])
            process.kill()
        except psutil.Error:
            continue
    return names


def _belonging(mark: str, sessions: Collection[int]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            belongs = os.getsid(process.pid) in sessions or process.environ().get(MARK) == mark
            if belongs and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _search(arguments: Sequence[str], log: Path) -> int:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    from search.cli import main

    return main(list(arguments))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _children(pid: int, *, recursive: bool = False) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process) -> bool:
    title = "".join(_command(process)[:1])
    return title.startswith("ray::") and not title.endswith("Agent")  # a raylet ends with its agents
