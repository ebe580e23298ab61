"""The run folder, from which a search that was killed at any moment goes on: settings, dense network, lock.

The study is the record of the trials (`storage.study_storage`), their weights lie beside it (`storage.checkpoints`). A
checkpoint is written before its trial is recorded, so a recorded trial has its weights; a checkpoint that no recorded
trial names was in the making, or is that of a shorter training, and goes.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from configs.loading import RUN_FILE, effective_yaml
from runners.training.dense import load_weights, weights_digest
from runners.trial import TrialResult, TrialState
from search.environment import Environment, RunFolderError
from search.results.pareto import measured
from search.storage.checkpoints import TRIALS, CheckpointFolder
from search.storage.history import History
from search.storage.study_storage import STUDY_FILE, StoredTrial, StudyError, StudyStorage
from spaces.files import write_atomically
from spaces.zoo.models import build

DENSE = "dense.safetensors"
DENSE_WEIGHTS, IMAGES = "dense weights", "images"  # names of the fingerprints in the study
LOCK, OWNER = ".lock", ".lock.owner"
AFTERMATH = 30.0  # seconds in which the processes of a killed search end


@dataclass(frozen=True)
class OpenRun:
    """What an open run folder holds of a search.

    Attributes:
        stored: trials of an earlier process, in the order of recording.
        history: their results, and those that are still to come.
    """

    storage: StudyStorage
    stored: Sequence[StoredTrial]
    history: History


@contextmanager
def opened(environment: Environment) -> Iterator[OpenRun]:
    """Make or open the run folder; an error takes away what was made, unless the search has finished a trial.

    A folder that was there before stays. The settings of a resumed run change once its study agrees to them.

    Raises:
        RunFolderError: another process searches there.
        StudyError: a storage that cannot be used, or holds another search.
    """
    folder, problem = environment.folder.absolute(), environment.problem
    resumes = bool(environment.config.resume)
    made = next((path for path in [*reversed(folder.parents), folder] if not path.exists()), folder)
    history: History | None = None
    try:
        (folder / TRIALS).mkdir(parents=True, exist_ok=resumes)
        with locked(folder), ExitStack() as stack:
            if not resumes:
                write_settings(environment)
            _check_kept(environment)
            storage = stack.enter_context(closing(StudyStorage.of_run(problem, environment.folder)))
            stored = storage.read()
            history = History(problem, [trial.result for trial in stored if trial.result is not None])
            _restore(environment, storage, history)
            if resumes:
                write_settings(environment)
            yield OpenRun(storage, stored, history)
    except BaseException:
        if not resumes and (history is None or not history.results):
            shutil.rmtree(made, ignore_errors=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from searching in a run folder; the lock ends with the process, however that ends.

    Raises:
        RunFolderError: another process searches there.
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    try:
        held = lock.acquire(timeout=0 if _is_alive(owner) else AFTERMATH)
    except Timeout as error:
        process = owner.read_text(encoding="utf-8").strip() if owner.is_file() else ""
        raise RunFolderError(
            f"run folder {str(folder)!r} is in use by process {process or 'unknown'}; wait until it ends, or stop it"
        ) from error
    with held:
        owner.write_text(str(os.getpid()), encoding="utf-8")  # not in the lock's own file, which others empty
        yield


def _is_alive(owner: Path) -> bool:
    """Return whether the process that this file names is there; of a killed one, its processes may still end."""
    try:
        os.kill(int(owner.read_text(encoding="utf-8")), 0)
    except (ProcessLookupError, FileNotFoundError, ValueError):
        return False
    except OSError:  # of another user
        return True
    return True


def resume_command(folder: Path) -> str:
    """Return the command line that goes on with the search of a run folder."""
    return f"python -m search --resume {shlex.quote(str(folder))}"


def write_settings(environment: Environment) -> None:
    """Write the settings that `--resume` and `--config` read back."""
    config = dataclasses.replace(environment.config, resume="")
    if config.storage:  # the study there has the name of the folder, whatever that is called later
        config = dataclasses.replace(config, out=config.out or str(environment.folder))
    write_atomically(environment.folder / RUN_FILE, effective_yaml(config).encode())


def _check_kept(environment: Environment) -> None:
    """Raise StudyError if the study of a run folder is gone from it; to open its storage would make another one."""
    folder, config = environment.folder, environment.config
    study = folder / STUDY_FILE
    if config.resume and not config.storage and (folder / DENSE).is_file():
        if not study.is_file() or not study.stat().st_size:
            raise _lost_study(str(study), folder)


def _lost_study(where: str, folder: Path) -> StudyError:
    return StudyError(
        f"storage {where!r} has no record of the search in {str(folder)!r}; bring its study back, or start a new search"
    )


def _restore(environment: Environment, storage: StudyStorage, history: History) -> None:
    """Check that the study is that of the run folder, and mark recorded networks whose weights are gone.

    Intermediate networks outside the budgets of then have no weights, and the budgets of now may allow them.

    Raises:
        StudyError: the study belongs to other images, or is empty and must not be.
    """
    folder = environment.folder
    if (folder / DENSE).is_file() and storage.fingerprint(DENSE_WEIGHTS) is None:
        raise _lost_study(storage.url, folder)
    storage.check_fingerprint(IMAGES, environment.data.fingerprint)
    CheckpointFolder(folder).drop_unnamed(history.results)

    def check(network: TrialResult) -> TrialResult:
        if not measured(network) or (network.path and (folder / network.path).is_file()):
            return network
        reason = f"its weights are gone from {network.path}" if network.path else "its weights were not kept"
        return dataclasses.replace(network, state=TrialState.FAILED, error=reason)

    history.revise(check)


def load_dense(environment: Environment) -> nn.Module | None:
    """Return the dense network that the run folder keeps, in evaluation mode; None without one.

    Raises:
        WeightsError: the file was damaged.
    """
    file = environment.folder / DENSE
    if not file.is_file():
        return None
    net = build(environment.spec)
    load_weights(net, file)
    return net.eval()


def save_dense(environment: Environment, storage: StudyStorage, net: nn.Module) -> None:
    """Write the dense network to the run folder, where a resumed search takes it from.

    Raises:
        StudyError: the recorded trials were cut from another dense network.
    """
    storage.check_fingerprint(DENSE_WEIGHTS, weights_digest(net))
    file = environment.folder / DENSE
    if not file.is_file():
        tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        write_atomically(file, save(tensors))
