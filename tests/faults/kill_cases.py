"""Searches that are killed, and the moments of their kills: both drawn at random, the moments over all phases."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

PHASES = {  # phase -> seconds that it takes about, in the order of a search
    "start": 2.0,
    "latency": 8.0,
    "dense network": 1.0,
    "statistics": 2.0,
    "trials": 8.0,
    "final training": 4.0,
    "test images": 0.5,
    "confirmation": 5.0,
    "timing the front": 5.0,
    "export": 2.0,
    "report": 2.0,
    "MLflow's end": 2.0,
    "end": 0.1,
}
ORDER = list(PHASES)
LATE = ORDER[ORDER.index("final training") :]
WORDS = {  # of a line -> phase that begins with it
    "reading data": "start",
    "timing the dense net and the smallest": "latency",
    "building the latency model": "latency",
    "training the dense": "dense network",
    "gathering": "statistics",
    "searching with": "trials",
    "is cut from": "final training",
    "confirming": "test images",
    "training the front again": "confirmation",
    "timing the dense net on": "timing the front",
    "writing the front": "export",
    "Written to": "end",
}
FILES = {"front.csv": "report", "result.json": "MLflow's end"}  # file -> phase that begins once it is written
VICTIMS = {  # by runner: victim -> how often
    "local": {"driver": 1},
    "ray": {"driver": 2, "ray driver": 2, "worker": 6},
    "cluster": {"driver": 2, "ray driver": 2, "worker": 7, "node": 3, "mlflow": 2, "postgres": 4},
}
OF_TRIALS = {"ray driver", "worker"}  # victims that there are only while trials run
WITH_WORKERS = {"trials", "final training", "confirmation"}


@dataclass(frozen=True)
class Kill:
    """What is killed, and how many seconds after this phase was reached, or after the kill before if that is later."""

    victim: str
    phase: str
    seconds: float


@dataclass(frozen=True)
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
            "final-epochs": chance.choice(["none", "2", "4"]),
            "screen": chance.choice(["none", "4"]),
            "budget": chance.choice([*["50%"] * 5, "50%,95%latency"]),
            "targets": chance.choice(["", "", "", "50%,25%"]),
            "export": chance.choice(["", "onnx"]),
            "latency-device": chance.choice(["none", "cpu:1thread"]),
            "confirm": chance.choice(["", "", "2"]),
            "seed": str(number),
        }
        if flags["targets"]:
            trials, flags["budget"] = trials + 3, flags["budget"].replace("50%,", "").replace("50%", "")
        if "latency" in flags["budget"]:
            flags["latency-device"] = "cpu:1thread"
        flags = {name: value for name, value in flags.items() if value}
        return cls(seed, number, runner, trials, flags, _kills(runner, _phases(flags), chance))


def _phases(flags: Mapping[str, str]) -> list[str]:
    """Return the phases that a search has, in their order."""
    predicted = "latency" in flags.get("budget", "")
    lacking = {
        "latency": not predicted,
        "final training": flags["final-epochs"] == "none",
        "confirmation": "confirm" not in flags,
        "timing the front": predicted or flags["latency-device"] == "none",
    }
    return [phase for phase in ORDER if not lacking.get(phase)]


def _kills(runner: str, phases: list[str], chance: random.Random) -> tuple[Kill, ...]:
    """Draw one kill before the trials, some in them, and one in each phase after them, in this order or nearly so."""
    early = phases[: phases.index("trials")]
    late = [phase for phase in phases if phase in LATE]
    drawn = ["trials"] * (2 if runner == "local" else 3) + sorted([*late, chance.choice(late)], key=ORDER.index)
    drawn.insert(chance.randrange(len(drawn)), chance.choice(early))
    kills = []
    for phase in drawn:
        present = {
            victim: weight
            for victim, weight in VICTIMS[runner].items()
            if phase in WITH_WORKERS or victim not in OF_TRIALS
        }
        (victim,) = chance.choices(*zip(*present.items(), strict=True))
        kills.append(Kill(victim, phase, chance.uniform(0.0, PHASES[phase])))
    return tuple(kills)


TWENTY = Case(  # of the test suite: kills in all phases of one search, few of which need a new worker
    0,
    0,
    "cluster",
    trials=6,
    flags={
        "sampler": "structured",
        "rungs": "1,2",
        "epochs": "2",
        "method": "l2,random",
        "final-epochs": "2",
        "budget": "50%",
        "latency-device": "none",
    },
    kills=(
        Kill("driver", "start", 0.2),
        Kill("driver", "dense network", 0.1),
        Kill("driver", "statistics", 0.1),
        Kill("worker", "trials", 0.5),
        Kill("mlflow", "trials", 0.5),
        Kill("postgres", "trials", 1.0),
        Kill("worker", "trials", 0.2),
        Kill("ray driver", "trials", 0.5),
        Kill("driver", "trials", 0.2),
        Kill("node", "trials", 0.5),
        Kill("postgres", "trials", 1.0),
        Kill("worker", "final training", 0.2),
        Kill("driver", "final training", 0.2),
        Kill("driver", "test images", 0.0),
        Kill("driver", "export", 0.1),
        Kill("driver", "start", 0.1),
        Kill("driver", "statistics", 0.1),
        Kill("driver", "test images", 0.1),
        Kill("driver", "report", 0.1),
        Kill("postgres", "export", 0.0),
        Kill("driver", "MLflow's end", 0.0),
    ),
)
