"""What does a search of thousands of trials cost beside its training? python tests/benchmarks/search_size.py

A search over the groups of ResNet-50 with made-up accuracies, so that the driver alone works: it is told the result of
a worker and gives it the next trial, as often as there are trials. In virtual time every trial, or training segment of
one, takes `--seconds` on its worker, and ask and tell take their CPU time, one after the other; so the share of the
time in which workers are busy follows. The tables show, over the trials before each of a few numbers, the CPU time of
ask and tell together and that of the storage, that share, and the memory of the process; then what it costs to resume
the finished search, and to write and read its report. `--mlflow` records the trials in an MLflow store, too.
"""

import argparse
import contextlib
import dataclasses
import heapq
import io
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "studies"), str(TESTS.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

from harness import print_table  # noqa: E402
from made_up_search import MadeUpSearch, problem_of, result_of, search_of  # noqa: E402
from optuna.samplers import RandomSampler  # noqa: E402
from optuna.trial import FrozenTrial  # noqa: E402
from traced_zoo import zoo_space  # noqa: E402

from configs.passwords import masked_settings  # noqa: E402
from runners.trial import EpochReport, Trial, TrialResult  # noqa: E402
from search.problem import Problem  # noqa: E402
from search.reporting.page.report import write_html  # noqa: E402
from search.reporting.picture import write_png  # noqa: E402
from search.reporting.summary import summary  # noqa: E402
from search.reporting.wording import make_console, print_parts  # noqa: E402
from search.results.loading import RESULT, read_result  # noqa: E402
from search.results.result import DenseResult, SearchResult  # noqa: E402
from search.storage.study_storage import STUDY_FILE, StudyStorage  # noqa: E402
from search.tracking.journal import Heading  # noqa: E402
from search.tracking.recorder import Recorder  # noqa: E402
from search.tracking.runs import SearchRuns  # noqa: E402
from search.tracking.store import SQLITE, STORE_FILE  # noqa: E402
from spaces.space import SearchSpace, describe  # noqa: E402

MARKS = (50, 400, 1000, 3000, 5000, 10_000)  # trials
WINDOW = 40  # trials before a mark, over which times are averaged


class TimedStorage:
    """A storage whose CPU time is measured apart.

    Attributes:
        spent: CPU seconds so far.
    """

    def __init__(self, storage: StudyStorage | None) -> None:
        self._storage, self.spent = storage, 0.0

    def add(self, trial: FrozenTrial) -> None:
        began = time.process_time()
        if self._storage is not None:
            self._storage.add(trial)
        self.spent += time.process_time() - began


class Workers:
    """Workers in virtual time, each of which trains one trial after the other for the same time.

    Args:
        seconds: of one trial, or training segment.
    """

    def __init__(self, search: MadeUpSearch, space: SearchSpace, count: int, seconds: float) -> None:
        self._search, self._space, self._seconds = search, space, seconds
        self.storage = TimedStorage(search.storage)
        search.tuner.storage = cast(StudyStorage, self.storage)
        self._noise = random.Random(0)
        self._free = [0.0] * count  # times at which idle workers became idle
        self._running: list[tuple[float, int, Trial]] = []
        self.driver = 0.0  # virtual time at which the driver is free
        self.spent = 0.0  # CPU seconds of ask and tell, without those of the storage
        self.given = 0
        self.waited = 0.0  # seconds of all workers together

    def step(self) -> bool:
        """Give a trial to an idle worker, or take the next result; return whether there was either."""
        trial = self._timed(self._search.ask) if self._free else None
        if trial is not None:
            idle = self._free.pop(0)
            self.waited += self.driver - idle
            self.given += 1
            heapq.heappush(self._running, (self.driver + self._seconds, self.given, trial))
            return True
        if not self._running:
            return False
        ends, _, trial = heapq.heappop(self._running)
        self.driver = max(self.driver, ends)
        self._timed(lambda: self._search.tell(self._result(trial)))
        self._free.append(ends)
        return True

    def _timed(self, call: Callable[[], Any]) -> Any:
        began, stored = time.process_time(), self.storage.spent
        found = call()
        seconds = time.process_time() - began
        self.spent += seconds - (self.storage.spent - stored)
        self.driver += seconds
        return found

    def _result(self, trial: Trial) -> TrialResult:
        cost = self._space.cost(trial.goal.widths or self._space.smallest)
        share, size = cost.flops / self._space.dense_cost.flops, cost.params / self._space.dense_cost.params
        accuracy = min(0.999, max(0.001, 0.9 * share**0.2 * size**0.1 + self._noise.gauss(0, 0.005)))
        first, last = (trial.segment.trained, trial.segment.end) if trial.segment else (0, 1)
        curve = tuple(
            EpochReport(trial.number, epoch, accuracy * (1 - 0.5 ** (epoch + 1)), self._seconds)
            for epoch in range(first + 1, last + 1)
        )
        return result_of(trial, self._space, accuracy=curve[-1].accuracy, curve=curve)


def run(search: MadeUpSearch, workers: Workers, seconds: float, trials: int, fast_to: int) -> list[list[str]]:
    """Run a search until it has so many results; return a row for every mark."""
    rows: list[list[str]] = []
    before = (0, 0.0, 0.0, 0.0)  # segments given, CPU seconds twice, seconds that workers waited
    searcher = search.searcher
    marks = [mark for mark in MARKS if fast_to < mark < trials] + [trials]
    sampler = searcher._sampler
    while marks:
        searcher._sampler = sampler if len(search.results) >= fast_to else RandomSampler(seed=workers.given)
        if not workers.step():
            break
        done, now = len(search.results), (workers.given, workers.spent, workers.storage.spent, workers.waited)
        if done < marks[0] - WINDOW:
            before = now
        if done < marks[0]:
            continue
        given, spent, stored, waited = (after - earlier for after, earlier in zip(now, before, strict=True))
        busy = given * seconds / (given * seconds + waited)
        cells = [f"{1000 * spent / given:.1f}", f"{1000 * stored / given:.1f}", f"{100 * busy:.1f}%"]
        rows.append([f"{marks.pop(0):,}", *cells, f"{megabytes():.0f}"])
        print("  ".join(rows[-1]), flush=True)
    return rows


def megabytes() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@contextlib.contextmanager
def timed(rows: list[list[str]], name: str) -> Iterator[None]:
    """Add a row with the CPU time and the time of what is done meanwhile."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    rows.append([name, f"{time.process_time() - cpu:.1f}", f"{time.perf_counter() - wall:.1f}"])
    print("  ".join(rows[-1]), flush=True)


def record(result: SearchResult, problem: Problem, folder: Path) -> SearchRuns:
    """Record a search in an MLflow store of the folder, as its tracker does, and return its runs."""
    heading = Heading("slimfront", "made-up search", int(1000 * time.time()))
    runs = SearchRuns.open(f"{SQLITE}{(folder / STORE_FILE).resolve()}", folder, heading, local=True)
    recorder = Recorder(problem.config, heading.name, result.score_name)
    runs.send(recorder.dense(result.dense.val_accuracy, problem, None))
    for trial in result.results:
        runs.send(recorder.trial(trial, problem, time.time()))
    for part in (*recorder.front(result), recorder.end("FINISHED")):
        runs.send(part)
    return runs


def after_the_search(search: MadeUpSearch, problem: Problem, folder: Path, in_mlflow: bool) -> list[list[str]]:
    """Resume a finished search, write and read its report, and record it; return a row for each of these."""
    rows: list[list[str]] = []
    url = f"sqlite:///{folder / STUDY_FILE}"
    with timed(rows, "resume, until the next trial is known"):
        longer = dataclasses.replace(problem, config=dataclasses.replace(problem.config, trials=search.tuner.total + 1))
        search_of(longer, url=url).ask()
    result = SearchResult(
        config=masked_settings(dataclasses.asdict(problem.config)),
        budgets=problem.budgets,
        dense=DenseResult(0.9, 0.9, problem.space.dense_cost),
        results=search.results,
        space={"groups": describe(problem.space.variable), "input_shape": [3, 224, 224]},
        val_images=1000,
        paths={"result": RESULT, "report": "report.html"},
    )
    with timed(rows, f"write {RESULT}"):
        (folder / RESULT).write_bytes(result.to_json().encode())
    with timed(rows, "write report.html"):
        write_html(result, folder / "report.html")
    with timed(rows, "write front.png"):
        write_png(result, folder / "front.png")
    with timed(rows, f"read {RESULT} and print `show`"):
        print_parts(make_console(io.StringIO()), summary(read_result(folder), folder, ""))
    if in_mlflow:
        with timed(rows, "record in MLflow"):
            runs = record(result, problem, folder)
        print(runs.command(f"{SQLITE}{(folder / STORE_FILE).resolve()}"))
    for name in (STUDY_FILE, RESULT, "report.html", *([STORE_FILE] if in_mlflow else [])):
        rows.append([f"size of {name}, MB", "", f"{(folder / name).stat().st_size / 1e6:.1f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a trial, or of a training segment")
    parser.add_argument("--rungs", default="", help="epochs, such as 1,2,4; none trains every trial at once")
    parser.add_argument("--methods", default="l2")
    parser.add_argument("--fast-to", type=int, default=0, help="so many trials are drawn by chance, which is faster")
    parser.add_argument("--in-memory", action="store_true", help="store nothing, and measure nothing after the search")
    parser.add_argument("--mlflow", action="store_true", help="record the trials in an MLflow store of the folder, too")
    parser.add_argument("--folder", type=Path, help="where the files stay; none takes a temporary one")
    chosen = parser.parse_args()
    space = zoo_space("resnet50", 224)
    rungs = tuple(int(epochs) for epochs in chosen.rungs.split(",") if epochs)
    trials = chosen.trials + chosen.workers  # so that none is idle when the last result comes
    problem = problem_of(space, ["50%"], chosen.methods.split(","), trials=trials, rungs=rungs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        url = "" if chosen.in_memory else f"sqlite:///{folder / STUDY_FILE}"
        search = search_of(problem, url=url, workers=chosen.workers)
        workers = Workers(search, space, chosen.workers, chosen.seconds)
        rows = run(search, workers, chosen.seconds, chosen.trials, chosen.fast_to)
        title = f"{len(space.variable)} groups, {chosen.workers} workers, {chosen.seconds:g} s a segment"
        heads = ["trials", "ask + tell, CPU ms", "store, CPU ms", "workers busy", "memory, MB"]
        print_table(title, heads, rows)
        if not chosen.in_memory:
            rows = after_the_search(search, problem, folder, chosen.mlflow)
            print_table(f"{chosen.trials:,} trials", ["after the search", "CPU s", "s"], rows)


if __name__ == "__main__":
    main()
