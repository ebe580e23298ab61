"""A real MLflow server on loopback that a test starts, kills and starts again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path


class MlflowServer:
    """MLflow's server on a SQLite store in this folder.

    Attributes:
        url: where it answers, also after it was killed and started again.
        store: file of its store.
    """

    def __init__(self, folder: Path) -> None:
        self.store, self._folder = folder / "server.db", folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()
        self.wait()

    def start(self) -> None:
        """Begin to start; it answers some seconds later."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self._port)]
            + [
                "--backend-store-uri",
                f"sqlite:///{self.store}",
                "--artifacts-destination",
                str(self._folder / "files"),
            ],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=(self._folder / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server does not answer")

    def kill(self) -> None:
        """Let all its processes die at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
