"""Machines on one network that share neither address nor folder: namespaces of Linux, joined by a bridge.

A machine has a network, a name, processes, /tmp, /dev/shm and home of its own. Of the tests' folders it sees those of
installed packages, and those it is given. Nothing is left behind: the namespaces end with their processes.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COMMANDS = ("unshare", "setpriv", "nsenter", "ip", "mount")
NETWORK = "10.77.0"
PROJECT = Path(__file__).resolve().parents[2]
# Without a default route a program does not find its own address as it would on a real network.
_GATEWAY = f"{NETWORK}.254"
_UNSHARE = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
_WITH_TESTS = ("setpriv", "--pdeathsig", "KILL")  # nothing is left when the tests are killed
_REAPER = "while :; do sleep 1000 & wait; done"  # a first process that does not wait for others leaves them as zombies

# Arguments: the name, a file of the names of all machines, hidden folders, "--", the folders in them that stay visible.
# A new tree is built beside the old one before it covers it, because what is covered cannot be reached any more.
_PREPARE = r"""
set -eu
hostname "$1"
mount --bind "$2" /etc/hosts
shift 2
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /mnt
hidden=
while [ "$1" != -- ]; do hidden="$hidden $1"; mkdir -p "/mnt$1"; shift; done
shift
for kept; do mkdir -p "/mnt$kept"; mount --rbind "$kept" "/mnt$kept"; done
for folder in $hidden; do mount --rbind "/mnt$folder" "$folder"; done
"""


@functools.cache
def missing() -> str:
    """Return why machines cannot be made here; empty where they can."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    done = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    return f"namespaces are not permitted: {done.stderr.strip()}" if done.returncode else ""


class Traffic(NamedTuple):
    """Bytes on the link of a machine, as its port of the bridge counts them."""

    received: int  # by the machine
    sent: int

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(self.received - before.received, self.sent - before.sent)


class Network:
    """A bridge in a network namespace of its own, into which machines are plugged."""

    def __init__(self) -> None:
        self._processes = contextlib.ExitStack()
        self._switch = self._processes.enter_context(_namespaces())
        self._hosts = self._processes.enter_context(tempfile.NamedTemporaryFile("w", prefix="slimfront-hosts-"))
        self._hosts.write("127.0.0.1 localhost\n")
        self.machines: dict[str, Machine] = {}
        self._ip("link", "add", "bridge", "type", "bridge")
        self._ip("link", "set", "bridge", "up")

    def machine(self, name: str, visible: Sequence[Path] = ()) -> "Machine":
        """Start a machine that sees these folders of this one."""
        address = f"{NETWORK}.{len(self.machines) + 1}"
        self._hosts.write(f"{address} {name}\n")
        self._hosts.flush()
        machine = Machine(name, address, Path(self._hosts.name), visible)
        self._ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(machine.process))
        self._ip("link", "set", name, "master", "bridge", "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", _GATEWAY),
        ):
            machine.run("ip", *command)
        self.machines[name] = machine
        return machine

    def pull(self, name: str) -> None:
        """Take the cable of a machine out."""
        self._ip("link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Put the cable of a machine in again."""
        self._ip("link", "set", name, "up")

    def traffic(self, name: str) -> Traffic:
        """Return what has passed over the link of a machine so far."""
        (link,) = json.loads(self._ip("-json", "-stats", "link", "show", "dev", name))
        return Traffic(link["stats64"]["tx"]["bytes"], link["stats64"]["rx"]["bytes"])

    def close(self) -> None:
        for machine in self.machines.values():
            machine.kill()
        self._processes.close()

    def _ip(self, *command: str) -> str:
        enter = ("nsenter", "--target", str(self._switch), "--net", "ip", *command)
        return subprocess.run(enter, check=True, capture_output=True, text=True).stdout


class Machine:
    """A machine of a `Network`.

    Attributes:
        process: id, outside, of its first process.
    """

    def __init__(self, name: str, address: str, hosts: Path, visible: Sequence[Path]) -> None:
        self.name, self.address = name, address
        self.home = Path.home()
        self._processes = contextlib.ExitStack()
        self.process = self._processes.enter_context(_namespaces())
        hidden = _outermost([Path("/tmp"), Path("/var/tmp"), Path(tempfile.gettempdir()), self.home, PROJECT])
        packages = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
        prefixes = [
            Path(sys.prefix),
            Path(sys.base_prefix),
            *(Path(ray).parents[1] for ray in [shutil.which("ray")] if ray),
        ]
        kept = _outermost([*prefixes, *packages, *visible])
        kept = [path for path in kept if any(map(path.is_relative_to, hidden))]
        self.run("sh", "-c", _PREPARE, "prepare", name, str(hosts), *map(str, hidden), "--", *map(str, kept))

    def start(self, *command: str, folder: Path | None = None, **options: Any) -> "subprocess.Popen[str]":
        """Start a command on the machine, in its home or a folder of it, with the environment of a fresh login."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLIMFRONT_"))}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{self.home}/.ray/auth_token"}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""} | options.pop("env", {})
        enter = ("nsenter", "--target", str(self.process), "--all")
        there = ("sh", "-c", 'cd "$0" && exec "$@"', str(folder or self.home), *command)
        return subprocess.Popen([*enter, *there], env=environment, text=True, **options)

    def run(self, *command: str, **options: Any) -> str:
        """Run a command on the machine to its end; return what it printed."""
        with tempfile.TemporaryFile("w+") as output:  # a pipe stays open in what the command leaves running
            code = self.start(*command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options).wait()
            output.seek(0)
            text = output.read()
        if code:
            raise RuntimeError(f"{' '.join(command)} on {self.name}: exit code {code}\n{text}")
        return text

    def write(self, file: str, text: str) -> None:
        """Write a file in the machine's home that only its owner reads."""
        script = 'umask 077; mkdir -p "$(dirname "$0")"; printf %s "$1" > "$0"'
        self.run("sh", "-c", script, file, text)

    def kill(self) -> None:
        """End the machine with all its processes, as a loss of power does."""
        self._processes.close()


class RayCluster:
    """Ray as docs/cluster.md says to start it: a head that runs no trial, and nodes, all with one token."""

    def __init__(self, network: Network, head: Machine) -> None:
        self._network, self.head = network, head
        self.address = f"{head.address}:6379"
        self._token = os.urandom(32).hex()
        self.join(head, "--head", "--port=6379", "--num-cpus=0")

    def join(self, machine: Machine, *options: str) -> None:
        """Start Ray on a machine."""
        machine.write(".ray/auth_token", self._token)
        options = options or (f"--address={self.address}", "--num-cpus=1")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--object-store-memory=200000000")
        machine.run(*ray, "--disable-usage-stats")


def wait_until(happened: Any, seconds: float, what: str) -> None:
    """Wait for something; raise a TimeoutError that names it after so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


@contextlib.contextmanager
def _namespaces() -> Iterator[int]:
    """Hold new namespaces inside the block; give the id of their first process."""
    process = subprocess.Popen([*_WITH_TESTS, *_UNSHARE, "sh", "-c", f"echo; {_REAPER}"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it runs in the namespace
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(children[0])
    finally:
        process.kill()  # its child goes with it, and with that, all processes of the namespace
        process.communicate()


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Return the folders that lie in no other of them."""
    real = sorted({path.resolve() for path in paths})
    return [path for path in real if not any(path.is_relative_to(other) for other in real if other != path)]
