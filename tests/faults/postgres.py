"""A real PostgreSQL server on loopback that a test starts, kills and starts again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

COMMANDS = ("initdb", "postgres")
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian keeps them, beside PATH


def missing() -> list[str]:
    """Return the commands of PostgreSQL that are not installed."""
    return [name for name in COMMANDS if _found(name) is None]


def _found(name: str) -> str | None:
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=folder) for folder in DEBIAN)), None)


class Postgres:
    """A server in a folder of its own, under the user "postgres" where the tests run as root, whom it refuses."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slimfront-postgres-"))
        self._user = {"user": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(self._folder, "postgres")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._run(str(_found("initdb")), "-D", str(self._folder / "data"), "-U", "searcher", "-A", "trust", "-N")
        self.url = f"postgresql://searcher@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers; again where it ends at once, as while another process has its port."""
        deadline = time.monotonic() + 60
        self._launch()
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._launch()
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:  # also while it starts up
                time.sleep(0.05)
        raise TimeoutError("PostgreSQL does not start")

    def _launch(self) -> None:
        place = ["-D", str(self._folder / "data"), "-p", str(self._port), "-k", str(self._folder)]
        log = (self._folder.parent / f"{self._folder.name}.log").open("a")
        self._process = subprocess.Popen(
            [str(_found("postgres")), *place], cwd=self._folder, stdout=log, stderr=log, **self._user
        )
        log.close()

    def kill(self) -> None:
        """Let the server die with all its connections, as a machine that loses its power does."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder)
        (self._folder.parent / f"{self._folder.name}.log").unlink()

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, **self._user)
