"""What only Ray can do: lose workers, and keep them between trials."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from pruning.base import Goal
from runners.base import Evaluation, RunnerError
from runners.config import RunnerConfig
from runners.evaluation.context import SearchContext
from runners.ray.objects import pickled
from runners.ray.relay import Relay
from runners.ray.runner import RayRunner, cluster_workers
from runners.trial import EpochReport, SavedTraining, Trial, TrialResult, TrialState

pytestmark = pytest.mark.usefixtures("ray_of_two")


@pytest.fixture(scope="module", autouse=True)
def _sent_by_value() -> Iterator[None]:
    """Let workers have the functions of this file, which they cannot import."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def by_settings(trial: Trial, search_context: SearchContext) -> Evaluation:
    if trial.settings.get("raises"):
        raise ValueError("not today")
    if trial.settings.get("dies"):
        os._exit(1)
    if trial.settings.get("waits_for"):
        return TrialResult(trial, TrialState.COMPLETE, accuracy=0.5, note={"pss": pss_beside(trial, search_context)})
    if trial.settings.get("hangs"):
        time.sleep(600)
    if trial.saved is not None:
        return TrialResult(
            trial, TrialState.COMPLETE, accuracy=0.6, curve=trial.saved.curve, note={"from": trial.saved}
        )
    if trial.settings.get("dies_within"):
        search_context.save(SavedTraining((b"state",), (), (), 1.0, 1.0, within_epoch=True))
        time.sleep(1.0)  # of an epoch, during which the state crosses the network
        os._exit(1)
    if trial.settings.get("dies_once"):
        report = EpochReport(trial.number, 3, 0.5, 0.0)
        search_context.save(SavedTraining((b"state",), (report,), (), 1.0, 1.0))
        yield report
        os._exit(1)
    yield EpochReport(trial.number, 0, 0.5, 0.0)
    for _ in range(int(trial.settings.get("saves", 0))):  # in all longer than a trial may be silent
        time.sleep(1.0)
        search_context.save(SavedTraining((b"state",), (), (), 1.0, 1.0, within_epoch=True))
    time.sleep(trial.settings.get("sleeps", 0.0))
    note = {"process": os.getpid(), "folder": os.getcwd()}
    return TrialResult(trial, TrialState.COMPLETE, accuracy=0.5, note=note, checkpoint=b"weights")


def pss_beside(trial: Trial, search_context: SearchContext) -> int:
    """Read all images; return the proportional set size of this process, in bytes, while the other trials' run, too."""
    assert search_context.data.train.images.sum() >= 0
    waiting = Path(os.environ["SLIMFRONT_CACHE"]) / "waiting"
    deadline = time.monotonic() + 60
    for step in ("read", "measured"):
        (waiting / f"{step}-{trial.number}").touch()
        while len(list(waiting.glob(f"{step}-*"))) < trial.settings["waits_for"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if step == "read":
            pss = re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
            assert pss
    return int(pss[1]) * 1024


class Desk:
    def __init__(self, *settings: dict[str, float]) -> None:
        self.trials = [Trial(number, "l2", Goal(), chosen) for number, chosen in enumerate(settings)]
        self.told: dict[int, TrialResult] = {}

    def ask(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def report(self, report: EpochReport) -> bool:
        return True

    def tell(self, result: TrialResult) -> None:
        assert result.trial.number not in self.told
        self.told[result.trial.number] = result


@pytest.fixture(scope="module")
def told(ray_of_two: None, tiny_search_context: SearchContext) -> dict[int, TrialResult]:
    """What became of good trials, one that raises, one whose workers die, and one that dies once after epoch 3."""
    desk = Desk({}, {"raises": 1}, {}, {"dies": 1}, {}, {"dies_once": 1}, *[{}] * 4)
    before = dict(os.environ)
    RayRunner(RunnerConfig(), by_settings).run(desk, tiny_search_context)
    assert dict(os.environ) == before
    return desk.told


def test_a_trial_that_raises_or_loses_every_worker_fails_alone(told: dict[int, TrialResult]) -> None:
    failed = [number for number, result in told.items() if result.state is TrialState.FAILED]
    assert sorted(told) == list(range(10))
    assert sorted(failed) == [1, 3]


def test_failures_give_their_reason_in_one_line(told: dict[int, TrialResult]) -> None:
    assert told[1].error == "ValueError: not today"
    assert told[3].error.startswith("ActorDiedError: The actor died unexpectedly")
    assert told[3].error.endswith("(lost with 3 workers)")
    assert "\n" not in told[3].error
    assert (told[1].lost, told[3].lost) == (False, True)


def test_a_trial_that_loses_its_worker_once_goes_on_from_its_last_saved_epoch(told: dict[int, TrialResult]) -> None:
    assert (told[5].state, told[5].lost) == (TrialState.COMPLETE, False)
    assert [report.epoch for report in told[5].curve] == [3]
    assert told[5].note["from"].states == (b"state",)


def test_a_trial_goes_on_within_an_epoch_and_its_saved_states_are_a_sign_of_life(
    ray_of_two: None, tiny_search_context: SearchContext, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk({"dies_within": 1}, {"saves": 6})
    with caplog.at_level(logging.WARNING, "runners.ray.relay"):
        RayRunner(RunnerConfig(), by_settings).run(desk, dataclasses.replace(tiny_search_context, trial_timeout=5.0))
    assert [desk.told[number].state for number in (0, 1)] == [TrialState.COMPLETE] * 2
    assert desk.told[0].note["from"] == SavedTraining((b"state",), (), (), 1.0, 1.0, within_epoch=True)
    assert "trial 0 lost its worker" in caplog.text
    assert "it is tried again, from within epoch 1 (1 of 2 retries)" in caplog.text
    assert "trial 1" not in caplog.text


@pytest.mark.slow
def test_a_trial_whose_worker_dies_while_it_starts_is_tried_again(tiny_search_context: SearchContext, tmp_path) -> None:
    class DiesOnce:
        def __setstate__(self, state: dict[str, object]) -> None:
            with contextlib.suppress(FileExistsError):
                (tmp_path / "died").touch(exist_ok=False)
                os._exit(1)

        def __getstate__(self) -> dict[str, object]:
            return {"name": "any"}

        def __call__(self, trial: Trial, search_context: SearchContext) -> Evaluation:
            return by_settings(trial, search_context)

    desk = Desk({})
    RayRunner(RunnerConfig(), DiesOnce()).run(desk, tiny_search_context)
    assert (tmp_path / "died").exists()
    assert desk.told[0].state is TrialState.COMPLETE


def test_weights_come_back(told: dict[int, TrialResult]) -> None:
    assert told[0].checkpoint == b"weights"


def test_workers_are_kept_between_trials_and_stay_in_the_folder(told: dict[int, TrialResult]) -> None:
    finished = [result for result in told.values() if result.state is TrialState.COMPLETE]
    whole = [result for result in finished if "process" in result.note]
    assert len({result.note["process"] for result in whole}) <= 2 + 4  # two, and one in place of every lost one
    assert {result.note["folder"] for result in whole} == {os.getcwd()}


def test_a_trial_whose_worker_was_lost_before_it_had_started_is_begun_again() -> None:
    relay = Relay(Desk({}), max_retries=2, timeout=60.0)
    relay.ask("one")
    relay.on_trial_error(trial=SimpleNamespace(trial_id="one", pickled_error_file=None, error_file=None))
    assert [(attempt.lost, attempt.nodes) for attempt in relay.waiting] == [(1, ())]


def test_a_trial_that_hangs_is_tried_once_more_and_fails_by_name(tiny_search_context: SearchContext) -> None:
    desk = Desk({"hangs": 1})
    context = dataclasses.replace(tiny_search_context, trial_timeout=2.0)
    RayRunner(RunnerConfig(max_retries=5), by_settings).run(desk, context)
    assert desk.told[0].error == (
        "no sign of life for 2 s, the worker was ended; see --trial-timeout (lost with 2 workers)"
    )
    assert desk.told[0].lost


@pytest.mark.parametrize(("error", "running"), [(OSError("disk full"), 2), (KeyboardInterrupt(), 1)])
def test_an_error_of_the_study_and_an_interrupt_stop_the_workers_at_once(
    tiny_search_context: SearchContext, error: BaseException, running: int
) -> None:
    class Broken(Desk):
        def report(self, report: EpochReport) -> bool:
            raise error

    desk = Broken(*[{"sleeps": 60}] * running)
    with pytest.raises(type(error)):
        RayRunner(RunnerConfig(), by_settings).run(desk, tiny_search_context)
    begin = time.perf_counter()
    while ray.available_resources().get("CPU") != 2:
        assert time.perf_counter() - begin < 30
        time.sleep(0.05)
    assert desk.told == {}


def test_the_cluster_says_how_many_trials_it_has_room_for() -> None:
    assert cluster_workers(RunnerConfig(cpus_per_trial=1)) == 2
    assert cluster_workers(RunnerConfig(cpus_per_trial=2)) == 1


def test_no_room_for_a_single_trial_is_a_clear_error(tiny_search_context: SearchContext) -> None:
    with pytest.raises(RunnerError, match="a trial needs 3 CPUs and 0 GPUs, this Ray has 2 and 0; lower"):
        RayRunner(RunnerConfig(cpus_per_trial=3), by_settings).run(Desk({}), tiny_search_context)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:2"])
def test_a_cluster_that_does_not_answer_is_a_clear_error_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(RunnerError, match=f"no Ray cluster answers at '{address}'"):
        cluster_workers(RunnerConfig(ray_address=address))


def test_a_cluster_that_ray_is_to_find_is_tried_before_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for 20 s"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # counts more than what Ray finds on this machine
    with pytest.raises(RunnerError, match=r"no Ray cluster answers at 'auto' \(ConnectionRefusedError"):
        cluster_workers(RunnerConfig(ray_address="auto"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux counts shared pages in shares")
def test_the_workers_of_a_node_share_one_copy_of_the_images(tiny_search_context: SearchContext) -> None:
    waiting = Path(os.environ["SLIMFRONT_CACHE"]) / "waiting"

    def pss(images: torch.Tensor) -> int:
        data = tiny_search_context.data
        train = dataclasses.replace(data.train, images=images, labels=torch.zeros(len(images), dtype=torch.long))
        context = dataclasses.replace(tiny_search_context, data=dataclasses.replace(data, train=train))
        waiting.mkdir()
        desk = Desk({"waits_for": 2}, {"waits_for": 2})
        RayRunner(RunnerConfig(), by_settings).run(desk, context)
        shutil.rmtree(waiting)
        return sum(int(result.note["pss"]) for result in desk.told.values())

    many = torch.ones(200_000, 1, 32, 32, dtype=torch.uint8)
    copies = (pss(many) - pss(many[:100].clone())) / many.nbytes
    print(f"{copies:.2f} copies of {many.nbytes:,} bytes in 2 workers")
    assert copies <= 1.3


def test_images_that_cannot_be_sent_to_workers_are_refused_with_the_way_out(tmp_path) -> None:
    (tmp_path / "images.bin").write_bytes(b"")
    with (tmp_path / "images.bin").open("rb") as file:
        with pytest.raises(RunnerError, match=r"cannot be sent to workers \(cannot pickle .*; take --runner local"):
            pickled(file)
