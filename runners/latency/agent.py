"""An agent that measures ONNX networks on the board where it runs; this one file is all that the board needs.

    scp runners/latency/agent.py board: && ssh board python3 agent.py --port 9000 --token-file token

Needs Python 3.9, numpy and onnxruntime. `--latency-device http://board:9000 --latency-token-file token` uses it. One
network is measured at a time, in a process of its own beside the dense network, so that a network which crashes or
hangs the runtime costs one reading and not the agent.

Requests carry `Authorization: Bearer TOKEN`. `GET /` describes the agent; `PUT /models/SHA256` stores a file;
`POST /measure` with JSON {"network": SHA256, "dense": SHA256, "rounds": 6, "timeout": 60} answers with JSON
{"rounds": [[ms, ms], ...], "runs": {"network": [...], "dense": [...]}, "celsius": ..., "megahertz": ...}.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from glob import glob
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = 1
MAX_MODEL, MAX_REQUEST = 2**30, 2**16  # bytes
MAX_ROUNDS, MAX_TIMEOUT = 1000, 3600.0
KEPT_MODELS = 4
CALL_SECONDS = 0.02  # that the runs of a turn take at least
WARM_UP_SECONDS = 0.5
REQUEST_SECONDS = 60.0  # that a connection may stay silent
DIGEST = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):  # noqa: N818 - an answer, with its HTTP status
    """A request that gets no figures."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Agent:
    """Stores models in a folder and measures them, one at a time.

    Args:
        token: that requests must carry; empty asks for none.
    """

    def __init__(self, folder: Path, token: str, threads: int) -> None:
        self.folder, self.token, self.threads = folder, token, threads
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what readings of other agents must share to be compared."""
        import onnxruntime

        return {
            "agent": VERSION,
            "onnxruntime": onnxruntime.__version__,
            "processor": processor(),
            "threads": self.threads,
        }

    def store(self, digest: str, content: bytes) -> None:
        """Keep a model; of more than a few the one that was longest unused goes."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refused(400, "the file does not have the digest of its address")
        path = self.folder / digest
        partial = self.folder / f"{digest}.{threading.get_ident()}"
        partial.write_bytes(content)
        os.replace(partial, path)
        models = sorted((path for path in self.folder.iterdir() if DIGEST.fullmatch(path.name)), key=_used)
        for old in models[:-KEPT_MODELS]:
            old.unlink()

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure two stored models in turn, in a process of its own."""
        paths = [self._model(request.get(name)) for name in ("network", "dense")]
        rounds = _within(request.get("rounds"), MAX_ROUNDS, "rounds")
        seconds = _within(request.get("timeout"), MAX_TIMEOUT, "timeout")
        command = [sys.executable, os.path.abspath(__file__), "--measure", *map(str, paths)]
        command += ["--rounds", str(int(rounds)), "--threads", str(self.threads)]
        with self._turn:
            answer: dict[str, Any] = json.loads(self._run(command, seconds))
            return {**answer, **sensors()}

    def stop(self) -> None:
        """End the measurement that runs, and remove the models."""
        if self._child is not None:
            self._child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], seconds: float) -> bytes:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as self._child:
            try:
                output, errors = self._child.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self._child.kill()
                raise Refused(422, f"the network was not measured within {seconds:g} s") from None
        code = self._child.returncode
        if code:
            lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
            died = f"signal {-code}" if code < 0 else "an error"
            raise Refused(422, f"the runtime ended with {died}: {lines[-1][:300]}")
        return output

    def _model(self, digest: Any) -> Path:
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise Refused(400, "network and dense must be SHA-256 digests")
        path = self.folder / digest
        try:
            os.utime(path)
        except OSError:
            raise Refused(404, f"model {digest[:12]} is not here; store it first") from None
        return path


class Handler(BaseHTTPRequestHandler):
    """Answers requests in JSON; `agent` is set by `serve`."""

    agent: Agent
    timeout = REQUEST_SECONDS
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        """Describe the agent."""
        self._answer(lambda: self.agent.describe())

    def do_PUT(self) -> None:  # noqa: N802
        """Store a model."""
        self._answer(self._store)

    def do_POST(self) -> None:  # noqa: N802
        """Measure."""
        self._answer(self._measure)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Write one line per request."""
        sys.stderr.write(f"{self.address_string()} {format % arguments}\n")

    def _store(self) -> dict[str, Any]:
        folder, _, digest = self.path.lstrip("/").partition("/")
        if folder != "models" or not DIGEST.fullmatch(digest):
            raise Refused(404, "there is /, /models/SHA256 and /measure")
        self.agent.store(digest, self._body(MAX_MODEL))
        return {"stored": digest}

    def _measure(self) -> dict[str, Any]:
        if self.path != "/measure":
            raise Refused(404, "there is /, /models/SHA256 and /measure")
        try:
            request = json.loads(self._body(MAX_REQUEST))
        except ValueError:
            raise Refused(400, "the request is no JSON") from None
        if not isinstance(request, dict):
            raise Refused(400, "the request is no JSON object")
        return self.agent.measure(request)

    def _body(self, most: int) -> bytes:
        text = self.headers.get("Content-Length", "")
        if not text.isdigit() or int(text) > most:
            raise Refused(413, f"a body of at most {most} bytes with its length is taken")
        return self.rfile.read(int(text))

    def _answer(self, give: Any) -> None:
        status, answer = 200, dict[str, Any]()
        try:
            given = self.headers.get("Authorization", "").encode()
            if self.agent.token and not hmac.compare_digest(given, b"Bearer " + self.agent.token.encode()):
                raise Refused(401, "the token is missing or wrong")
            answer = give()
        except Refused as refused:
            status, answer = refused.status, {"error": str(refused)}
        except Exception as error:  # the agent must outlive any request
            status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
        content = json.dumps(answer).encode()
        self.close_connection = self.close_connection or status != 200  # its body may not have been read
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def take_turns(network: str, dense: str, rounds: int, threads: int) -> dict[str, Any]:
    """Time two models in turn; return milliseconds per turn and of every run."""
    paths = [network] if network == dense else [network, dense]
    calls = [_call(path, threads) for path in paths]
    counts = []
    for call in calls:
        begin, done = time.perf_counter(), 0
        while done < 3 or time.perf_counter() - begin < WARM_UP_SECONDS:
            call()
            done += 1
        counts.append(max(1, int(CALL_SECONDS * done / (time.perf_counter() - begin))))
    runs: list[list[float]] = [[] for _ in calls]
    turns: list[list[float]] = []
    for turn in range(rounds):
        found = {}
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            samples = [_milliseconds(calls[index]) for _ in range(counts[index])]
            runs[index] += samples
            found[index] = statistics.median(samples)
        turns.append([found[0], found[len(calls) - 1]])
    return {"rounds": turns, "runs": {"network": runs[0], "dense": runs[-1]}}


def _call(path: str, threads: int) -> Any:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {image.name: numpy.zeros(image.shape, numpy.float32) for image in session.get_inputs()}
    return lambda: session.run(None, feed)


def _milliseconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begin)


def sensors() -> dict[str, float]:
    """Return the highest temperature and the mean clock rate, where the system tells them."""
    celsius = [value / 1000 for value in _numbers("/sys/class/thermal/thermal_zone*/temp") if value > 0]
    rates = _numbers("/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")
    found = {"celsius": max(celsius)} if celsius else {}
    return {**found, "megahertz": statistics.mean(rates) / 1000} if rates else found


def _numbers(pattern: str) -> list[float]:
    found = []
    for path in glob(pattern):
        try:
            found.append(float(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return found


def processor() -> str:
    """Return the name of the processor."""
    names = re.findall(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return str(names[0]) if names else os.uname().machine


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _used(path: Path) -> float:
    return path.stat().st_mtime


def _within(value: Any, most: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise Refused(400, f"{name} must be a number from 1 to {most:g}")
    return value


def read_token(host: str, path: str | None) -> str:
    """Return the token of a file; without one the agent may only listen on loopback.

    Raises:
        SystemExit: no token for another address, or an empty one.
    """
    if path is None:
        if not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            raise SystemExit(f"error: --host {host} can be reached by others; give --token-file")
        return ""
    token = _text(path).strip()
    if not token:
        raise SystemExit(f"error: --token-file {path} holds no token; write one into it")
    return token


def serve(host: str, port: int, agent: Agent) -> None:
    """Answer requests until SIGTERM or Ctrl-C, which end a measurement too."""
    server = ThreadingHTTPServer((host, port), type("BoundHandler", (Handler,), {"agent": agent}))
    server.daemon_threads = True

    def stop(*_: Any) -> None:
        agent.stop()
        os._exit(0)  # at once: a request may be waiting for its measurement

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print("listening on http://{}:{}".format(*server.server_address[:2]), flush=True)  # noqa: T201
    server.serve_forever()


def main() -> None:
    """Serve, or measure two files and print the figures."""
    parser = argparse.ArgumentParser(description="Measures ONNX networks on this board.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another needs --token-file")
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free one")
    parser.add_argument("--token-file", help="file with the token that requests must carry")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime")
    parser.add_argument("--measure", nargs=2, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=6, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        network, dense = flags.measure
        print(json.dumps(take_turns(network, dense, flags.rounds, flags.threads)))  # noqa: T201
        return
    token = read_token(flags.host, flags.token_file)
    serve(flags.host, flags.port, Agent(Path(tempfile.mkdtemp(prefix="latency-agent-")), token, flags.threads))


if __name__ == "__main__":
    main()
