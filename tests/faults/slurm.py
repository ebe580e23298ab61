"""A Slurm on the machines of a `Network`: a controller on the first of them, which runs no job, and nodes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from namespaces import Machine, wait_until

COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch")
_STATE = "/tmp/slurm"  # every machine has a /tmp of its own
_CONFIG = f"""\
ClusterName=test
SlurmctldHost={{controller}}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={_STATE}/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation={_STATE}/state
SlurmdSpoolDir={_STATE}/spool
SlurmctldPidFile={_STATE}/slurmctld.pid
SlurmdPidFile={_STATE}/slurmd.pid
SlurmctldLogFile={_STATE}/slurmctld.log
SlurmdLogFile={_STATE}/slurmd.log
NodeName={{nodes}} CPUs={{cpus}} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the commands of Slurm that are not installed."""
    return [name for name in COMMANDS if shutil.which(name) is None]


class Slurm:
    """Slurm, started with its object; it ends with its machines.

    Args:
        cpus: of a node; as many as Slurm finds, or it holds the node for broken.
    """

    def __init__(self, controller: Machine, nodes: Sequence[Machine], cpus: int) -> None:
        self._controller = controller
        config = _CONFIG.format(controller=controller.name, nodes=",".join(node.name for node in nodes), cpus=cpus)
        for machine in (controller, *nodes):
            machine.write(f"{_STATE}/slurm.conf", config)
            machine.write(f"{_STATE}/key", "k" * 64)
            machine.run("mkdir", "-p", f"{_STATE}/state", f"{_STATE}/spool")
            paths = (f"--socket={_STATE}/munge", f"--key-file={_STATE}/key", f"--log-file={_STATE}/munge.log")
            more = (f"--pid-file={_STATE}/munge.pid", f"--seed-file={_STATE}/munge.seed", "--force")
            machine.run("munged", *paths, *more)
        controller.run("slurmctld", "-f", f"{_STATE}/slurm.conf")
        for node in nodes:
            node.run("slurmd", "-f", f"{_STATE}/slurm.conf")
        wait_until(lambda: self.command("sinfo", "-h", "-o", "%D %t") == f"{len(nodes)} idle\n", 60, "idle nodes")

    def command(self, *command: str, folder: Path | None = None, **environment: str) -> str:
        """Run a command of Slurm on the controller; return what it printed."""
        environment["SLURM_CONF"] = f"{_STATE}/slurm.conf"
        return self._controller.run(*command, folder=folder, env=environment)

    def state(self, job: int) -> str:
        """Return the state of a job, such as RUNNING."""
        fields = dict(pair.partition("=")[::2] for pair in self.command("scontrol", "show", "job", str(job)).split())
        return fields["JobState"]

    def ended(self, job: int) -> bool:
        """Return whether a job has ended, well or not."""
        return self.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
