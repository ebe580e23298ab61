"""What crosses the network in a search on a cluster, counted on the link of a node of its own.

`python tests/faults/link_bytes.py` prints a table for docs/cluster.md. One node with one processor runs the trials one
after the other, so what has passed between the ends of two trials belongs to the later one.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from namespaces import PROJECT, Network, RayCluster, Traffic, missing

IDLE_SECONDS = 20
CASES = {"lenet5": ("digits", 3), "resnet20": ("coloured_digits", 3)}
ENDS = re.compile(r"\] (\d+)/\d+ trial \d+ ")


class Count(NamedTuple):
    """Bytes of a search, less what the node's Ray sends and receives while it has nothing to do.

    Attributes:
        once: up to the start of the first trial: code, images, the dense network.
        trial: mean of the trials after the first one.
        idle: per second.
        params: of the narrow networks of these trials, as a mean.
    """

    once: Traffic
    trial: Traffic
    idle: Traffic
    params: float


def count(network: Network, cluster: RayCluster, folder: Path, model: str, trials: int) -> Count:
    """Search on the node of a cluster and count."""
    began, before = time.monotonic(), network.traffic("node")
    time.sleep(IDLE_SECONDS)
    idle = _scaled(network.traffic("node").since(before), 1 / (time.monotonic() - began))
    images, epochs = CASES[model]
    flags = f"--model {model} --data {images} --epochs {epochs} --trials {trials} --out {model} --method di,l2"
    fixed = "--budget 50% --dense-epochs 1 --rungs none --final-epochs none --screen 1 --ray-address".split()
    command = (sys.executable, "-m", "search", *flags.split(), *fixed, cluster.address)
    began, before = time.monotonic(), network.traffic("node")
    passed: list[Traffic] = []  # up to the end of a trial
    with (folder / f"{model}.log").open("w+") as log:
        environment = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        search = cluster.head.start(*command, folder=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while len(passed) < trials and search.poll() is None:
            time.sleep(0.05)
            if len(ENDS.findall((folder / f"{model}.log").read_text())) > len(passed):
                seconds = time.monotonic() - began
                passed.append(network.traffic("node").since(before).since(_scaled(idle, seconds)))
        if search.wait():
            raise RuntimeError((folder / f"{model}.log").read_text())
    trial = _scaled(passed[-1].since(passed[0]), 1 / (trials - 1))
    results = json.loads((folder / model / "result.json").read_text())["results"]
    return Count(passed[0].since(trial), trial, idle, mean(result["cost"]["params"] for result in results[1:]))


def _scaled(traffic: Traffic, factor: float) -> Traffic:
    return Traffic(round(traffic.received * factor), round(traffic.sent * factor))


def main() -> None:
    """Print a row for every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--trials", type=int, default=6)
    arguments = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    network = Network()
    try:
        with tempfile.TemporaryDirectory(prefix="slimfront-driver-") as name:
            folder = Path(name)
            cluster = RayCluster(network, network.machine("driver", [PROJECT, folder]))
            cluster.join(network.machine("node"))
            print("| network, images, epochs | params of a trial | once, to | per trial, to | from | idle, per s |")
            print("|---|---|---|---|---|---|")
            for model in arguments.models.split(","):
                found = count(network, cluster, folder, model, arguments.trials)
                images, epochs = CASES[model]
                numbers = (found.params, found.once.received, *found.trial, sum(found.idle))
                print(f"| {model}, {images}, {epochs} | {' | '.join(f'{n:,.0f}' for n in numbers)} |", flush=True)
    finally:
        network.close()


if __name__ == "__main__":
    main()
