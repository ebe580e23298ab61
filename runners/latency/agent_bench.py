"""Measure on boards where `runners/latency/agent.py` runs, over HTTP.

Several agents of one kind take the networks in rotation, and one that does not answer is left out until it does.
"""

import hashlib
import http.client
import json
import logging
import statistics
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from runners.config import LatencyConfig
from runners.latency.engines import LatencyError
from runners.latency.external import AwayError, BenchError, Comparison, positive, shortened

MAX_ANSWER = 2**22  # bytes
CONNECT_SECONDS = 10.0
GRACE_SECONDS = 30.0  # beyond --latency-timeout, which the agent keeps itself
AGREE = 1.15  # times the dense latency of another agent, up to which they are of one kind
SAME = ("processor", "onnxruntime", "threads")  # of agents of one kind

_log = logging.getLogger(__name__)


class AgentsBench:
    """Measures by one agent after the other.

    Raises:
        LatencyError: the file of the token cannot be read.
    """

    def __init__(self, config: LatencyConfig) -> None:
        self._agents = [_Agent(address.rstrip("/"), _read_token(config), config.timeout) for address in config.agents]
        self._dense: dict[str, float] = {}  # milliseconds of the dense network by agent
        self._next = 0

    @property
    def name(self) -> str:
        """The addresses."""
        return ", ".join(agent.address for agent in self._agents)

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
        """Have the next agent that answers measure both files in turn; see `external.Bench`."""
        away: AwayError | None = None
        for _ in self._agents:
            agent = self._agents[self._next % len(self._agents)]
            self._next += 1
            try:
                found = agent.compare(network, dense, rounds)
            except AwayError as error:
                away = error
                continue
            self._watch(agent.address, dense, found)
            return found
        raise away or AwayError("no agent is named")

    def _watch(self, address: str, dense: Path, found: Comparison) -> None:
        """Name agents that disagree about the dense network; their ratios may differ, too."""
        key = f"{address} {dense.name}"
        self._dense[key] = 1000 * statistics.median(beside for _, beside in found.rounds)
        others = {other: ms for other, ms in self._dense.items() if other.endswith(f" {dense.name}")}
        if max(others.values()) > AGREE * min(others.values()):
            told = ", ".join(f"{other.split()[0]} takes {ms:.4g} ms" for other, ms in others.items())
            _log.warning("the agents disagree about the dense network: %s; name agents of one kind", told)


class _Agent:
    """One agent: uploads files that it does not have, and asks for measurements."""

    def __init__(self, address: str, token: str, timeout: float) -> None:
        self.address, self._token, self._timeout = address, token, timeout
        self._stored = set[str]()  # digests of files that it has, as far as known
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def describe(self) -> dict[str, Any]:
        return self._ask("GET", "/", None, CONNECT_SECONDS)

    def compare(self, network: Path, dense: Path, rounds: int) -> Comparison:
        self.describe()  # a board that is switched off shows here, after CONNECT_SECONDS
        files = {"network": network.read_bytes(), "dense": dense.read_bytes()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        request = json.dumps({**digests, "rounds": rounds, "timeout": self._timeout}).encode()
        try:
            for name, digest in digests.items():
                if digest not in self._stored:
                    self._ask("PUT", f"/models/{digest}", files[name], self._timeout)
                    self._stored.add(digest)
            answer = self._ask("POST", "/measure", request, self._timeout + GRACE_SECONDS)
        except BenchError:
            self._stored.clear()  # it may have been started again
            raise
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

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                content = response.read(MAX_ANSWER + 1)
        except urllib.error.HTTPError as error:
            raise BenchError(f"agent {self.address} {self._refusal(error)}") from error
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
