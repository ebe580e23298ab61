"""Run trials on Ray Tune, on this machine or on a cluster.

Tune places the workers (`worker`) and keeps them between trials. The AskTell in this process decides what to try next
and when a trial stops, and keeps the results: a searcher asks it, a callback reports and tells (`relay`). Tune's own
records are deleted.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from typing_extensions import override

from runners.base import AskTell, Evaluator, Runner, RunnerError
from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig
from runners.ray.authentication import check_token, own_token
from runners.ray.child import run_in_child
from runners.ray.internals import FirstCome, find_cluster, importing_from
from runners.ray.objects import pickled
from runners.ray.relay import Abort, AskTellSearcher, Relay, one_line
from runners.ray.room import Room, capacity, check_files
from runners.ray.settings import quiet_tune
from runners.ray.start import check_answers, import_folders, own_modules
from runners.ray.worker import Worker
from spaces.files import is_full, no_room

if TYPE_CHECKING:
    from runners.evaluation.context import SearchContext

NOT_SENT = ["__pycache__", ".git"]  # of the folders of packages
SHUTDOWN_SECONDS = 15.0


class RayRunner(Runner):
    """Runs as many trials at once as the machine or the cluster has room for.

    A Ray that the caller has initialised is used and left running; one that is started here is shut down. `run` raises
    a RunnerError where no cluster answers, or where it has no room for a single trial.

    Args:
        evaluator: runs a trial, as `runners.evaluation.evaluate.evaluate` does; pickled, and sent once to each worker.
    """

    def __init__(self, config: RunnerConfig, evaluator: Evaluator) -> None:
        self._config, self._evaluator = config, evaluator

    @override
    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        gpus = needed_gpus(self._config, search_context.train.device)
        config = dataclasses.replace(self._config, gpus_per_trial=gpus)
        shared = pickled((self._evaluator, dataclasses.replace(search_context, threads=config.cpus_per_trial)))

        def run(ask_tell: AskTell, on_connected: Callable[[str], None]) -> None:
            with quiet_tune(), tempfile.TemporaryDirectory(prefix="slimfront-ray-") as folder, connected(config):
                on_connected(ray.get_runtime_context().gcs_address)
                with Room(config, search_context.node_timeout) as room, _telling_of_full_disks():
                    check_files(search_context.files)
                    relay = Relay(ask_tell, config.max_retries, search_context.trial_timeout)
                    resources = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
                    worker = type("Worker", (Worker,), {"shared": ray.put(shared), "resources": resources})
                    _run(worker, AskTellSearcher(relay, room), folder)

        if ray.is_initialized():  # the caller's Ray cannot be used in another process
            run(ask_tell, lambda _: None)
        else:
            run_in_child(run, ask_tell)


@contextlib.contextmanager
def _telling_of_full_disks() -> Iterator[None]:
    """Name Ray's folder where its disk is full: for an object that memory has no room for, or for a file of its own."""
    try:
        yield
    except (ray.exceptions.OutOfDiskError, OSError) as error:
        if isinstance(error, OSError) and (error.filename or not no_room(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_ray_files())) from error


def _ray_files() -> Path:
    """Return the folder under which a Ray that is started here has its files."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _run(worker: type[Worker], searcher: AskTellSearcher, folder: str) -> None:
    """Have Tune run the trials of a searcher; when this ends by an error, no worker is left."""
    scheduler = FirstCome()  # type: ignore[no-untyped-call]
    try:
        tune.run(
            worker,
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            callbacks=[searcher.relay],
            raise_on_failed_trial=False,
            storage_path=folder,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            verbose=0,
        )
    except BaseException as error:
        scheduler.release_workers()
        raise error.args[0] if isinstance(error, Abort) else error from None


def cluster_workers(config: RunnerConfig) -> int:
    """Connect to the cluster of `config.cluster` and return how many trials it has room for at once.

    One without a node that can take a trial counts as one with room for one: the runner waits for the node.
    """

    def ask(*_: Any) -> int:
        with connected(config):
            return max(1, capacity(config))

    return int(ask() if ray.is_initialized() else run_in_child(ask))


@contextlib.contextmanager
def connected(config: RunnerConfig) -> Iterator[None]:
    """Connect to Ray inside the block: the caller's, the cluster at the configured address, or one started here.

    One that is started here lets nobody in but this process and its workers.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.cluster:
        options |= {"address": config.cluster, "runtime_env": {"py_modules": own_modules(), "excludes": NOT_SENT}}
    else:
        workers = max(1, fitting_workers(config))
        options["job_config"] = importing_from(import_folders())
        options |= {"address": "local", "include_dashboard": False, "num_cpus": workers * config.cpus_per_trial}
    with contextlib.nullcontext() if config.cluster else own_token():
        try:
            _start(config.cluster, options)
            yield
        finally:
            _shut_down()  # also after a start that was interrupted


def _shut_down() -> None:
    """Disconnect from Ray, or end what was started here.

    After nodes were lost, Ray was seen to wait for a thread of its own for ever, with all trials told; the process ends
    soon anyway, and what it has started with it.
    """
    ending = threading.Thread(target=ray.shutdown, name="ray shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)


def _start(cluster: str, options: Mapping[str, Any]) -> None:
    """Connect to a cluster, or start Ray where its address is empty; raise a RunnerError where that fails."""
    try:
        address = find_cluster() if cluster == "auto" else cluster  # Ray would try for 20 s, and not say what it lacks
        check_answers(address)
        check_token(address)
        ray.init(**options)
    except RunnerError:
        raise
    except Exception as error:  # Ray raises bare ones too, such as for a node that does not come up in time
        problem = f"no Ray cluster answers at {cluster!r}" if cluster else "Ray does not start"
        way_out = "check --ray-address and the token of the cluster (docs/cluster.md), or " if cluster else ""
        full = not cluster and is_full(error, _ray_files())
        reason = f"no room left in {_ray_files()}" if full else one_line(error)
        raise RunnerError(f"{problem} ({reason}); {way_out}take --runner local") from error


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)
