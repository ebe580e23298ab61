"""Lifeline: notices that the head of a Ray cluster has gone."""

import socket
import threading
import time

from spaces.errors import LostError

# A link that is down for 20 s is waited for; after 60 s Ray gives the cluster up itself.
PATIENCE = 40.0
INTERVAL = 2.0


class ClusterLostError(LostError):
    """A Ray cluster whose head had answered and does not any more."""


class Lifeline:
    """Asks in the background, inside its `with` block, whether the head answers.

    Args:
        address: of the head's control store, as host:port.
        patience: seconds without an answer after which the cluster is lost.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self.address, self._patience = address, patience
        host, _, port = address.rpartition(":")
        self._place = host, int(port)
        self._answered = time.monotonic()
        self._closed = threading.Event()
        self._asking = threading.Thread(target=self._ask, name="ray lifeline", daemon=True)

    def __enter__(self) -> "Lifeline":
        """Begin to ask."""
        self._asking.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop asking."""
        self._closed.set()

    def check(self) -> None:
        """Raise a ClusterLostError if the head has not answered for too long."""
        silent = time.monotonic() - self._answered
        if silent > self._patience:
            raise ClusterLostError(
                f"the Ray cluster at {self.address} is lost, its head has not answered for {silent:.0f} s"
            )

    def _ask(self) -> None:
        while not self._closed.wait(INTERVAL):
            try:
                socket.create_connection(self._place, timeout=INTERVAL).close()
            except OSError:
                continue
            self._answered = time.monotonic()
