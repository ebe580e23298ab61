"""What Ray needs before it starts: a cluster that answers, and the folders from which this process imports."""

import os
import socket
import sys


def check_answers(address: str) -> None:
    """Raise an OSError if nothing listens at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


def import_folders() -> list[str]:
    """Return the folders from which this process imports, except those of installed packages.

    A worker that searches these folders too can import what this process can, even if a module is neither installed nor
    in the current folder.
    """
    installed = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    return [os.path.abspath(path) for path in sys.path if not os.path.realpath(path).startswith(installed)]
