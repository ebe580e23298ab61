"""Run trials on Ray Tune, on this machine or on a cluster; the only file that imports ray.

Tune places the workers and keeps them between trials. The AskTell in this process decides what to try next and when a
trial stops, and keeps the results: a searcher asks it, a callback reports and tells. Tune's own records are deleted.
"""

import contextlib
import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.job_config import JobConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from typing_extensions import override

from runners.base import AskTell, Evaluator, Runner, RunnerError
from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig
from runners.ray.settings import quiet_tune
from runners.ray.start import check_answers, import_folders
from runners.trial import SavedTraining, Trial, TrialResult, TrialState

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

ROOM_SECONDS = 2.0
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
        with quiet_tune(), tempfile.TemporaryDirectory(prefix="slimfront-ray-") as folder, connected(config):
            _cluster_capacity(config)
            room = _Room(config)
            shared = _shared((self._evaluator, dataclasses.replace(search_context, threads=config.cpus_per_trial)))
            relay = _Relay(ask_tell, config.max_retries, search_context.trial_timeout)
            scheduler = _FirstCome()  # type: ignore[no-untyped-call]
            resources = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
            try:
                tune.run(
                    type("Worker", (_Worker,), {"shared": shared, "resources": resources}),
                    search_alg=_AskTellSearcher(relay, room),
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                    callbacks=[relay],
                    raise_on_failed_trial=False,
                    storage_path=folder,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                    verbose=0,
                )
                room.request(0)
            except BaseException as error:
                scheduler.release_workers()
                if isinstance(error, _Abort):
                    raise error.args[0] from None
                raise


def cluster_workers(config: RunnerConfig) -> int:
    """Connect to the cluster of `config.ray_address` and return how many trials it has room for at once."""
    with connected(config):
        return _cluster_capacity(config)


@contextlib.contextmanager
def connected(config: RunnerConfig) -> Iterator[None]:
    """Connect to Ray inside the block: the caller's, the cluster at the configured address, or one started here."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    options["job_config"] = JobConfig(_py_driver_sys_path=import_folders())
    if config.ray_address:
        options |= {"address": config.ray_address}
    else:
        workers = max(1, fitting_workers(config))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": workers * config.cpus_per_trial}
    try:
        try:
            check_answers(config.ray_address)
            ray.init(**options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            problem = (
                f"no Ray cluster answers at {config.ray_address!r}" if config.ray_address else "Ray does not start"
            )
            raise RunnerError(f"{problem} ({_reason(error)}); check --ray-address, or take --runner local") from error
        yield
    finally:
        ray.shutdown()  # also after a start that was interrupted


def _cluster_capacity(config: RunnerConfig) -> int:
    """Return how many trials the connected Ray has room for; raise a RunnerError if there is room for none."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = _fitting(resources, config)
    if workers < 1:
        raise RunnerError(
            f"a trial needs {config.cpus_per_trial} CPUs and {config.gpus_per_trial:g} GPUs, this Ray has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; lower --cpus-per-trial or --gpus-per-trial"
        )
    return workers


def _fitting(resources: Mapping[str, float], config: RunnerConfig) -> int:
    """Return how many trials fit into these resources."""
    workers = int(resources.get("CPU", 0)) // config.cpus_per_trial
    if config.gpus_per_trial:
        workers = min(workers, int(resources.get("GPU", 0) / config.gpus_per_trial + 1e-9))
    return workers


class _Room:
    """How many trials the connected Ray has room for now: nodes may join and leave.

    On a cluster it asks Ray's autoscaler for the room of one trial more, as long as it is asked itself.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self._config = config
        self._workers, self._until = 0, 0.0

    def __call__(self) -> int:
        """Return the number of trials, which is at most `ROOM_SECONDS` old."""
        if time.monotonic() < self._until:
            return self._workers
        before = self._workers
        self._workers = _fitting(ray.cluster_resources(), self._config)  # type: ignore[no-untyped-call]
        self._until = time.monotonic() + ROOM_SECONDS
        if self._config.ray_address and self._workers != before:
            self.request(self._workers + 1)
        return self._workers

    def request(self, trials: int) -> None:
        """Ask the autoscaler for room for so many trials in all."""
        if self._config.ray_address:
            trial = {"CPU": self._config.cpus_per_trial, "GPU": self._config.gpus_per_trial}
            bundle = {name: amount for name, amount in trial.items() if amount}
            request_resources(bundles=[bundle] * trials)


def _shared(content: Any) -> Any:
    """Return Ray's reference to what all workers need; raise a RunnerError where it cannot be sent."""
    try:
        return ray.put(content)
    except TypeError as error:  # an object that cannot be pickled; Ray's own text shows all that is sent
        reason = error.__cause__ or error.__context__ or error
        raise RunnerError(
            f"the images or the network cannot be sent to workers ({reason}); take --runner local, or open "
            "files when an image is read"
        ) from error


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

    def __init__(self, attempt: "_Attempt") -> None:
        self.trial = attempt.trial.without_weights()
        self.avoided = attempt.avoidable()
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
        node: reference to the id of the present node.
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

    def avoidable(self) -> tuple[str, ...]:
        """Return the ids of the nodes that have lost the trial, where another node is alive; else none."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if self.nodes else set()
        return self.nodes if alive - set(self.nodes) else ()


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
        actor = self._actors[trial.trial_id] = trial.temporary_state.ray_actor
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
            # Tune passes the error to no callback, but has just written it into the folder of this run.
            error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
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
        with contextlib.suppress(ray.exceptions.RayError):  # the worker may have ended before it answered
            attempt.nodes += (ray.get(attempt.node, timeout=0),)
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


class _FirstCome(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in the order in which they come, and can end the run at once.

    Tune itself cleans up only after an Exception, and then waits for running epochs.
    """

    _controller: Any = None

    @override
    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._controller = tune_controller

    def release_workers(self) -> None:
        """Kill every worker and release the resources that are held or requested."""
        if self._controller is not None:
            self._controller._actor_manager.cleanup()


class _AskTellSearcher(Searcher):  # type: ignore[misc]
    """Asks for trials. While other trials run, None may mean "none yet": it asks again after the next result."""

    def __init__(self, relay: _Relay, room: _Room) -> None:
        super().__init__()
        self._relay, self._room = relay, room
        self._running_at_none: set[str] = set()  # the trials that ran when `ask` last returned None

    @override
    def suggest(self, trial_id: str) -> Any:
        running = self._relay.running
        if running and (
            len(running) >= self._room() or (self._running_at_none == running.keys() and not self._relay.waiting)
        ):
            return None
        attempt = self._relay.ask(trial_id)
        if attempt is not None:
            return {"assignment": _Assignment(attempt)}
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

    shared: Any  # reference to (evaluator, search context) in the object store
    resources: Mapping[str, float]  # of one trial

    @override
    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the resources of a trial, on a node that has not lost it."""
        avoided = config["assignment"].avoided
        selector = {"bundle_label_selector": [{NODE_LABEL: f"!in({','.join(avoided)})"}]} if avoided else {}
        return tune.PlacementGroupFactory([dict(cls.resources)], **selector)

    @override
    def setup(self, config: dict[str, Any]) -> None:
        self._evaluator, search_context = ray.get(self.shared)
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
            result = TrialResult(self._trial, TrialState.FAILED, error=f"{type(error).__name__}: {error}")
        else:
            self._proceed, saved = True, self._saved
            self._saved = None
            return {"report": report, "saved": saved}
        checkpoints = {label: ray.put(weights) for label, weights in result.checkpoints.items()}
        return {"done": True, "outcome": result.with_checkpoints({}), "checkpoints": checkpoints}

    @override
    def cleanup(self) -> None:
        self._evaluation.close()
