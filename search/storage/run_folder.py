"""What a run folder keeps so that a search killed at any moment goes on: settings, dense network, weights of trials.

The study is the record of the trials. A checkpoint is written before its trial is recorded, so what is recorded has
its weights; a checkpoint that no recorded trial names was in the making, or is that of a shorter training, and goes.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from configs.loading import RUN_FILE, effective_yaml
from runners.training.dense import load_weights, weights_digest
from runners.trial import TrialResult, TrialState
from search.problem import RunFolderError, Setup
from search.reporting.plan_table import Plan
from search.results.pareto import measured
from search.storage.checkpoints import TrialFiles
from search.tuner import Study, StudyError
from spaces.files import write_atomically
from spaces.zoo.models import build

DENSE = "dense.safetensors"
DENSE_WEIGHTS, IMAGES = "dense weights", "images"  # what is pinned in the record
LOCK, OWNER = ".lock", ".lock.owner"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from searching in a run folder; the lock ends with the process, however that ends.

    Raises:
        RunFolderError: another process searches there.
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = owner.read_text(encoding="utf-8").strip() if owner.is_file() else ""
        raise RunFolderError(
            f"run folder {str(folder)!r} is in use by process {process or 'unknown'}; wait until it ends, or stop it"
        ) from error
    try:
        owner.write_text(str(os.getpid()), encoding="utf-8")  # not in the lock's own file, which others empty
        yield
    finally:
        lock.release()


def write_settings(setup: Setup) -> None:
    """Write the settings that `--resume` and `--config` read back."""
    config = dataclasses.replace(setup.config, resume="")
    if config.storage:  # where the study has the name of the folder, whatever that is called later
        config = dataclasses.replace(config, out=config.out or str(setup.folder))
    write_atomically(setup.folder / RUN_FILE, effective_yaml(config).encode())


def take_up(setup: Setup, study: Study) -> None:
    """Check that the record is that of the run folder, and mark recorded networks whose weights are not there.

    Those that a trial passed outside the budgets of then have none, and the budgets of now may allow them.

    Raises:
        StudyError: the record belongs to other images, or is empty and must not be.
    """
    if (setup.folder / DENSE).is_file() and study.pinned(DENSE_WEIGHTS) is None:
        raise StudyError(
            f"storage {study.settings.storage!r} has no record of the search in {str(setup.folder)!r}; "
            "bring its study back, or start a new search"
        )
    study.pin(IMAGES, setup.data.fingerprint)
    TrialFiles(setup.folder).drop_unnamed(study.results)

    def checked(network: TrialResult) -> TrialResult:
        if not measured(network) or (network.path and (setup.folder / network.path).is_file()):
            return network
        reason = f"its weights are gone from {network.path}" if network.path else "its weights were not kept"
        return dataclasses.replace(network, state=TrialState.FAILED, error=reason)

    study.revise(checked)


def kept_dense(setup: Setup) -> nn.Module | None:
    """Return the dense network that the run folder keeps, in evaluation mode; None without one.

    Raises:
        WeightsError: the file was damaged.
    """
    if not (setup.folder / DENSE).is_file():
        return None
    net = build(setup.spec)
    load_weights(net, setup.folder / DENSE)
    return net.eval()


def keep_dense(setup: Setup, study: Study, net: nn.Module) -> None:
    """Write the dense network to the run folder, where a resumed search takes it from.

    Raises:
        StudyError: the trials of the record were cut from another one.
    """
    study.pin(DENSE_WEIGHTS, weights_digest(net))
    if not (setup.folder / DENSE).is_file():
        tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        write_atomically(setup.folder / DENSE, save(tensors))


def remaining(plan: Plan, study: Study) -> Plan:
    """Return the plan with the time that the trials which are left take."""
    total, done = study.settings.trials, len(study.results)
    if plan.seconds is None or not done:
        return plan
    share = max(0, total - done) / total
    epochs = max(0.0, plan.epochs - sum(each.trained or 0 for each in study.results))
    if plan.epochs:  # trials that are finished may go on, so their number says little
        share = epochs / plan.epochs
    return dataclasses.replace(plan, seconds=plan.seconds * share, epochs=epochs)
