"""Measure by a command of the user's: `ssh board ./bench {model}`, for any runtime on any device.

The command is called with the file of one network and prints milliseconds on standard output: one number a line, one
line per run, or one JSON value, `{"ms": 3.1, "mj": 12}` or `{"ms": [3.1, 3.2]}`. It runs without a shell unless asked,
in a process group of its own, which is killed when the time is over.
"""

import json
import os
import selectors
import shlex
import signal
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.cache import digest_of
from runners.config import LatencyConfig
from runners.latency.external import BenchError, Comparison, positive, shortened
from runners.latency.meter import locked

MAX_BYTES = 2**20  # of an answer


@dataclass(frozen=True)
class Reply:
    """What a call printed: milliseconds of every run, and millijoules of one."""

    milliseconds: tuple[float, ...]
    millijoules: float | None = None


@dataclass(frozen=True)
class CommandBench:
    """Calls the command once per network and turn.

    Attributes:
        input_shape: (C, H, W).
    """

    config: LatencyConfig
    input_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The command."""
        return self.config.command

    @property
    def places(self) -> int:
        """One call runs at a time."""
        return 1

    def compare_all(self, network: Path, dense: Path, rounds: int) -> Mapping[str, Comparison]:
        """Call the command, which is the only place; see `external.Bench`."""
        return {self.name: self.compare(network, dense, self.config.batch[0], rounds)}

    def compare(self, network: Path, dense: Path, batch: int, rounds: int) -> Comparison:
        """Call the command for both files in turn; see `external.Bench`."""
        with locked(f"bench-{digest_of(self.name)[:24]}"):
            return self._turns(network, dense, batch, rounds)

    def _turns(self, network: Path, dense: Path, batch: int, rounds: int) -> Comparison:
        found, energy = list[tuple[float, float]](), list[float]()
        for turn in range(rounds):
            order = (network, dense) if turn % 2 == 0 else (dense, network)
            replies = {path: self.call(path, batch) for path in dict.fromkeys(order)}
            own, beside = (statistics.median(replies[path].milliseconds) / 1000 for path in (network, dense))
            found.append((own, beside))
            if (millijoules := replies[network].millijoules) is not None:
                energy.append(millijoules)
        return Comparison(tuple(found), statistics.median(energy) if energy else None)

    def call(self, model: Path, batch: int) -> Reply:
        """Run the command for one file.

        Raises:
            BenchError: it cannot be started, fails, takes too long, or prints something else than milliseconds.
        """
        values = {"model": str(model), "batch": str(batch), "shape": "x".join(map(str, (batch, *self.input_shape)))}
        return parse_reply(_output(command_line(self.config, values), self.config))


def command_line(config: LatencyConfig, values: Mapping[str, str]) -> list[str] | str:
    """Return the command with the values in the places of their names in braces.

    Without a shell these are put into the words of the command after it was split, so that no quoting is needed; for a
    shell every value is quoted.
    """
    if config.shell:
        return _filled(config.command, {name: shlex.quote(value) for name, value in values.items()})
    return [_filled(word, values) for word in shlex.split(config.command)]


def parse_reply(text: str) -> Reply:
    """Read what a command printed.

    Raises:
        BenchError: nothing, no JSON of the right form and no numbers, or a number that is no duration.
    """
    if not text.strip():
        raise BenchError("the command printed nothing; it must print milliseconds, one number a line, or JSON")
    value = _parsed(text)
    energy = None
    if isinstance(value, dict):
        if "ms" not in value:
            raise BenchError(f'the command printed JSON without "ms": {shortened(text)}')
        energy = None if value.get("mj") is None else _number(value["mj"], "millijoules")
        value = value["ms"]
    runs = value if isinstance(value, list) else [value]
    if not runs:
        raise BenchError("the command printed an empty list; it must print the milliseconds of at least one run")
    return Reply(tuple(_number(run, "milliseconds") for run in runs), energy)


def _parsed(text: str) -> Any:
    lines = text.split()
    try:
        return json.loads(text) if len(lines) != 1 or text.strip()[0] in "[{" else lines[0]
    except ValueError:
        return lines if all(_is_number(line) for line in lines) else text.strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(value: Any, unit: str) -> float:
    return positive(value, unit, "the command", 'positive numbers, one a line, or JSON such as {"ms": [3.1], "mj": 12}')


def _output(command: list[str] | str, config: LatencyConfig) -> str:
    """Run a command and return what it printed on standard output."""
    name = repr(config.command)
    try:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise BenchError(f"the command {name} cannot be started: {error.strerror}") from error
    deadline = time.monotonic() + config.timeout
    try:
        output, errors = _read(process, deadline)
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise BenchError(
            f"the command {name} did not end within {config.timeout:g} s (--latency-timeout) and was killed"
        ) from None
    finally:
        _kill(process)
    shown = shortened(" / ".join(errors.decode(errors="replace").splitlines()[-3:])) or "nothing on standard error"
    if code:
        raise BenchError(f"the command {name} ended with exit code {code}: {shown}")
    return output.decode(errors="replace")


def _read(process: "subprocess.Popen[bytes]", deadline: float) -> tuple[bytes, bytes]:
    """Return standard output and the end of standard error once both are closed.

    Raises:
        TimeoutError: the deadline is over.
        BenchError: standard output is longer than MAX_BYTES.
    """
    output, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, buffer in ((process.stdout, output), (process.stderr, errors)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, buffer)
        while selector.get_map():
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 65536)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            if len(output) > MAX_BYTES:
                raise BenchError(f"the command printed over {MAX_BYTES:,} bytes and was killed; it must print numbers")
            del errors[:-MAX_BYTES]
    return bytes(output), bytes(errors)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the command with its children, if it still runs, and close what it wrote to."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text
