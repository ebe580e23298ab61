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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from ray import tune
from ray.job_config import JobConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from typing_extensions import override

from runners.base import AskTell, Evaluator, Runner, RunnerError
from runners.capacity import fitting_workers, needed_gpus
from runners.config import RunnerConfig
from runners.ray.settings import quiet_tune
from runners.ray.start import check_answers, import_folders
from runners.trial import Trial, TrialResult, TrialState

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

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
            workers = _cluster_capacity(config)
            shared = _shared((self._evaluator, dataclasses.replace(search_context, threads=config.cpus_per_trial)))
            relay, scheduler = _Relay(ask_tell), _FirstCome()  # type: ignore[no-untyped-call]
            try:
                tune.run(
                    type("Worker", (_Worker,), {"shared": shared}),
                    search_alg=ConcurrencyLimiter(_AskTellSearcher(relay), max_concurrent=workers),
                    scheduler=scheduler,
                    num_samples=-1,
                    resources_per_trial={"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial},
                    reuse_actors=True,
                    callbacks=[relay],
                    raise_on_failed_trial=False,
                    storage_path=folder,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                    verbose=0,
                )
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
    workers = int(resources.get("CPU", 0)) // config.cpus_per_trial
    if config.gpus_per_trial:
        workers = min(workers, int(resources.get("GPU", 0) / config.gpus_per_trial + 1e-9))
    if workers < 1:
        raise RunnerError(
            f"a trial needs {config.cpus_per_trial} CPUs and {config.gpus_per_trial:g} GPUs, this Ray has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; lower --cpus-per-trial or --gpus-per-trial"
        )
    return workers


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
    """A trial as Tune sends it to a worker, without weights. Tune writes it into names, so its `repr` is short."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial.started_from(None)

    def __repr__(self) -> str:
        return f"trial {self.trial.number}"


class _Relay(tune.Callback):  # type: ignore[misc]
    """Reports and tells the results that the workers send, and removes them from the results that Tune keeps."""

    def __init__(self, ask_tell: AskTell) -> None:
        self._ask_tell = ask_tell
        self.running: dict[str, Trial] = {}  # by Tune's id
        self._started: dict[str, float] = {}
        self._actors: dict[str, Any] = {}

    def ask(self, trial_id: str) -> Trial | None:
        """Ask for the trial that Tune will call `trial_id`."""
        with _aborting():
            trial = self._ask_tell.ask()
        if trial is not None:
            self.running[trial_id] = trial
        return trial

    @override
    def on_trial_start(self, *_: Any, trial: Any = None, **info: Any) -> None:
        actor = self._actors[trial.trial_id] = trial.temporary_state.ray_actor
        segment = self.running[trial.trial_id].segment
        if segment is not None and segment.start is not None:
            # The weights do not go through Tune, which writes configurations to disk. Calls of one caller run in order,
            # so the weights arrive before the first step.
            actor.continue_from.remote(segment.start)
        self._started[trial.trial_id] = time.perf_counter()

    @override
    def on_trial_result(self, *_: Any, trial: Any = None, result: Any = None, **info: Any) -> None:
        report, outcome, checkpoints = (result.pop(name, None) for name in ("report", "outcome", "checkpoints"))
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
                self._fail(trial.trial_id, error)
                return
            self._tell(trial.trial_id, outcome.with_checkpoints(weights))

    @override
    def on_trial_error(self, *_: Any, trial: Any = None, **info: Any) -> None:
        if trial.trial_id in self.running:
            # Tune passes the error to no callback, but has just written it into the folder of this run.
            self._fail(trial.trial_id, ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))

    def _tell(self, trial_id: str, result: TrialResult) -> None:
        del self.running[trial_id]
        self._actors.pop(trial_id, None)
        with _aborting():
            self._ask_tell.tell(result)

    def _fail(self, trial_id: str, error: Exception) -> None:
        seconds = time.perf_counter() - self._started.get(trial_id, time.perf_counter())
        trial = self.running[trial_id]
        self._tell(trial_id, TrialResult(trial, TrialState.FAILED, seconds=seconds, error=_reason(error)))


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

    def __init__(self, relay: _Relay) -> None:
        super().__init__()
        self._relay = relay
        self._running_at_none: set[str] = set()  # the trials that ran when `ask` last returned None

    @override
    def suggest(self, trial_id: str) -> Any:
        running = self._relay.running
        if running and self._running_at_none == running.keys():
            return None
        trial = self._relay.ask(trial_id)
        if trial is not None:
            return {"assignment": _Assignment(trial)}
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

    @override
    def setup(self, config: dict[str, Any]) -> None:
        self._evaluator, self._search_context = ray.get(self.shared)
        torch.set_num_threads(self._search_context.threads)  # workers that each use all cores slow each other down
        os.environ["OMP_NUM_THREADS"] = str(self._search_context.threads)
        self.reset_config(config)

    @override
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._last_result = None  # would keep the checkpoints of the previous trial in memory
        self._trial: Trial = new_config["assignment"].trial
        self._evaluation = self._evaluator(self._trial, self._search_context)
        self._proceed: bool | None = None
        return True

    def continue_from(self, weights: bytes) -> None:
        """Evaluate the segment of the present trial from these weights."""
        self._evaluation = self._evaluator(self._trial.started_from(weights), self._search_context)

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
            self._proceed = True
            return {"report": report}
        checkpoints = {label: ray.put(weights) for label, weights in result.checkpoints.items()}
        return {"done": True, "outcome": result.with_checkpoints({}), "checkpoints": checkpoints}

    @override
    def cleanup(self) -> None:
        self._evaluation.close()
