"""What the search needs of Ray and Tune that they do not offer in public; the only file that uses it.

`tests/runners/ray/test_internals.py` holds the contract, and pyproject.toml the last version that was tried.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.job_config import JobConfig
from ray.tune.schedulers import FIFOScheduler
from typing_extensions import override


class FirstCome(FIFOScheduler):  # type: ignore[misc]
    """Runs trials in the order in which they come, loses a worker whatever ended it, and can end the run at once.

    Tune itself cleans up only after an Exception, and then waits for running epochs. It would end the whole run when
    Ray ends a worker for want of memory, because the error then does not say that it is the worker that has died.
    """

    _controller: Any = None

    @override
    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._controller is None:
            self._controller = tune_controller
            manager = tune_controller._actor_manager
            manager._actor_task_failed = _losing_the_worker(manager._actor_task_failed)

    def release_workers(self) -> None:
        """Kill every worker and release the resources that are held or requested."""
        if self._controller is not None:
            self._controller._actor_manager.cleanup()


def _losing_the_worker(task_failed: Callable[..., None]) -> Callable[..., None]:
    """Return this method of Tune's with errors of Ray that it does not know taken for the death of the worker."""

    def failed(*, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
            exception = RayActorError(error_msg=str(exception).partition("\n")[0])
        task_failed(tracked_actor_task=tracked_actor_task, exception=exception)

    return failed


def importing_from(folders: Sequence[str]) -> JobConfig:
    """Return the settings of a job whose workers, on this machine, search these folders for modules too."""
    return JobConfig(_py_driver_sys_path=list(folders))


def reread_token() -> None:
    """Have Ray read again the environment variables of authentication, which it has kept since it was imported."""
    Config.initialize("")  # the mode first: a thread of Ray that still runs must not look for a token that has gone
    AuthenticationTokenLoader.instance().reset_cache()


def find_cluster() -> str:
    """Return the "host:port" of the head to which Ray's address "auto" leads.

    Raises:
        ConnectionError: no cluster runs on this machine, and RAY_ADDRESS names none.
    """
    return str(canonicalize_bootstrap_address("auto"))


def present_token(address: str) -> None:
    """Greet the head of a cluster at "host:port" with the token of this process, if it has one.

    Raises:
        AuthenticationError: the head refuses it, or the environment demands a token and there is none.
    """
    ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one Ray's compiled part ends the process
    GcsClient(address=address)


def actor_of(tune_trial: Any) -> Any:
    """Return the handle of the worker of a trial that Tune has started."""
    return tune_trial.temporary_state.ray_actor


def error_of(tune_trial: Any) -> Exception:
    """Return the error that ended a trial: Tune passes it to no callback, but writes it into the folder of its run.

    It pickles errors of tasks and actors only. Others, such as a worker that Ray ended because its node was short of
    memory, are there as text, and are returned as a RayError.
    """
    if tune_trial.pickled_error_file is None:
        text = Path(tune_trial.error_file).read_text(encoding="utf-8") if tune_trial.error_file else ""
        return ray.exceptions.RayError("\n".join(text.splitlines()[1:]) or "Ray gave no reason")
    error: Exception = ray.cloudpickle.loads(Path(tune_trial.pickled_error_file).read_bytes())
    return error
