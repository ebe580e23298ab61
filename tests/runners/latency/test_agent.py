"""The agent for boards, in its own process and folder without torch, and what is said of agents that answer badly."""

import ast
import contextlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from made_up_board import SOURCE, running_board
from torch import nn

from pruning.formats import write_network
from runners.config import LatencyConfig
from runners.latency import agent as agent_file
from runners.latency import agent_bench
from runners.latency.agent_bench import AgentsBench
from runners.latency.engines import LatencyError
from runners.latency.external import AwayError, BenchError, ExternalMeter
from runners.latency.sharing import shared_out

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra [onnx]")
SHAPE = (3, 8, 8)


def test_the_agent_is_python_39_and_imports_nothing_but_numpy_and_onnxruntime() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def config(*addresses: str, **settings: object) -> LatencyConfig:
    return LatencyConfig(",".join(addresses), **settings)  # type: ignore[arg-type]


def files(folder: Path) -> tuple[Path, Path]:
    narrow, wide = (nn.Sequential(nn.Conv2d(3, channels, 3)) for channels in (8, 256))
    return (
        write_network(narrow, "onnx", folder / "narrow.onnx", SHAPE, batch=1),
        write_network(wide, "onnx", folder / "wide.onnx", SHAPE, batch=1),
    )


@needs_onnx
def test_the_agent_measures_in_turn_and_outlives_a_network_that_crashes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    narrow, wide = files(tmp_path)
    with running_board(tmp_path / "board", "--token-file", str(token)) as (address, process):
        bench = AgentsBench(config(address, token_file=str(token)))
        bench.check()
        found = bench.compare(narrow, wide, 1, 5)
        assert len(found.rounds) == 5
        assert all(0 < own < beside for own, beside in found.rounds)
        assert len(found.details["rounds"]) == 5
        assert found.details["agent"] == address
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"no network")
        with pytest.raises(BenchError, match=r"answered HTTP 422: the runtime ended with an error: .*INVALID_PROTOBUF"):
            bench.compare(broken, wide, 1, 5)
        assert len(bench.compare(wide, wide, 1, 2).rounds) == 2
        with pytest.raises(BenchError, match="refuses the token; give --latency-token-file"):
            AgentsBench(config(address)).check()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert [path.name for path in (tmp_path / "board").iterdir() if path.is_dir()] == []
        with pytest.raises(AwayError, match=r"does not answer \(.*refused\)"):
            bench.compare(narrow, wide, 1, 5)
    port = int(address.rpartition(":")[2])
    with running_board(tmp_path / "board", "--token-file", str(token), port=port):  # back, without the files
        timed = ExternalMeter(config(address), nn.Conv2d(3, 4, 1), SHAPE, bench, pause=lambda seconds: None)
        assert timed.read("dense", timed.dense)[0].ratio == 1.0


def test_an_agent_that_others_can_reach_needs_a_token(tmp_path: Path) -> None:
    assert agent_file.read_token("127.0.0.1", None) == ""
    with pytest.raises(SystemExit, match=r"--host 0.0.0.0 can be reached by others; give --token-file"):
        agent_file.read_token("0.0.0.0", None)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SystemExit, match="holds no token"):
        agent_file.read_token("0.0.0.0", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"network": "../../etc/passwd", "dense": "0" * 64}, 400),
        ({"network": "0" * 64, "dense": "0" * 64}, 404),
        ({"network": 3, "dense": "0" * 64}, 400),
    ],
)
def test_models_are_named_by_digests_alone(request_: dict[str, object], status: int, tmp_path: Path) -> None:
    with pytest.raises(agent_file.Refused) as refused:
        agent_file.Agent(tmp_path, "", 1).measure({**request_, "rounds": 5, "timeout": 1})
    assert refused.value.status == status


def test_a_file_must_have_its_digest_and_old_ones_go(tmp_path: Path) -> None:
    board = agent_file.Agent(tmp_path, "", 1)
    with pytest.raises(agent_file.Refused, match="does not have the digest"):
        board.store("0" * 64, b"other")
    for number in range(agent_file.KEPT_MODELS + 2):
        content = bytes([number])
        digest = agent_file.hashlib.sha256(content).hexdigest()
        board.store(digest, content)
        os.utime(tmp_path / digest, (number, number))
    assert sorted(path.read_bytes()[0] for path in tmp_path.iterdir()) == [2, 3, 4, 5]


class _Answers(BaseHTTPRequestHandler):
    status, content = 200, b""

    def _give(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        measuring = self.command == "POST"
        if measuring and self.content == b"hang":
            time.sleep(1.0)
        content = self.content if measuring else b"{}"
        self.send_response(self.status if measuring else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = _give  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def fake() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, b"hello", "answered 'hello', which is no JSON object; is it an agent"),
        (200, b"", "answered '', which is no JSON object"),
        (200, b"[1]", "which is no JSON object"),
        (200, b'{"rounds": []}', r"answered \[\] for rounds; expected pairs"),
        (200, b'{"rounds": [[1, NaN]]}', "gave nan milliseconds"),
        (200, b'{"rounds": [[1, -2]]}', "gave -2 milliseconds"),
        (200, b'{"rounds": [[0, 2]]}', "gave 0 milliseconds"),
        (200, b'{"rounds": [["a", 2]]}', "gave a for milliseconds"),
        (200, b'{"rounds": [[1, 2]], "mj": 0}', "gave 0 millijoules"),
        (200, b" " * 10**7, "answered with over 4,194,304 bytes"),
        (500, b'{"error": "no memory"}', "answered HTTP 500: no memory"),
        (502, b"<html>gateway", "answered HTTP 502: <html>gateway"),
    ],
)
def test_bad_answers_are_named_in_one_line(
    fake: str, status: int, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    monkeypatch.setattr(_Answers, "content", content)
    model = tmp_path / "model"
    model.write_bytes(b"any")
    with pytest.raises(BenchError, match=message) as error:
        AgentsBench(config(fake)).compare(model, model, 1, 5)
    assert "\n" not in str(error.value)


def test_an_agent_that_hangs_costs_one_reading_and_is_not_away(
    fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "content", b"hang")
    monkeypatch.setattr(agent_bench, "GRACE_SECONDS", 0.1)
    model = tmp_path / "model"
    model.write_bytes(b"any")
    with pytest.raises(BenchError, match=r"gave no answer within 0.3 s \(--latency-timeout\)") as error:
        AgentsBench(config(fake, timeout=0.2)).compare(model, model, 1, 5)
    assert not isinstance(error.value, AwayError)


def test_networks_go_to_the_next_agent_and_past_one_that_is_away(
    fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "content", json.dumps({"rounds": [[1, 2]], "mj": 5}).encode())
    model = tmp_path / "model"
    model.write_bytes(b"any")
    bench = AgentsBench(config("http://127.0.0.1:9", fake, "http://127.0.0.1:9/"))
    assert bench.places == 2
    for _ in range(3):
        found = bench.compare(model, model, 1, 1)
        assert (found.rounds, found.millijoules, found.details["agent"]) == (((0.001, 0.002),), 5.0, fake)


def test_agents_of_one_kind_measure_at_once(fake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    class Waiting(_Answers):
        content = b'{"rounds": [[1, 2]]}'

        def do_POST(self) -> None:  # noqa: N802
            both.wait(10)  # breaks unless the other agent has a network too
            self._give()

    second = HTTPServer(("127.0.0.1", 0), Waiting)
    threading.Thread(target=second.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(_Answers, "content", Waiting.content)
    monkeypatch.setattr(_Answers, "do_POST", Waiting.do_POST)
    model = tmp_path / "model"
    model.write_bytes(b"any")
    bench = AgentsBench(config(fake, f"http://127.0.0.1:{second.server_address[1]}"))
    measured = shared_out(lambda _: bench.compare(model, model, 1, 1).details["agent"], iter(range(6)), bench.places)
    assert Counter(address for _, address in measured) == dict.fromkeys(bench.name.split(", "), 3)
    second.shutdown()
    second.server_close()


def test_a_token_that_cannot_be_read_is_named() -> None:
    with pytest.raises(LatencyError, match="--latency-token-file 'no/such' cannot be read: No such file"):
        AgentsBench(config("http://127.0.0.1:9", token_file="no/such"))
