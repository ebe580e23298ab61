"""Trials and results between Tune and the AskTell of the search; a trial whose worker is lost is begun again."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray
from ray import tune
from ray.tune.search import Searcher
from typing_extensions import override

from runners.base import AskTell
from runners.ray.internals import actor_of, error_of
from runners.ray.room import Room
from runners.trial import Trial, TrialResult, TrialState

logger = logging.getLogger(__name__)


class Abort(BaseException):
    """Carries an error of the AskTell through Tune, which would treat an Exception as an error of the trial."""


@contextlib.contextmanager
def aborting() -> Iterator[None]:
    """Turn an Exception of the block into an `Abort`."""
    try:
        yield
    except Exception as error:
        raise Abort(error) from error


class Assignment:
    """A trial as Tune sends it to a worker, without weights. Tune writes it into names, so its `repr` is short.

    Attributes:
        avoided: ids of nodes that have lost the trial, on which it must not run.
        heavy: whether the weights follow.
    """

    def __init__(self, attempt: "Attempt", avoided: Sequence[str]) -> None:
        self.trial = attempt.trial.without_weights()
        self.avoided = avoided
        self.heavy = self.trial != attempt.trial

    def __repr__(self) -> str:
        """Return a short name."""
        return f"trial {self.trial.number}"


@dataclasses.dataclass
class Attempt:
    """A trial that a worker has, or is to have.

    Attributes:
        lost: how many workers it was lost with.
        nodes: ids of their nodes.
        began: time on the performance counter when it was first begun; None before.
        node: reference to the id of the present node; None while no worker has it.
        heard: time of the last report or saved state, or of the start; None while no worker has it, or once its worker
            was ended.
        hung: how many workers were ended because they were silent.
    """

    trial: Trial
    lost: int = 0
    nodes: tuple[str, ...] = ()
    began: float | None = None
    node: Any = None
    heard: float | None = None
    hung: int = 0


class Relay(tune.Callback):  # type: ignore[misc]
    """Reports and tells the results that the workers send, and removes them from the results that Tune keeps.

    A trial whose worker was lost is begun again from its last saved state, and so is one whose worker hangs, once.

    Args:
        max_retries: how often one trial is.
        timeout: seconds that a trial may go without a report or a saved state before its worker is ended.
    """

    def __init__(self, ask_tell: AskTell, max_retries: int, timeout: float) -> None:
        self._ask_tell, self._max_retries, self._timeout = ask_tell, max_retries, timeout
        self.running: dict[str, Attempt] = {}  # by Tune's id
        self.waiting: list[Attempt] = []  # lost, to be begun again
        self._actors: dict[str, Any] = {}

    def ask(self, trial_id: str) -> Attempt | None:
        """Return the trial that Tune will call `trial_id`: one that was lost, or a new one."""
        if self.waiting:
            attempt = self.waiting.pop(0)
        else:
            with aborting():
                trial = self._ask_tell.ask()
            if trial is None:
                return None
            attempt = Attempt(trial)
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
            with aborting():
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
                self._fail(trial.trial_id, one_line(error))

    def _lose(self, tune_trial: Any, error: Exception) -> None:
        """Have a trial begun again whose worker was lost; after `max_retries` of them it has failed."""
        attempt = self.running[tune_trial.trial_id]
        number, lost, reason = attempt.trial.number, attempt.lost + 1, one_line(error)
        if attempt.hung and attempt.heard is None:
            reason = f"no sign of life for {self._timeout:.0f} s, the worker was ended; see --trial-timeout"
        if lost > self._max_retries or attempt.hung > 1:
            self._fail(tune_trial.trial_id, reason, lost)
            return
        del self.running[tune_trial.trial_id]
        self._actors.pop(tune_trial.trial_id, None)
        logger.warning(
            "trial %d lost its worker (%s); it is tried again, %s (%d of %d retries)",
            number,
            reason,
            _start_of(attempt.trial),
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
        with aborting():
            self._ask_tell.tell(result)

    def _fail(self, trial_id: str, reason: str, lost: int = 0) -> None:
        """Tell that a trial has failed, after so many lost workers."""
        attempt = self.running[trial_id]
        seconds = 0.0 if attempt.began is None else time.perf_counter() - attempt.began
        reason += f" (lost with {lost} workers)" if lost > 1 else ""
        trial = attempt.trial.without_weights()
        self._tell(trial_id, TrialResult(trial, TrialState.FAILED, seconds=seconds, error=reason, lost=lost > 0))


class AskTellSearcher(Searcher):  # type: ignore[misc]
    """Asks for trials. While other trials run, None may mean "none yet": it asks again after the next result."""

    def __init__(self, relay: Relay, room: Room) -> None:
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
            return {"assignment": Assignment(attempt, avoided)}
        self._running_at_none = set(running)
        return None if running else self.FINISHED

    @override
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # `Relay` has the result, or the reason of the failure


def _start_of(trial: Trial) -> str:
    """Return in words where a trial that is tried again begins."""
    saved = trial.saved
    if saved is None:
        return "from its beginning"
    finished = saved.curve[-1].epoch if saved.curve else trial.segment.trained if trial.segment else 0
    return f"from within epoch {finished + 1}" if saved.within_epoch else f"from epoch {finished}"


def one_line(error: Exception) -> str:
    """Return the error in one line: the first line of Ray's message, and the last, which gives the cause."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = cast(Exception, error.as_instanceof_cause())  # type: ignore[no-untyped-call]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys((lines[0], lines[-1])))}"[:500]
