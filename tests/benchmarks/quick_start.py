"""Where the quick start spends its time: phases, seconds, the share of timing, and the forecast beside them.

    python tests/benchmarks/quick_start.py [flags of a search; default --budget 0.5gflops]

The cache is a fresh one, so that the dense network is trained as on a new machine. Seconds of the processor are those
of the main process: trials run in others.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from typing_extensions import override

from configs.loading import parse_flags
from search.callbacks import SearchCallback
from search.environment import Plan
from search.reporting.wording import TextTable, duration, percent

PARTS = (  # beginning of a phase's text, and the part of the search it belongs to; the first that fits counts
    ("loading", "imports"),
    ("reading data", "data, trace, timed steps"),
    ("timing", "timing of networks"),
    ("building the latency model", "timing of networks"),
    ("training the dense", "dense training"),
    ("gathering statistics", "statistics"),
    ("measuring sensitivities", "sensitivities"),
    ("trial", "trials and final training"),
    ("searching", "trials and final training"),
    ("confirming", "test images"),
    ("writing", "export and report"),
)
TIMING = "timing of networks"


class Phases(SearchCallback):
    """Adds up the seconds of every part of a search."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # of the clock, of the processor
        self.foreseen: float | None = None
        self._part, self._since = "imports", self._now()

    @override
    def on_phase(self, text: str) -> None:
        now = self._now()
        for index in (0, 1):
            self.seconds[self._part][index] += now[index] - self._since[index]
        self._part = next((part for beginning, part in PARTS if text.startswith(beginning)), self._part)
        self._since = now

    @override
    def on_search_start(self, plan: Plan) -> None:
        self.foreseen = plan.seconds

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def main(flags: list[str]) -> None:
    phases, begin = Phases(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLIMFRONT_CACHE"] = str(Path(folder) / "cache")
        config = parse_flags([*(flags or ["--budget", "0.5gflops"]), "--out", str(Path(folder) / "run")])
        from search.orchestrator import run

        run(config, [phases])
    phases.on_phase("done")
    whole = time.perf_counter() - begin
    rows = [
        (part, f"{clock:.1f}", f"{cpu:.1f}", percent(clock / whole, 1)) for part, (clock, cpu) in phases.seconds.items()
    ]
    rows.append(("whole run", f"{whole:.1f}", f"{time.process_time():.1f}", "100.0%"))
    console = Console(width=80, highlight=False)
    console.print(TextTable("Quick start", ("part", ">seconds", ">of processor", ">share"), rows))
    console.print(f"Timing of networks: {percent(phases.seconds[TIMING][0] / whole, 1)} of the run.")
    if phases.foreseen is not None:
        console.print(
            f"Foreseen {duration(phases.foreseen)}, took {duration(whole)}: {phases.foreseen / whole:.2f} times."
        )


if __name__ == "__main__":
    main(sys.argv[1:])
