"""Measure on boards where `runners/latency/agent.py` runs, over HTTP.

Several agents of one kind share the networks, each takes the next one when it is free, and one that does not answer is
left out until it does.
"""

import hashlib
import http.client
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from runners.cache import digest_of
from runners.config import LatencyConfig
from runners.latency.engines import LatencyError
from runners.latency.external import AwayError, BenchError, Comparison, positive, shortened
from runners.latency.meter import locked

MAX_ANSWER = 2**22  # bytes
CONNECT_SECONDS = 10.0
GRACE_SECONDS = 30.0  # beyond --latency-timeout, which the agent keeps itself
SAME = ("processor", "onnxruntime", "threads")  # of agents of one kind

_log = logging.getLogger(__name__)


class _ForgottenError(BenchError):
    """The agent does not have a file that it was given before."""


class AgentsBench:
    """Measures by the agents, each one network at a time; threads may call `compare` at once.

    Raises:
        LatencyError: the file of the token cannot be read.
    """

    def __init__(self, config: LatencyConfig) -> None:
        addresses = dict.fromkeys(address.rstrip("/") for address in config.agents)  # one that is named twice is one
        self._agents = [_Agent(address, _read_token(config), config.timeout) for address in addresses]
        self._free = list(self._agents)  # the next one first; those that were away last
        self._changed = threading.Condition()

    @property
    def name(self) -> str:
        """The addresses."""
        return ", ".join(agent.address for agent in self._agents)

    @property
    def places(self) -> int:
        """The number of agents."""
        return len(self._agents)

    def check(self) -> None:
        """Ask all agents who they are.

        Raises:
            BenchError: one does not answer, or they are not of one kind.
        """
        described = {agent.address: agent.describe() for agent in self._agents}
        for key in SAME:
            if len({str(answer.get(key)) for answer in described.values()}) > 1:
                found = ", ".join(f"{address} has {answer.get(key)}" for address, answer in described.items())
                raise BenchError(f"the agents differ in {key}: {found}; name agents of one kind")

    def compare(self, network: Path, dense: Path, batch: int, rounds: int) -> Comparison:  # noqa: ARG002 - in the file
        """Have the next free agent that answers measure both files in turn; see `external.Bench`."""
        away = dict[str, AwayError]()
        while (agent := self._take(set(away))) is not None:
            try:
                found = agent.compare(network, dense, rounds)
            except AwayError as error:
                away[agent.address] = error
                _log.info("another agent takes the network: %s", error)
                continue
            finally:
                self._give(agent, last=agent.address in away)
            return found
        raise next(reversed(away.values()))

    def compare_all(self, network: Path, dense: Path, rounds: int) -> Mapping[str, Comparison]:
        """Have every agent that answers measure the same files, one after the other; see `external.Bench`."""
        found = {}
        for agent in self._agents:
            try:
                found[agent.address] = agent.compare(network, dense, rounds)
            except AwayError as error:
                _log.warning("it is not compared with the others: %s", error)
        return found

    def _take(self, away: Collection[str]) -> "_Agent | None":
        """Return the next agent once one is free that was not found away; None where all were."""
        with self._changed:
            while len(away) < len(self._agents):
                for index, agent in enumerate(self._free):
                    if agent.address not in away:
                        return self._free.pop(index)
                self._changed.wait()
            return None

    def _give(self, agent: "_Agent", *, last: bool) -> None:
        """Put an agent back: behind those that were used before, and one that is away behind all."""
        with self._changed:
            agent.is_away = last
            self._free = sorted([*self._free, agent], key=lambda one: one.is_away)
            self._changed.notify_all()


class _Agent:
    """One agent: uploads files that it does not have, and asks for measurements."""

    def __init__(self, address: str, token: str, timeout: float) -> None:
        self.address, self._token, self._timeout = address, token, timeout
        self.is_away = False  # at the last call
        self._stored = set[str]()  # digests of files that it has, as far as known
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def describe(self) -> dict[str, Any]:
        return self._ask("GET", "/", None, CONNECT_SECONDS)

    def compare(self, network: Path, dense: Path, rounds: int) -> Comparison:
        with locked(f"agent-{digest_of(self.address)[:24]}"):
            return self._turns(network, dense, rounds)

    def _turns(self, network: Path, dense: Path, rounds: int) -> Comparison:
        self.describe()  # a board that is switched off shows here, after CONNECT_SECONDS
        files = {"network": network.read_bytes(), "dense": dense.read_bytes()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        request = json.dumps({**digests, "rounds": rounds, "timeout": self._timeout}).encode()
        try:
            answer = self._measured(digests, files, request)
        except _ForgottenError:  # it was started again, or keeps so few files that one of them went
            self._stored.clear()
            answer = self._measured(digests, files, request)
        turns = answer.get("rounds")
        if not isinstance(turns, list) or not turns or any(not isinstance(t, list) or len(t) != 2 for t in turns):
            raise BenchError(f"agent {self.address} answered {shortened(turns)} for rounds; expected pairs of numbers")
        pairs = [[positive(value, "milliseconds", f"agent {self.address}") / 1000 for value in turn] for turn in turns]
        energy = answer.get("mj")
        return Comparison(
            tuple((own, beside) for own, beside in pairs),
            None if energy is None else positive(energy, "millijoules", f"agent {self.address}"),
            {"agent": self.address, **{key: value for key, value in answer.items() if key != "runs"}},
        )

    def _measured(self, digests: Mapping[str, str], files: Mapping[str, bytes], request: bytes) -> dict[str, Any]:
        for name, digest in digests.items():
            if digest not in self._stored:
                self._ask("PUT", f"/models/{digest}", files[name], self._timeout)
                self._stored.add(digest)
        return self._ask("POST", "/measure", request, self._timeout + GRACE_SECONDS)

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                content = response.read(MAX_ANSWER + 1)
        except urllib.error.HTTPError as error:
            kind = _ForgottenError if error.code == 404 else BenchError
            raise kind(f"agent {self.address} {self._refusal(error)}") from error
        except TimeoutError as error:  # it took the connection; one that it does not take is a URLError
            raise BenchError(f"agent {self.address} gave no answer within {seconds:g} s (--latency-timeout)") from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None) or error
            raise AwayError(f"agent {self.address} does not answer ({shortened(reason)})") from error
        if len(content) > MAX_ANSWER:
            raise BenchError(f"agent {self.address} answered with over {MAX_ANSWER:,} bytes; is it an agent?")
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = shortened(content.decode(errors="replace"))
            raise BenchError(f"agent {self.address} answered {text!r}, which is no JSON object; is it an agent?")
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if error.code == 401:
            return "refuses the token; give --latency-token-file the file that it was started with"
        content = error.read(MAX_ANSWER).decode(errors="replace")
        try:
            content = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            pass
        return f"answered HTTP {error.code}: {shortened(content)}"


def _read_token(config: LatencyConfig) -> str:
    if not config.token_file:
        return ""
    try:
        return Path(config.token_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise LatencyError(f"--latency-token-file {config.token_file!r} cannot be read: {reason}") from error
