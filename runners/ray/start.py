"""What a Ray needs before it starts: a cluster that answers, and where this process finds its modules."""

import os
import socket
import sys


def knock(address: str) -> None:
    """Raise an OSError if nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


def own_folders() -> list[str]:
    """Return the folders from which this process imports and where nothing is installed.

    Workers that look there too import what this process can, also when neither is installed nor in the current folder.
    """
    installed = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    return [os.path.abspath(path) for path in sys.path if not os.path.realpath(path).startswith(installed)]
