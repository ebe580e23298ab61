"""Searches whose processes and servers are killed at random moments; prints what became of them.

    python tests/faults/kills.py --kills 200 [--folder FOLDER] [--seed 0]
    python tests/faults/kills.py --table     # the table of what is done

Each case is one small search with several kills (SIGKILL) of the driver, the process that drives Ray, Ray's workers,
one of two further Ray nodes, the MLflow server or PostgreSQL. What a kill has ended is gone on with by `--resume`.
At the end the case is checked by `outcome`. Cases are rows of FOLDER/kills.jsonl: those that are there
are not run again. Several may run at once, with different seeds, on one folder.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "faults")]

from mlflow_server import MlflowServer  # noqa: E402
from outcome import Record, check, study_records  # noqa: E402
from postgres import Postgres, missing  # noqa: E402
from processes import MARK, ForkedSearch, import_everything, left_behind, workers_below  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402

ATTEMPTS = 20  # times that a search is begun or resumed at most
CASE_SECONDS = 1200.0
APPEARS = 60.0  # seconds in which the victim of a kill is waited for
NODES = 2
BASE = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu"
VICTIMS = {  # by runner: victim -> how often
    "local": {"driver": 1},
    "ray": {"driver": 2, "ray driver": 2, "worker": 6},
    "cluster": {"driver": 2, "ray driver": 2, "worker": 7, "node": 3, "mlflow": 2, "postgres": 4},
}
PHASES = {  # words of a line -> phase that begins with it
    "reading data": "start",
    "timing the dense": "latency",
    "training the dense": "dense network",
    "gathering": "statistics",
    "searching with": "trials",
    "is cut from": "final training",
    "confirming": "test images",
    "timing": "latency",
    "exporting": "export",
    "writing the front": "export",
    "Written to": "end",
}


@dataclasses.dataclass(frozen=True)
class Kill:
    """What is killed, so many printed lines after the kill before, and so many seconds later."""

    victim: str
    lines: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One search and what is killed during it."""

    seed: int
    number: int
    runner: str
    trials: int
    flags: Mapping[str, str]
    kills: tuple[Kill, ...]

    @classmethod
    def drawn(cls, number: int, seed: int) -> "Case":
        """Draw a case; the same for the same number and seed."""
        chance = random.Random(f"{seed} {number}")
        runner = ("cluster", "local", "cluster", "local", "ray")[number % 5]
        rungs = chance.choice(["none", "1,2,4"])
        trials = 8 if rungs != "none" else chance.choice([5, 6, 7])
        flags = {
            "sampler": chance.choice(["structured", "tpe", "nsga2", "gp", "random"]),
            "rungs": rungs,
            "epochs": "4" if rungs != "none" else "1",
            "method": chance.choice(["l2,random", "di,l2", "di,csgd"]),
            "final-epochs": chance.choice(["none", "2"]),
            "screen": chance.choice(["none", "4"]),
            "budget": chance.choice(["50%", "50%", "50%,95%latency"]),
            "targets": chance.choice(["", "", "", "50%,25%"]),
            "export": chance.choice(["", "", "", "onnx"]),
            "latency-device": chance.choice(["none", "none", "cpu:1thread"]),
            "seed": str(number),
        }
        if flags["targets"]:
            trials, flags["budget"] = trials + 3, flags["budget"].replace("50%,", "").replace("50%", "")
        if "latency" in flags["budget"]:
            flags["latency-device"] = "cpu:1thread"
        flags = {name: value for name, value in flags.items() if value}
        count = chance.choice([8, 10, 12])
        victims = chance.choices(*zip(*VICTIMS[runner].items(), strict=True), k=count)
        gap = 2 * ((14 + trials) // count + (6 if runner == "local" else 1))  # after a driver's kill it begins anew
        kills = tuple(Kill(victim, chance.randint(0, gap), chance.uniform(0.0, 1.5)) for victim in victims)
        return cls(seed, number, runner, trials, flags, kills)

    def arguments(self, folder: Path, servers: "Servers") -> list[str]:
        """Return the command line of the search."""
        flags = dict(self.flags) | {"trials": str(self.trials), "out": str(folder), "log-models": "none"}
        flags |= {"runner": "local"} if self.runner == "local" else {"runner": "ray", "max-retries": "20"}
        if self.runner == "cluster":
            flags["ray-address"] = "" if servers.nodes is None else servers.nodes.address
            flags |= {} if servers.postgres is None else {"storage": servers.postgres.url}
            flags |= {} if servers.mlflow is None else {"tracking-uri": servers.mlflow.url}
        return [*BASE.split(), *(f"--{name}={value}" for name, value in flags.items())]


SHORT = Case(
    0,
    0,
    "cluster",
    trials=5,
    flags={"budget": "50%", "method": "l2,random", "final-epochs": "none", "latency-device": "none"},
    kills=(Kill("worker", 3, 0.2), Kill("node", 1, 0.1), Kill("driver", 1, 0.1), Kill("worker", 3, 0.2)),
)
SHORT_WITH_POSTGRES = dataclasses.replace(SHORT, kills=(*SHORT.kills, Kill("postgres", 0, 0.2), Kill("worker", 1, 0.0)))


@dataclasses.dataclass
class Servers:
    """The Ray nodes, the MLflow server and PostgreSQL that cases share; those that were killed come back."""

    nodes: RayNodes | None
    mlflow: MlflowServer | None
    postgres: Postgres | None
    returns: list[tuple[float, Callable[[], None]]] = dataclasses.field(default_factory=list)

    def kill(self, name: str, seconds: float) -> None:
        """Kill one of them, and have it come back so many seconds later."""
        back: Callable[[], None]
        if name == "node":
            assert self.nodes is not None
            self.nodes.kill(int(1000 * seconds) % len(self.nodes.raylets))
            back = self.nodes.add
        else:
            server = {"mlflow": self.mlflow, "postgres": self.postgres}[name]
            assert server is not None
            server.kill()
            back = server.start
        self.returns.append((time.monotonic() + seconds, back))

    def tick(self) -> None:
        """Bring back what is due."""
        due = [entry for entry in self.returns if entry[0] <= time.monotonic()]
        for entry in due:
            self.returns.remove(entry)
            entry[1]()
        if self.nodes is not None:
            away = [back for _, back in self.returns if back == self.nodes.add]
            if len(self.nodes.raylets) + len(away) < NODES:  # on a busy machine one goes by itself
                self.nodes.add()

    def settle(self) -> None:
        """Bring everything back."""
        for _, back in self.returns:
            back()
        self.returns.clear()
        while self.nodes is not None and len(self.nodes.raylets) < NODES:
            self.nodes.add()
        if self.mlflow is not None:
            self.mlflow.wait()

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, names: Collection[str]) -> "Iterator[Servers]":
        """Start those of these names in a folder; PostgreSQL where it is installed."""
        with contextlib.ExitStack() as stack:
            if "nodes" not in names:
                yield cls(None, None, None)
                return
            nodes = RayNodes(folder, NODES)
            stack.callback(nodes.close)
            postgres = mlflow = None
            if not missing():
                postgres = Postgres()
                stack.callback(postgres.close)
            if "mlflow" in names:
                mlflow = MlflowServer(folder)
                stack.callback(mlflow.kill)
            yield cls(nodes, mlflow, postgres)


class Run:
    """The search of a case, from its first process to the last."""

    def __init__(self, case: Case, folder: Path, servers: Servers) -> None:
        self.case, self.servers, self.place = case, servers, folder
        self.folder, self.log = folder / f"case-{case.number}", folder / f"case-{case.number}.log"
        self.cache = folder / f"cache-{case.number}"
        self.seen: list[Record] = []
        self.rows: list[dict[str, Any]] = []
        self.codes: list[int] = []
        self.sessions: list[int] = []
        self.wrong: list[str] = []

    def __call__(self) -> dict[str, Any]:
        """Search, kill and resume; return the row of the case."""
        try:
            return self._row()
        finally:
            left_behind(self.mark, self.sessions, 0.0)

    def keep(self, folder: Path) -> None:
        """Keep what is left in a folder, for a reader."""
        folder.mkdir(exist_ok=True)
        shutil.copyfile(self.log, folder / "log")
        if self.folder.is_dir():
            shutil.copytree(self.folder, folder / "run", dirs_exist_ok=True)

    def _row(self) -> dict[str, Any]:
        began, kills = time.monotonic(), list(self.case.kills)
        while len(self.codes) < ATTEMPTS and time.monotonic() < began + CASE_SECONDS:
            search = self._start()
            code = self._watch(search, kills, began + CASE_SECONDS)
            self.codes.append(code)
            if code == 0:
                break
            if code not in (-9, 2, 3, 4) or "Traceback" in search.text():
                self.wrong.append(f"ended with {code}: {' '.join(search.text().split())[-300:]}")
            if code != -9:
                self._after_error(search)
        self.servers.settle()
        if self.codes[-1] != 0:
            self.wrong.append(f"never ended with a result; {' '.join(self.log.read_text().split())[-300:]}")
        else:
            self.wrong += self._checked()
        if names := left_behind(self.mark, self.sessions, 30.0):
            self.wrong.append(f"left behind: {names}")
        config = {**self.case.flags, "runner": self.case.runner, "trials": self.case.trials}
        row = {
            "seed": self.case.seed,
            "case": self.case.number,
            "config": config,
            "kills": self.rows,
            "codes": self.codes,
        }
        return {**row, "wrong": list(dict.fromkeys(self.wrong)), "seconds": round(time.monotonic() - began, 1)}

    @property
    def mark(self) -> str:
        return str(self.folder)

    @property
    def _study(self) -> tuple[str, str]:
        if self.case.runner == "cluster" and self.servers.postgres is not None:
            return self.servers.postgres.url, self.folder.name
        return str(self.folder / "study.db"), "slimfront"

    def _start(self) -> ForkedSearch:
        arguments = self.case.arguments(self.folder, self.servers)
        if (self.folder / "config.yaml").is_file():
            arguments = ["--resume", str(self.folder), "--trust-code"]
        environment = {
            MARK: self.mark,
            "SLIMFRONT_CACHE": str(self.cache),
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        }
        search = ForkedSearch(arguments, self.log, environment, self.place)
        self.sessions.append(search.pid)
        return search

    def _watch(self, search: ForkedSearch, kills: list[Kill], deadline: float) -> int:
        """Kill what is due until the search has ended; return its exit code."""
        lines_before = 0
        while (code := search.poll()) is None:
            self.servers.tick()
            lines = [line for line in search.text().splitlines() if line.startswith("[")]
            if kills and len(lines) - lines_before >= kills[0].lines:
                kill = kills.pop(0)
                time.sleep(kill.seconds)
                self._kill(search, kill)
                lines_before = len([line for line in search.text().splitlines() if line.startswith("[")])
            if time.monotonic() > deadline:
                self.wrong.append("hangs")
                search.kill()
            time.sleep(0.05)
        return code

    def _kill(self, search: ForkedSearch, kill: Kill) -> None:
        deadline, killed = time.monotonic() + APPEARS, False
        while not killed and search.poll() is None and time.monotonic() < deadline:
            killed = self._killed(search, kill)
            time.sleep(0.02)
        if not killed:
            return
        if kill.victim == "driver":
            while search.poll() is None:
                time.sleep(0.01)
        phase = "start"
        for line in search.text().splitlines():
            phase = next((name for words, name in PHASES.items() if words in line), phase)
        self.rows.append({"victim": kill.victim, "phase": phase, "finished": len(self.seen)})
        with contextlib.suppress(Exception):  # no study yet, or its server is away
            self.seen += study_records(*self._study)

    def _killed(self, search: ForkedSearch, kill: Kill) -> bool:
        """Kill the victim; return whether there was one."""
        if kill.victim in ("mlflow", "postgres", "node"):
            if kill.victim == "node" and not (self.servers.nodes and self.servers.nodes.raylets):
                return False
            self.servers.kill(kill.victim, 3.0 * kill.seconds)
            return True
        raylets = self.servers.nodes.raylets if self.servers.nodes and self.case.runner == "cluster" else []
        workers = workers_below(raylets) if raylets else search.workers() if self.case.runner == "ray" else []
        found = {"driver": [search.pid], "worker": workers, "ray driver": [search.driver_of_ray()]}[kill.victim]
        with contextlib.suppress(ProcessLookupError):
            present = [pid for pid in found if pid is not None]
            if present:
                os.kill(present[int(1000 * kill.seconds) % len(present)], 9)
                return True
        return False

    def _after_error(self, search: ForkedSearch) -> None:
        """See that the search has ended with one line that says what happened."""
        errors = [line for line in search.text().splitlines() if line.startswith("error: ")]
        if len(errors) != 1:
            self.wrong.append(f"ended with {self.codes[-1]} and {len(errors)} lines of error")
        self.rows.append({"ended": self.codes[-1], "error": errors[0][:200] if errors else ""})
        self.servers.settle()

    def _checked(self) -> list[str]:
        """Check what is left, in a process of its own."""
        reader, writer = os.pipe()
        if not os.fork():
            try:
                server = self.servers.mlflow if self.case.runner == "cluster" else None
                store = self.folder / "mlflow.db" if server is None else server.store
                formats = ["model.safetensors", "model.pt2", "metrics.json"]
                formats += ["model.onnx"] if "export" in self.case.flags else []
                sys.path.insert(0, str(TESTS))
                log = self.log.read_text()
                wrong = check(self.folder, self.case.trials, self._study, store, self.seen, log, formats)
            except Exception as error:
                wrong = [f"the check found {type(error).__name__}: {error}"]
            os.write(writer, json.dumps(wrong).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            wrong = json.loads(pipe.read() or b'["the check died"]')
        os.wait()
        return list(wrong)


def study(folder: Path, kills: int, seed: int, numbers: Sequence[int] = ()) -> None:
    """Run cases until so many kills were made, those of earlier runs included; or these cases again."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "kills.jsonl"
    alone = numbers and all(Case.drawn(number, seed).runner != "cluster" for number in numbers)
    with prepared([] if alone else ["nodes", "mlflow"]) as (place, servers):
        for number in numbers or _missing(rows, kills, seed):
            run = Run(Case.drawn(number, seed), place, servers)
            row = run()
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            if row["wrong"]:
                run.keep(folder / f"seed-{seed}-case-{number}")
            shutil.rmtree(run.folder, ignore_errors=True)
            shutil.rmtree(run.cache, ignore_errors=True)


@contextlib.contextmanager
def prepared(names: Collection[str] = ("nodes", "mlflow")) -> Iterator[tuple[Path, Servers]]:
    """Start the servers in a temporary folder, and import what searches import."""
    with tempfile.TemporaryDirectory(prefix="slimfront-kills-") as temporary:
        place = Path(temporary)
        with Servers.started(place, names) as servers:
            if servers.nodes is not None:
                os.environ.update(servers.nodes.environment)  # Ray reads these when it is imported
            import_everything()
            from search.tracking import store

            empty = place / "empty.db"
            store.create_store(empty)
            # MLflow takes seconds to make a store; whole or not at all, as the real one.
            store.create_store = lambda file: os.replace(shutil.copyfile(empty, file.with_suffix(".new")), file)
            yield place, servers


def _missing(rows: Path, kills: int, seed: int) -> Iterator[int]:
    """Yield the numbers of cases that are to be run until there are enough kills."""
    number = 0
    while True:
        done = read(rows)
        if sum("victim" in kill for row in done.values() for kill in row["kills"]) >= kills:
            return
        while (seed, number) in done:
            number += 1
        yield number


def read(rows: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the rows by seed and case; of several of one case the last."""
    lines = rows.read_text().splitlines() if rows.is_file() else []
    return {(row["seed"], row["case"]): row for row in map(json.loads, lines)}


def table(rows: Path) -> str:
    """Return the kills by victim and phase, and what was wrong, as Markdown."""
    done = read(rows)
    kills = [kill | {"case": row["case"]} for row in done.values() for kill in row["kills"] if "victim" in kill]
    phases = list(dict.fromkeys(PHASES.values()))
    counts = Counter((kill["victim"], kill["phase"]) for kill in kills)
    heads = ["killed", *phases, "all"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for victim in VICTIMS["cluster"]:
        by_phase = [counts[victim, phase] for phase in phases]
        lines.append("| " + " | ".join([victim, *(str(count or "") for count in by_phase), str(sum(by_phase))]) + " |")
    wrong = [f"case {row['case']} of seed {row['seed']}: {text}" for row in done.values() for text in row["wrong"]]
    resumed = sum(len(row["codes"]) - 1 for row in done.values())
    lines += ["", f"{len(kills)} kills in {len(done)} searches, {resumed} resumes; {len(wrong)} things wrong.", *wrong]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, nargs="*", default=(), help="run these again")
    parser.add_argument("--short", action="store_true", help="run the one case of the test suite, and print its row")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and do nothing")
    read_arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers too
    if read_arguments.short:
        with prepared(["nodes"]) as (place, servers):
            case = SHORT if servers.postgres is None else SHORT_WITH_POSTGRES
            print(json.dumps(Run(case, place, servers)()), flush=True)
        return
    if not read_arguments.table:
        study(read_arguments.folder, read_arguments.kills, read_arguments.seed, read_arguments.cases)
    print(table(read_arguments.folder / "kills.jsonl"))


if __name__ == "__main__":
    main()
