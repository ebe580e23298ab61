"""Run trials on Ray Tune, on this machine or on a cluster; the only file that imports ray.

Tune places the workers and keeps them between trials. The AskTell in this process decides what to try next and when a
trial stops, and keeps the results: a searcher asks it, a callback reports and tells. Tune's own records are deleted.
"""

import contextlib
import dataclasses
import errno
import io
import logging
import os
import pickle
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import ray
import torch
from ray import tune
from ray.tune.search import Searcher
from typing_extensions import override

from runners.base import AskTell, Evaluator, Runner, RunnerError
from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig
from runners.ray.authentication import check_token, own_token
from runners.ray.child import run_in_child
from runners.ray.internals import FirstCome, actor_of, error_of, find_cluster, importing_from
from runners.ray.room import Room, capacity, check_files
from runners.ray.settings import quiet_tune
from runners.ray.start import check_answers, import_folders, own_modules
from runners.trial import SavedTraining, Trial, TrialResult, TrialState
from spaces.files import is_full, no_room

if TYPE_CHECKING:
    from runners.evaluation.context import SearchContext

NOT_SENT = ["__pycache__", ".git"]  # of the folders of packages
SHARED_BYTES = 1 << 20  # of a tensor that the workers of a node share
_NUMPY = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
SHUTDOWN_SECONDS = 15.0
NODE_LABEL = "ray.io/node-id"  # which Ray gives every node
logger = logging.getLogger(__name__)


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
        shared = _pickled((self._evaluator, dataclasses.replace(search_context, threads=config.cpus_per_trial)))

        def run(ask_tell: AskTell, on_connected: Callable[[str], None]) -> None:
            with quiet_tune(), tempfile.TemporaryDirectory(prefix="slimfront-ray-") as folder, connected(config):
                on_connected(ray.get_runtime_context().gcs_address)
                with Room(config, search_context.node_timeout) as room, _telling_of_full_disks():
                    check_files(search_context.files)
                    relay = _Relay(ask_tell, config.max_retries, search_context.trial_timeout)
                    resources = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
                    worker = type("Worker", (_Worker,), {"shared": ray.put(shared), "resources": resources})
                    _run(worker, _AskTellSearcher(relay, room), folder)

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


def _run(worker: type["_Worker"], searcher: "_AskTellSearcher", folder: str) -> None:
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
        raise error.args[0] if isinstance(error, _Abort) else error from None


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
        reason = f"no room left in {_ray_files()}" if full else _reason(error)
        raise RunnerError(f"{problem} ({reason}); {way_out}take --runner local") from error


class _Shared(NamedTuple):
    """What all workers need, as a pickle and the arrays of its tensors: the workers of a node share these arrays."""

    pickled: bytes
    arrays: list[Any]


def _pickled(content: Any) -> _Shared:
    """Return what all workers need in a form that Ray can share; raise a RunnerError where it cannot be sent."""
    arrays: list[Any] = []
    buffer = io.BytesIO()
    try:
        _TensorPickler(buffer, arrays).dump(content)  # type: ignore[no-untyped-call]
    except (TypeError, pickle.PicklingError, AttributeError) as error:
        raise RunnerError(
            f"the images or the network cannot be sent to workers ({error}); take --runner local, or open "
            "files when an image is read"
        ) from error
    return _Shared(buffer.getvalue(), arrays)


class _TensorPickler(ray.cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles large tensors of a processor beside the pickle, as arrays that Ray maps into every worker of a node."""

    def __init__(self, file: io.BytesIO, arrays: list[Any]) -> None:
        super().__init__(file, protocol=5)  # type: ignore[no-untyped-call]
        self._arrays = arrays

    @override
    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.nbytes < SHARED_BYTES:
            return None
        if obj.requires_grad or not obj.is_contiguous() or obj.layout is not torch.strided or obj.dtype not in _NUMPY:
            return None
        self._arrays.append(obj.numpy())
        return len(self._arrays) - 1


def _unpickled(shared: _Shared) -> Any:
    """Return what `_pickled` took; its large tensors are read-only."""

    class Unpickler(pickle.Unpickler):
        @override
        def persistent_load(self, pid: int) -> torch.Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the array cannot be written to, and nothing writes to images
                return torch.from_numpy(shared.arrays[pid])

    return Unpickler(io.BytesIO(shared.pickled)).load()


class _Abort(BaseException):
    """Carries an error of the AskTell through Tune, which would treat an Exception as an error of the trial."""


@contextlib.contextmanager
def _aborting() -> Iterator[None]:
    """Turn an Exception of the block into an `_Abort`."""
    try:
        yield
    except Exception as error:
        raise _Abort(error) from error


class _Assignment:
    """A trial as Tune sends it to a worker, without weights. Tune writes it into names, so its `repr` is short.

    Attributes:
        avoided: ids of nodes that have lost the trial, on which it must not run.
        heavy: whether the weights follow.
    """

    def __init__(self, attempt: "_Attempt", avoided: Sequence[str]) -> None:
        self.trial = attempt.trial.without_weights()
        self.avoided = avoided
        self.heavy = self.trial != attempt.trial

    def __repr__(self) -> str:
        return f"trial {self.trial.number}"


@dataclasses.dataclass
class _Attempt:
    """A trial that a worker has, or is to have.

    Attributes:
        lost: how many workers it was lost with.
        nodes: ids of their nodes.
        began: time on the performance counter when it was first begun; None before.
        node: reference to the id of the present node; None while no worker has it.
        heard: time of the last report, or of the start; None while no worker has it, or once its worker was ended.
        hung: how many workers were ended because they were silent.
    """

    trial: Trial
    lost: int = 0
    nodes: tuple[str, ...] = ()
    began: float | None = None
    node: Any = None
    heard: float | None = None
    hung: int = 0


class _Relay(tune.Callback):  # type: ignore[misc]
    """Reports and tells the results that the workers send, and removes them from the results that Tune keeps.

    A trial whose worker was lost is begun again from its last saved epoch, and so is one whose worker hangs, once.

    Args:
        max_retries: how often one trial is.
        timeout: seconds that a trial may go without a report before its worker is ended.
    """

    def __init__(self, ask_tell: AskTell, max_retries: int, timeout: float) -> None:
        self._ask_tell, self._max_retries, self._timeout = ask_tell, max_retries, timeout
        self.running: dict[str, _Attempt] = {}  # by Tune's id
        self.waiting: list[_Attempt] = []  # lost, to be begun again
        self._actors: dict[str, Any] = {}

    def ask(self, trial_id: str) -> _Attempt | None:
        """Return the trial that Tune will call `trial_id`: one that was lost, or a new one."""
        if self.waiting:
            attempt = self.waiting.pop(0)
        else:
            with _aborting():
                trial = self._ask_tell.ask()
            if trial is None:
                return None
            attempt = _Attempt(trial)
        self.running[trial_id] = attempt
        return attempt

    @override
    def on_trial_start(self, *_: Any, trial: Any = None, **info: Any) -> None:
        actor = self._actors[trial.trial_id] = actor_of(trial)
        attempt = self.running[trial.trial_id]
        # The weights do not go through Tune, which writes configurations to disk. Calls of one caller run in order, so
        # the weights arrive before the first step.
        attempt.node = actor.begin.remote(attempt.trial if trial.config["assignment"].heavy else None)
        attempt.heard = time.perf_counter()
        attempt.began = attempt.began or attempt.heard

    @override
    def on_step_end(self, *_: Any, **info: Any) -> None:
        """End the workers that have been silent for too long; Tune then finds them dead."""
        silent_since = time.perf_counter() - self._timeout
        for trial_id, attempt in self.running.items():
            if attempt.heard is not None and attempt.heard < silent_since:
                attempt.heard, attempt.hung = None, attempt.hung + 1
                ray.kill(self._actors[trial_id])

    @override
    def on_trial_result(self, *_: Any, trial: Any = None, result: Any = None, **info: Any) -> None:
        names = ("report", "outcome", "checkpoints", "saved")
        report, outcome, checkpoints, saved = (result.pop(name, None) for name in names)
        attempt = self.running[trial.trial_id]
        attempt.heard = time.perf_counter()
        if saved is not None:
            attempt.trial = dataclasses.replace(attempt.trial, saved=saved)
        if report is not None:
            with _aborting():
                proceed = self._ask_tell.report(report)
            if not proceed:
                # Calls of one caller run in order, so this arrives before the step that Tune asks for next.
                self._actors[trial.trial_id].end_early.remote()
        if outcome is not None:
            try:
                weights = {label: ray.get(reference) for label, reference in checkpoints.items()}
            except ray.exceptions.RayError as error:
                self._lose(trial, error)
                return
            self._tell(trial.trial_id, outcome.with_checkpoints(weights))

    @override
    def on_trial_error(self, *_: Any, trial: Any = None, **info: Any) -> None:
        if trial.trial_id in self.running:
            error = error_of(trial)
            if isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError):
                self._lose(trial, error)
            else:
                self._fail(trial.trial_id, _reason(error))

    def _lose(self, tune_trial: Any, error: Exception) -> None:
        """Have a trial begun again whose worker was lost; after `max_retries` of them it has failed."""
        attempt = self.running[tune_trial.trial_id]
        number, lost, reason = attempt.trial.number, attempt.lost + 1, _reason(error)
        if attempt.hung and attempt.heard is None:
            reason = f"no report for {self._timeout:.0f} s, the worker was ended; see --trial-timeout"
        if lost > self._max_retries or attempt.hung > 1:
            self._fail(tune_trial.trial_id, reason, lost)
            return
        del self.running[tune_trial.trial_id]
        self._actors.pop(tune_trial.trial_id, None)
        saved = attempt.trial.saved
        logger.warning(
            "trial %d lost its worker (%s); it is tried again, %s (%d of %d retries)",
            number,
            reason,
            f"from epoch {saved.curve[-1].epoch}" if saved else "from its beginning",
            lost,
            self._max_retries,
        )
        attempt.lost, attempt.heard = lost, None
        if attempt.node is not None:  # else it was lost before the worker had started
            with contextlib.suppress(ray.exceptions.RayError):  # the worker may have ended before it answered
                attempt.nodes += (ray.get(attempt.node, timeout=0),)
            attempt.node = None
        self.waiting.append(attempt)

    def _tell(self, trial_id: str, result: TrialResult) -> None:
        del self.running[trial_id]
        self._actors.pop(trial_id, None)
        with _aborting():
            self._ask_tell.tell(result)

    def _fail(self, trial_id: str, reason: str, lost: int = 0) -> None:
        """Tell that a trial has failed, after so many lost workers."""
        attempt = self.running[trial_id]
        seconds = 0.0 if attempt.began is None else time.perf_counter() - attempt.began
        reason += f" (lost with {lost} workers)" if lost > 1 else ""
        trial = attempt.trial.without_weights()
        self._tell(trial_id, TrialResult(trial, TrialState.FAILED, seconds=seconds, error=reason, lost=lost > 0))


class _AskTellSearcher(Searcher):  # type: ignore[misc]
    """Asks for trials. While other trials run, None may mean "none yet": it asks again after the next result."""

    def __init__(self, relay: _Relay, room: Room) -> None:
        super().__init__()
        self.relay, self._room = relay, room
        self._running_at_none: set[str] = set()  # the trials that ran when `ask` last returned None

    @override
    def suggest(self, trial_id: str) -> Any:
        running = self.relay.running
        if running and (
            len(running) >= self._room.trials or (self._running_at_none == running.keys() and not self.relay.waiting)
        ):
            return None
        attempt = self.relay.ask(trial_id)
        if attempt is not None:
            # Elsewhere, as long as another node is alive.
            avoided = attempt.nodes if self._room.nodes.difference(attempt.nodes) else ()
            return {"assignment": _Assignment(attempt, avoided)}
        self._running_at_none = set(running)
        return None if running else self.FINISHED

    @override
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # `_Relay` has the result, or the reason of the failure


def _reason(error: Exception) -> str:
    """Return the error in one line: the first line of Ray's message, and the last, which gives the cause."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = cast(Exception, error.as_instanceof_cause())  # type: ignore[no-untyped-call]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys((lines[0], lines[-1])))}"[:500]


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


class _Worker(tune.Trainable):  # type: ignore[misc]
    """A process that evaluates one trial after the other; a step of Tune is one report."""

    shared: Any  # reference to what `_pickled` made of (evaluator, search context), in the object store
    resources: Mapping[str, float]  # of one trial

    @override
    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the resources of a trial, on a node that has not lost it."""
        avoided = config["assignment"].avoided
        selector: dict[str, Any] = {}
        if avoided:
            selector = {"bundle_label_selector": [{NODE_LABEL: f"!in({','.join(avoided)})"}]}
        return tune.PlacementGroupFactory([dict(cls.resources)], **selector)

    @override
    def setup(self, config: dict[str, Any]) -> None:
        self._evaluator, search_context = _unpickled(ray.get(self.shared))
        self._search_context = dataclasses.replace(search_context, save=self._keep)
        torch.set_num_threads(self._search_context.threads)  # workers that each use all cores slow each other down
        os.environ["OMP_NUM_THREADS"] = str(self._search_context.threads)
        self.reset_config(config)

    @override
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._last_result = None  # would keep the checkpoints of the previous trial in memory
        self._trial: Trial = new_config["assignment"].trial
        self._evaluation = self._evaluator(self._trial, self._search_context)
        self._proceed: bool | None = None
        self._saved: SavedTraining | None = None
        return True

    def begin(self, trial: Trial | None) -> str:
        """Return the id of the node; evaluate the present trial with the weights of `trial`, if it is given."""
        if trial is not None:
            self._evaluation = self._evaluator(trial, self._search_context)
        return str(ray.get_runtime_context().get_node_id())

    def _keep(self, saved: SavedTraining) -> None:
        self._saved = saved

    def end_early(self) -> None:
        """End the present trial at its next step."""
        self._proceed = False

    @override
    def step(self) -> dict[str, Any]:
        try:
            report = self._evaluation.send(self._proceed)
        except StopIteration as ended:
            result: TrialResult = ended.value
        except Exception as error:  # if it left this method, Tune would discard the worker
            logger.debug("trial %d failed", self._trial.number, exc_info=True)
            result = self._failed(error, lost=isinstance(error, OSError) and no_room(error))
        else:
            self._proceed, saved = True, self._saved
            self._saved = None
            return {"report": report, "saved": saved}
        try:
            checkpoints = {label: ray.put(weights) for label, weights in result.checkpoints.items()}
        except ray.exceptions.OutOfDiskError as error:  # neither memory nor disk has room for them
            result, checkpoints = self._failed(error, lost=True), {}
        return {"done": True, "outcome": result.with_checkpoints({}), "checkpoints": checkpoints}

    def _failed(self, error: Exception, *, lost: bool) -> TrialResult:
        """Return the result of a trial with an error; `lost` where that is of this node, which has no room."""
        return TrialResult(self._trial, TrialState.FAILED, error=f"{type(error).__name__}: {error}", lost=lost)

    @override
    def cleanup(self) -> None:
        self._evaluation.close()
