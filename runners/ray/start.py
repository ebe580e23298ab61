"""What Ray needs before it starts: a cluster that answers, and the folders from which this process imports."""

import os
import socket
import sys

from runners.base import RunnerError


def check_answers(address: str) -> None:
    """Raise an OSError if nothing listens at "host:port"; Ray itself would try for minutes.

    Raises:
        RunnerError: the address is that of a Ray client, over which the trials of a search cannot be followed.
    """
    if address.startswith("ray://"):
        raise RunnerError(
            f"Ray address {address!r} is that of a Ray client, which Tune does not run through; take the head's own "
            "address as host:port (6379 by default) on a machine of the cluster, or ray job submit (docs/cluster.md)"
        )
    place = host_and_port(address)
    if place is not None:
        socket.create_connection(place, timeout=5).close()


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return the parts of "host:port"; None for the other addresses that Ray understands, such as "auto"."""
    host, _, port = address.rpartition(":")
    return (host, int(port)) if port.isdigit() and "/" not in host else None


def import_folders() -> list[str]:
    """Return the folders from which this process imports, except those of installed packages.

    A worker that searches these folders too can import what this process can, even if a module is neither installed nor
    in the current folder.
    """
    installed = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    folders = [os.path.abspath(path) for path in sys.path if not os.path.realpath(path).startswith(installed)]
    return [folder for folder in folders if os.path.basename(folder) not in ("site-packages", "dist-packages")]


def own_modules() -> list[str]:
    """Return the files of modules and folders of packages that this process has imported and that are not installed.

    They travel to the nodes of a cluster, which need not share a folder with this process.
    """
    folders = set(import_folders())
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or name == "__main__" or not file or not file.endswith(".py"):
            continue
        path = os.path.abspath(file)
        if os.path.basename(path) == "__init__.py":
            path = os.path.dirname(path)
        if os.path.dirname(path) in folders:
            found.add(path)
    return sorted(found)
