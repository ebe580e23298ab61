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
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "faults")]

from kill_cases import FILES, OF_TRIALS, ORDER, PHASES, TWENTY, VICTIMS, WORDS, Case, Kill  # noqa: E402
from mlflow_server import MlflowServer  # noqa: E402
from outcome import Record, check, study_records  # noqa: E402
from postgres import Postgres, missing  # noqa: E402
from processes import MARK, ForkedSearch, import_everything, left_behind, workers_below  # noqa: E402
from ray_nodes import RayNodes  # noqa: E402

ATTEMPTS = 20  # times that a search is begun or resumed at most
CASE_SECONDS = 1800.0
AWAY = 4.5  # seconds for which a server or a node is away at most
NODES = 2
BASE = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu"


@dataclasses.dataclass
class Servers:
    """The Ray nodes, the MLflow server and PostgreSQL that cases share; those that were killed come back."""

    nodes: RayNodes | None
    mlflow: MlflowServer | None
    postgres: Postgres | None
    count: int
    returns: list[tuple[float, Callable[[], None]]] = dataclasses.field(default_factory=list)

    def kill(self, name: str, seconds: float) -> bool:
        """Kill one of them and have it come back so many seconds later; return False where there is none to kill."""
        back: Callable[[], None]
        if name == "node":
            if self.nodes is None or not self.nodes.raylets:
                return False
            self.nodes.kill(int(1000 * seconds) % len(self.nodes.raylets))
            back = self.nodes.add
        else:
            server = {"mlflow": self.mlflow, "postgres": self.postgres}[name]
            if server is None or server.start in [back for _, back in self.returns]:
                return False
            server.kill()
            back = server.start
        self.returns.append((time.monotonic() + seconds, back))
        return True

    def tick(self) -> None:
        """Bring back what is due."""
        due = [entry for entry in self.returns if entry[0] <= time.monotonic()]
        for entry in due:
            self.returns.remove(entry)
            entry[1]()
        if self.nodes is not None:
            away = [back for _, back in self.returns if back == self.nodes.add]
            if len(self.nodes.raylets) + len(away) < self.count:  # on a busy machine one goes by itself
                self.nodes.add()

    def settle(self) -> None:
        """Bring everything back."""
        for _, back in self.returns:
            back()
        self.returns.clear()
        while self.nodes is not None and len(self.nodes.raylets) < self.count:
            self.nodes.add()
        if self.mlflow is not None:
            self.mlflow.wait()

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, count: int) -> "Iterator[Servers]":
        """Start so many nodes, MLflow and, where it is installed, PostgreSQL; nothing where no node is wanted."""
        with contextlib.ExitStack() as stack:
            if not count:
                yield cls(None, None, None, 0)
                return
            nodes = RayNodes(folder, count)
            stack.callback(nodes.close)
            postgres = None
            if not missing():
                postgres = Postgres()
                stack.callback(postgres.close)
            mlflow = MlflowServer(folder)
            stack.callback(mlflow.kill)
            yield cls(nodes, mlflow, postgres, count)


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
        began, present = time.monotonic(), self.case.runner != "cluster" or self.servers.postgres is not None
        kills = [kill for kill in self.case.kills if present or kill.victim != "postgres"]
        while len(self.codes) < ATTEMPTS and time.monotonic() < began + CASE_SECONDS:
            search = self._start()
            code = self._watch(search, kills, began + CASE_SECONDS)
            self.codes.append(code)
            if code == 0:
                if not kills:
                    break
                missed = kills.pop(0)
                if missed.phase != "start":  # it comes at the next one, where no trial runs
                    victim = "driver" if missed.victim in OF_TRIALS else missed.victim
                    kills.insert(0, dataclasses.replace(missed, phase="start", victim=victim))
                continue
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

    def _arguments(self) -> list[str]:
        """Return the command line of the search."""
        flags = {**self.case.flags, "trials": str(self.case.trials), "out": str(self.folder), "log-models": "none"}
        servers = self.servers
        flags |= {"runner": "local"} if self.case.runner == "local" else {"runner": "ray", "max-retries": "20"}
        if self.case.runner == "cluster":
            flags["ray-address"] = "" if servers.nodes is None else servers.nodes.address
            flags |= {} if servers.postgres is None else {"storage": servers.postgres.url}
            flags |= {} if servers.mlflow is None else {"tracking-uri": servers.mlflow.url}
        return [*BASE.split(), *(f"--{name}={value}" for name, value in flags.items())]

    def _start(self) -> ForkedSearch:
        arguments = self._arguments()
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
        reached: float | None = None  # when the search came to the phase of the next kill
        while (code := search.poll()) is None:
            self.servers.tick()
            now, phase = time.monotonic(), self._phase(search)
            if kills and ORDER.index(phase) >= ORDER.index(kills[0].phase):
                reached = reached or now
                if now >= reached + kills[0].seconds:
                    if self._killed(search, kills[0]):
                        self._note(search, kills.pop(0), phase)
                        reached = None
                    else:
                        time.sleep(0.2)  # looking for workers is work
            if now > deadline:
                self.wrong.append("hangs")
                search.kill()
            time.sleep(0.03)
        return code

    def _phase(self, search: ForkedSearch) -> str:
        """Return the phase that the search is in, by its last lines and by the files that it has written."""
        phase = "start"
        for line in search.text().splitlines():
            phase = next((name for words, name in WORDS.items() if words in line), phase)
        if phase == "export":
            for name, begun in FILES.items():
                file = self.folder / name
                phase = begun if file.is_file() and file.stat().st_mtime >= search.began else phase
        return phase

    def _note(self, search: ForkedSearch, kill: Kill, phase: str) -> None:
        """Note a kill, and what the study holds by then."""
        if kill.victim == "driver":
            while (code := search.poll()) is None:
                time.sleep(0.01)
            if code != -signal.SIGKILL:  # it had just ended by itself
                return
        self.rows.append({"victim": kill.victim, "phase": phase, "finished": len(self.seen)})
        if kill.victim != "postgres":
            with contextlib.suppress(Exception):  # no study yet, or its server is away
                self.seen += study_records(*self._study)

    def _killed(self, search: ForkedSearch, kill: Kill) -> bool:
        """Kill the victim; return whether there was one."""
        if kill.victim in ("mlflow", "postgres", "node"):
            return self.servers.kill(kill.victim, AWAY * (kill.seconds / PHASES[kill.phase]))
        raylets = self.servers.nodes.raylets if self.servers.nodes and self.case.runner == "cluster" else []
        workers = workers_below(raylets) if raylets else search.workers() if self.case.runner == "ray" else []
        found = {"driver": [search.pid], "worker": workers, "ray driver": [search.driver_of_ray()]}[kill.victim]
        with contextlib.suppress(ProcessLookupError):
            present = [pid for pid in found if pid is not None]
            if present:
                os.kill(present[int(1000 * kill.seconds) % len(present)], signal.SIGKILL)
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
    with prepared(0 if alone else NODES) as (place, servers):
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
def prepared(nodes: int) -> Iterator[tuple[Path, Servers]]:
    """Start the servers in a temporary folder, none for no nodes, and import what searches import."""
    with tempfile.TemporaryDirectory(prefix="slimfront-kills-") as temporary:
        place = Path(temporary)
        with Servers.started(place, nodes) as servers:
            if servers.nodes is not None:
                os.environ.update(servers.nodes.environment)  # Ray reads these when it is imported
            import_everything()
            from search.tracking import store

            store.create_store = partial(_copied_store, place / "empty.db", store.create_store)
            yield place, servers


def _copied_store(empty: Path, create: Callable[[Path], None], file: Path) -> None:
    """Copy a store that was made once, which takes MLflow seconds; whole or not at all, as the real one."""
    if not empty.is_file():
        made = file.with_suffix(".made")
        create(made)
        os.replace(made, empty)
    os.replace(shutil.copyfile(empty, file.with_suffix(".new")), file)


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
    counts = Counter((kill["victim"], kill["phase"]) for kill in kills)
    heads = ["killed", *ORDER, "all"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for victim in VICTIMS["cluster"]:
        by_phase = [counts[victim, phase] for phase in ORDER]
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
    parser.add_argument("--twenty", action="store_true", help="run the case of the test suite alone, and print its row")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and do nothing")
    read_arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers too
    if read_arguments.twenty:
        with prepared(1) as (place, servers):
            print(json.dumps(Run(TWENTY, place, servers)()), flush=True)
        return
    if not read_arguments.table:
        study(read_arguments.folder, read_arguments.kills, read_arguments.seed, read_arguments.cases)
    print(table(read_arguments.folder / "kills.jsonl"))


if __name__ == "__main__":
    main()
