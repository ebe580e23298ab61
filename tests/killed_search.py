"""A search by formula in a real run folder that is killed again and again; run as a script, prints what became of it.

    python killed_search.py FOLDER KILLS SEED

Every child process is a fork, so that starting one takes no imports, and is killed with SIGKILL, which it cannot see.
A short search before the first fork has what is imported late imported too.
"""

import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from chain_space import chain
from made_up_search import Listener, MadeUpSearch, problem_of, search_of

from runners.simulated.runner import SimulatedRunner
from runners.trial import Trial, TrialResult
from search.storage import run_folder
from search.storage.checkpoints import TRIALS, CheckpointFolder

EPOCHS = 4
ENDLESS = 400  # trials, more than are ever reached


def weights_of(trial: Trial, epochs: int) -> bytes:
    return hashlib.sha256(f"{trial.key()} after {epochs}".encode()).digest() * 2000


class WithWeights:
    """A search whose trials also come with weights, as trials of networks do."""

    def __init__(self, search: MadeUpSearch) -> None:
        self.ask, self.report, self._search = search.ask, search.report, search

    def tell(self, result: TrialResult) -> None:
        segment = result.trial.segment
        weights = weights_of(result.trial, segment.end if segment is not None else EPOCHS)
        self._search.tell(dataclasses.replace(result, checkpoint=weights))


def say(pipe: int, what: str, *facts: object) -> None:
    os.write(pipe, (json.dumps([what, *facts]) + "\n").encode())


def facts_of(result: TrialResult, folder: Path) -> list[object]:
    epochs = result.rungs[-1][0] if result.rungs else EPOCHS
    whole = (folder / result.path).read_bytes() == weights_of(result.trial, epochs)
    return [result.trial.number, result.trial.key(), result.accuracy, whole, epochs]


def search(folder: Path, trials: int, rungs: tuple[int, ...], pipe: int) -> None:
    """Go on with the search in the folder; say what was found there, and each trial once it is recorded."""
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    with run_folder.locked(folder):
        space = chain(4, 64)
        problem = problem_of(space, ["100kflops"], ("l2", "geometric_median"), trials=trials, rungs=rungs)
        checkpoints = CheckpointFolder(folder)
        made = search_of(
            problem,
            url=f"sqlite:///{folder / 'study.db'}",
            checkpoints=checkpoints,
            callback=Listener(lambda result, _: say(pipe, "done", *facts_of(result, folder))),
        )
        checkpoints.drop_unnamed(made.results)
        say(pipe, "found", [facts_of(result, folder) for result in made.results])
        search_context = type("Bench", (), {"space": space})()
        SimulatedRunner(epochs=EPOCHS).run(WithWeights(made), search_context)


def child(folder: Path, trials: int, rungs: tuple[int, ...], seconds: float, first: str = "") -> list[list[object]]:
    """Let a process search, kill it so many seconds after it said something, and return what it said until then."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(reader)
            search(folder, trials, rungs, writer)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    text = b""
    while first.encode() not in text:
        text += os.read(reader, 65536) or first.encode()
    if seconds < float("inf"):
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reader, "rb") as rest:
        text += rest.read()
    _, status = os.waitpid(process, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the search ended with status {status}")
    return [json.loads(line) for line in text.decode().splitlines(keepends=True) if line.endswith("\n")]


def import_everything(rungs: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nobody:
        search(Path(folder), 8, rungs, nobody.fileno())


def later(facts: list[object], known: list[object] | None) -> bool:
    """Whether a trial was trained on since, which a process may do and be killed before it says so."""
    return known is not None and int(str(known[4])) > int(str(facts[4])) and known[:2] == facts[:2]


def main(folder: Path, kills: int, seed: int, rungs: tuple[int, ...]) -> None:
    import_everything(rungs)
    chance = random.Random(seed)
    recorded: dict[int, list[object]] = {}
    lost, changed, starts = [], [], []
    for turn in range(kills + 1):
        last = turn == kills
        trials = len(recorded) + 4 if last else ENDLESS  # at least one more even where some were recorded, not said
        if last:
            said = child(folder, trials, rungs, float("inf"))
        elif turn % 3:
            said = child(folder, trials, rungs, chance.uniform(0.0, 0.2), '["done"')
        else:  # while it opens the study
            said = child(folder, trials, rungs, chance.uniform(0.0, 0.2))
        for found in (facts[0] for what, *facts in said if what == "found"):
            known = {facts[0]: facts for facts in found}
            lost += [number for number in recorded if number not in known]
            changed += [
                number
                for number, facts in recorded.items()
                if known.get(number, facts) != facts and not later(facts, known.get(number))
            ]
            recorded |= known
        done = {facts[0]: facts for what, *facts in said if what == "done"}
        recorded |= done
        starts.append(len(done))
    weights = all(facts[3] for facts in recorded.values())
    keys = len({str(facts[1]) for facts in recorded.values()})
    print(json.dumps({"starts": starts, "lost": lost, "changed": changed, "weights": weights,
                      "numbers": sorted(recorded), "keys": keys,
                      "epochs": sorted(int(str(facts[4])) for facts in recorded.values()),
                      "files": len(list((folder / TRIALS).iterdir()))}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), tuple(map(int, sys.argv[4:])))
