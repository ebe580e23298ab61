"""A board that is slow, dies in the middle of a search, and comes back."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_board import running_board

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


SAID = "the search goes on with predicted latencies"


@contextlib.contextmanager
def loaded(pin: list[str]) -> Iterator[None]:
    """Load the core of the board inside the block."""
    process = subprocess.Popen([*pin, sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX or shutil.which("taskset") is None, reason="the extra [onnx], and taskset")
def test_a_slow_board_that_dies_in_the_middle_serves_a_whole_search(tmp_path: Path) -> None:
    token, run = tmp_path / "token", tmp_path / "run"
    token.write_text("secret\n")
    pin = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    flags = ["--token-file", str(token)]
    command = [sys.executable, "-W", "ignore", "-m", "search", "--model", "lenet5", "--data", "digits", "--seed", "0"]
    command += ["--budget", "50%latency", "--objective", "accuracy,latency", "--trials", "4", "--epochs", "1"]
    command += ["--dense-epochs", "2", "--runner", "local", "--latency-token-file", str(token), "--out", str(run)]
    lines = list[str]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(loaded(pin))
        address, board = stack.enter_context(running_board(tmp_path / "board", *flags, before=pin))
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        search = stack.enter_context(subprocess.Popen([*command, "--latency-device", address], **pipe))
        for line in search.stdout:
            lines.append(line)
            if " 2/4 trial" in line:
                board.kill()
            if SAID in line:
                break
        port = int(address.rpartition(":")[2])
        stack.enter_context(running_board(tmp_path / "board", *flags, port=port, before=pin))
        lines += search.stdout
    assert search.returncode == 0, "".join(lines)
    assert any(SAID in line for line in lines)
    result = json.loads((run / "result.json").read_text())
    assert len(result["results"]) >= 4
    measured = [trial["latency"][0] for trial in result["results"] if trial["latency"]]
    assert len(measured) >= 3
    assert all(not reading["refused"] and reading["details"]["agent"] == address for reading in measured)
    assert list((run / "front").iterdir())
