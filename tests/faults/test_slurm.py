"""docs/cluster/slurm.sh on a Slurm of two nodes, each in namespaces of its own."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from namespaces import PROJECT, Network, missing, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(bool(slurm.missing()), reason=f"Slurm is not installed: no {', '.join(slurm.missing())}"),
]
FLAGS = "--model lenet5 --data digits --budget 50% --dense-epochs 1 --epochs 2 --rungs none --final-epochs none"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that all machines share, as on a Slurm cluster."""
    home = Path(tempfile.mkdtemp(prefix="slimfront-home-"))
    yield home
    shutil.rmtree(home)


def test_a_job_runs_on_its_nodes_ends_with_the_front_when_its_time_is_up_and_goes_on(home: Path) -> None:
    network = Network()
    try:
        login, *nodes = (network.machine(name, [PROJECT, home]) for name in ("login", "node1", "node2"))
        cluster = slurm.Slurm(login, nodes, cpus=1)
        environment = {"HOME": str(home), "PYTHONPATH": str(PROJECT), "RUN": "runs/first", "OMP_NUM_THREADS": "1"}
        script = str(PROJECT / "docs" / "cluster" / "slurm.sh")

        def submit(*flags: str) -> int:
            sbatch = ("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", script, *flags)
            return int(cluster.command(*sbatch, folder=home, **environment))

        def output(job: int) -> str:
            file = home / f"slurm-{job}.out"
            return file.read_text() if file.exists() else ""

        first = submit(*FLAGS.split(), "--trials", "40")
        wait_until(lambda: "] 5/40 trial" in output(first) or cluster.ended(first), 400, "five trials")
        assert not cluster.ended(first), output(first)
        assert network.traffic("node2").sent > 100_000, "the second node has no part in it"
        cluster.command("scancel", "--signal=USR1", "--batch", str(first))  # as ten minutes before the end
        wait_until(lambda: cluster.ended(first), 200, "the end of the job")
        assert cluster.state(first) == "FAILED", output(first)  # with 130, as after Ctrl-C
        done = json.loads((home / "runs" / "first" / "result.json").read_text())["results"]
        assert 5 <= len(done) < 40
        assert not list((home / ".ray").iterdir()), "the token is left"

        again = submit()
        wait_until(
            lambda: f"] {len(done) + 1}/40 trial" in output(again) or cluster.ended(again), 400, "one more trial"
        )
        assert not cluster.ended(again), output(again)
        cluster.command("scancel", "--signal=USR1", "--batch", str(again))
        wait_until(lambda: cluster.ended(again), 200, "the end of the job")
        more = json.loads((home / "runs" / "first" / "result.json").read_text())["results"]
        assert [result["trial"]["number"] for result in more][: len(done)] == [r["trial"]["number"] for r in done]
        assert len(more) > len(done)
    finally:
        network.close()
