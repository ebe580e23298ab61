"""The contract of what Ray and Tune do not offer in public: a version that breaks it is noticed here, by its name."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment.trial import Trial, _TemporaryTrialState

from runners.ray.internals import FirstCome, error_of


def test_the_controller_can_end_its_workers() -> None:
    assert "self._actor_manager = " in inspect.getsource(TuneController.__init__)
    assert "self._actor_manager.cleanup()" in inspect.getsource(TuneController)


def test_a_worker_that_ray_ends_for_want_of_memory_is_lost_and_the_run_goes_on() -> None:
    seen: list[Exception] = []
    manager = SimpleNamespace(_actor_task_failed=lambda tracked_actor_task, exception: seen.append(exception))
    scheduler = FirstCome()
    for _ in range(2):
        scheduler.on_trial_add(SimpleNamespace(_actor_manager=manager), None)
    own = RayTaskError("train", "", ValueError("not today"))
    for error in (OutOfMemoryError("the node is low on memory\nmuch advice"), own):
        manager._actor_task_failed(tracked_actor_task=None, exception=error)
    assert isinstance(seen[0], RayActorError)
    assert str(seen[0]) == "the node is low on memory"
    assert seen[1] is own
    calls = re.findall(r"self\._actor_task_failed\(\s*(\w+)=\w+, (\w+)=", inspect.getsource(RayActorManager))
    assert calls == [("tracked_actor_task", "exception")]


def test_a_trial_has_its_worker_and_the_file_of_its_error() -> None:
    assert _TemporaryTrialState().ray_actor is None
    assert {"pickled_error_file", "error_file"} <= set(dir(Trial))


def test_an_error_that_tune_keeps_as_text_alone_is_one_of_ray(tmp_path: Path) -> None:
    trial = Trial("Worker", stub=True)
    trial.storage = SimpleNamespace(trial_driver_staging_path=str(tmp_path))
    trial.handle_error(OutOfMemoryError("Task was killed due to the node running low on memory.\nMore memory helps"))
    error = error_of(trial)
    assert isinstance(error, RayError)
    assert str(error).splitlines() == ["Task was killed due to the node running low on memory.", "More memory helps"]


def test_no_other_file_uses_what_is_not_public() -> None:
    names = ("_actor_manager", "temporary_state", "pickled_error_file", "ray._private", "ray._raylet")
    files = {file.name for file in Path("runners").rglob("*.py") if any(name in file.read_text() for name in names)}
    assert files == {"internals.py"}
