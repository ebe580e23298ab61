"""A board: the agent in its own process and folder, without torch."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from runners.latency import agent as agent_file

SOURCE = Path(agent_file.__file__)


@contextlib.contextmanager
def running_board(
    folder: Path, *flags: str, port: int = 0, before: Sequence[str] = ()
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Start a copy of the agent in a folder of its own, and give its address and its process.

    Args:
        before: words in front of the command, such as taskset.
    """
    folder.mkdir(exist_ok=True)
    copy = folder / "agent.py"
    copy.write_text(SOURCE.read_text())
    # A torch that cannot be imported stands for a board without it.
    (folder / "torch.py").write_text("raise ImportError('no torch on this board')")
    command = [*before, sys.executable, str(copy), "--port", str(port), *flags]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process
        finally:
            process.kill()
