"""The main job, end to end, on a tiny network and real digits."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_search import tiny_config

from configs.loading import load as load_config
from runners.config import DataConfig, LatencyConfig, TrainConfig
from runners.data.loading import load_data
from runners.latency.engines import LatencyError
from runners.latency.meter import LatencyMeter, Reading
from runners.latency.prediction import model_building
from runners.training.scoring import accuracy, exact_score
from runners.training.task import Classification
from runners.trial import TrialResult
from search import SearchResult, load, run
from search.callbacks import Progress, SearchCallback
from search.environment import prepare
from search.finalization import finalizer
from search.orchestrator import _warn_of_guessing
from search.planning import forecast_disk
from search.reporting import latency as latency_report
from search.schedulers.stopping import TimeLimit, TimeLimitError
from search.searchers.candidate_space import CandidateSpace
from search.storage.run_folder import DENSE
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.errors import BudgetError, LostError, SlimfrontError
from spaces.space import SpaceConfig

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


TWO_SIZES = LatencyConfig(batch=(1, 8))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, run(tiny_config(folder))


def test_every_front_member_reloads_recounts_and_reevaluates_to_its_figures(
    finished: tuple[Path, SearchResult],
) -> None:
    folder, result = finished
    data = load_data(DataConfig("digits", image_size=8), 0, (3, 8, 8))
    assert len(result.results) == 5
    assert len(result.front) >= 1
    for member in result.front:
        net = load(folder / "front" / f"trial-{member.stem}", trust=True)
        cost = count_cost(net, (3, 8, 8))
        assert cost == member.cost
        assert all(budget.allows(cost) for budget in result.budgets)
        assert accuracy(net, data.val, device=CPU) == member.accuracy
        assert accuracy(net, data.test, device=CPU) == member.test_accuracy
        top5 = [exact_score(net, split, TrainConfig(device="cpu")).top5 for split in (data.val, data.test)]
        assert top5 == [member.val_top5, member.test_top5]


@pytest.mark.usefixtures("without_programs")
def test_one_trial_of_aofp_gives_several_networks_to_the_front(tmp_path: Path) -> None:
    settings = ("theta=0.3", "scope=all", "search_share=0.5", "half_batches=2", "warm_up_batches=0")
    train = TrainConfig(epochs=4, batch_size=32, precision="float32", device="cpu")
    fixed = tuple(f"aofp.{setting}" for setting in settings)
    config = tiny_config(tmp_path / "run", budget=("95%",), method="aofp", set=fixed, train=train, trials=6)
    result, data = run(config), load_data(DataConfig("digits", image_size=8), 0, (3, 8, 8))
    by_trial = Counter(member.trial.number for member in result.front)
    assert max(by_trial.values()) >= 2
    assert len(result.results) == 6
    for network in (network for trial in result.results for network in trial.intermediate_networks):
        inside = network.cost.flops <= result.budgets[0].limit  # type: ignore[union-attr]
        assert bool(network.path) == inside
        assert inside or network not in result.front.members
    for member in result.front:
        net = load(tmp_path / "run" / "front" / f"trial-{member.stem}", trust=True)
        assert count_cost(net, (3, 8, 8)) == member.cost
        assert accuracy(net, data.val, device=CPU) == member.accuracy
        assert accuracy(net, data.test, device=CPU) == member.test_accuracy


class Phases(SearchCallback):
    """Keeps the texts of the phases."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_phase(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.usefixtures("without_programs")
def test_sensitivities_are_measured_once_and_kept_for_a_resumed_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    train = TrainConfig(epochs=0, dense_epochs=1, batch_size=32, precision="float32", device="cpu")
    config = tiny_config(tmp_path / "run", method="l2", set=("l2.allocation=uniform",), train=train, trials=9)
    phases = Phases()
    result = run(config, [phases])
    assert any("sensitivities of 2 groups" in text for text in phases.texts)
    (file,) = (tmp_path / "cache" / "sensitivities").iterdir()
    assert min(json.loads(file.read_text()).values()) > 0
    assert len(result.results) == 9

    measured = file.stat().st_mtime_ns
    run(dataclasses.replace(config, resume=config.out, out="", trials=10))
    assert [other.stat().st_mtime_ns for other in (tmp_path / "cache" / "sensitivities").iterdir()] == [measured]


def test_the_exported_program_runs_without_the_project(finished: tuple[Path, SearchResult]) -> None:
    folder, result = finished
    assert result.chosen is not None
    chosen = folder / result.paths["chosen"]
    program = torch.export.load(str(chosen / "model.pt2")).module()
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(program(images), load(folder, trust=True)(images), rtol=1e-5, atol=1e-5)


def test_the_run_folder_holds_what_the_result_says(finished: tuple[Path, SearchResult]) -> None:
    folder, result = finished
    assert all((folder / path).exists() for path in result.paths.values())
    assert SearchResult.from_json((folder / "result.json").read_text()).to_json() == result.to_json()
    assert "budget" in (folder / "config.yaml").read_text()
    metrics = json.loads((folder / result.paths["chosen"] / "metrics.json").read_text())
    assert metrics["chosen"] is True
    assert metrics["flops"] <= Budget.parse("50%").resolve(result.dense.cost).limit


def test_a_run_takes_the_disk_that_was_forecast(finished: tuple[Path, SearchResult], tmp_path: Path) -> None:
    folder, _ = finished
    environment = prepare(tiny_config(tmp_path / "same"))
    parts = {part.what: part.size for part in forecast_disk(environment, CandidateSpace(environment.problem))}
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert sum(parts.values()) == pytest.approx(taken, rel=0.15)
    checkpoints = sum(file.stat().st_size for file in (folder / "trials").iterdir())
    assert parts["checkpoints of the trials"] == pytest.approx(checkpoints, rel=0.4)
    assert parts["dense weights"] == 0  # cached by that run
    assert parts["dense weights for --resume"] == pytest.approx((folder / DENSE).stat().st_size, rel=0.1)


def test_the_uniform_baseline_ran(finished: tuple[Path, SearchResult]) -> None:
    _, result = finished
    assert any(trial.trial.baseline == "uniform" for trial in result.results)
    assert result.baseline_comparison.baselines >= 1


@pytest.mark.usefixtures("without_programs")
def test_the_same_seed_gives_the_same_search(finished: tuple[Path, SearchResult], tmp_path: Path) -> None:
    _, first = finished
    again = run(tiny_config(tmp_path / "again"))
    assert [(r.widths, r.accuracy) for r in again.results] == [(r.widths, r.accuracy) for r in first.results]


def test_a_folder_of_another_run_is_refused_and_kept(finished: tuple[Path, SearchResult]) -> None:
    folder, _ = finished
    before = (folder / "result.json").read_bytes()
    with pytest.raises(SlimfrontError, match="not empty"):
        run(tiny_config(folder))
    assert (folder / "result.json").read_bytes() == before


def test_a_budget_under_the_minimum_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="smallest network"):
        run(tiny_config(tmp_path / "out", budget=("100flops",)))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_programs")
def test_latency_is_measured_at_the_end_of_a_search_and_is_everywhere_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.latency.timing.TRIES", 1)  # a reading that a busy machine has refused will do as well
    monkeypatch.setattr(finalizer, "LEAST_TIMING", 120.0)  # time for every network of the front there, too
    latency = LatencyConfig("cpu:1thread", batch=(1,))
    result = run(tiny_config(tmp_path / "run", trials=2, latency=latency))
    assert set(result.latency) == {"dense", *[member.label for member in result.front]}
    for member in result.front:
        (reading,) = result.latency[member.label]
        assert reading["conditions"]["device"] == "cpu:1thread"
        assert bool(reading["refused"]) == (reading["seconds"] is None)
        metrics = json.loads((tmp_path / "run" / "front" / f"trial-{member.stem}" / "metrics.json").read_text())
        assert metrics["latency"] == [reading]
        assert (metrics["latency_ms_batch1"] is None) == bool(reading["refused"])
    assert "latency_ms_batch1" in (tmp_path / "run" / "front.csv").read_text()
    assert "ms, batch 1" in (tmp_path / "run" / "report.html").read_text()


def _by_parameters(self: LatencyMeter, network: str, net: torch.nn.Module, batch: int) -> Reading:
    """Measure as a device would that takes a microsecond per parameter."""
    seconds = 1e-6 * batch * sum(parameter.numel() for parameter in net.parameters())
    dense = 1e-6 * batch * sum(parameter.numel() for parameter in self.dense.parameters())
    return Reading(network, self.conditions(batch), "", seconds, 0.99 * seconds, 1.01 * seconds, seconds / dense)


@pytest.fixture
def made_up_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatencyMeter, "read_at", _by_parameters)
    monkeypatch.setattr(model_building, "LAYER_SECONDS", 0.0)
    monkeypatch.setattr(model_building, "HELD_OUT", 2)


@pytest.mark.usefixtures("made_up_device", "without_programs")
def test_a_latency_budget_alone_holds_for_every_network_of_the_front(tmp_path: Path) -> None:
    result = run(tiny_config(tmp_path / "run", budget=("90%latency",), objective="accuracy,latency", latency=TWO_SIZES))
    assert len(result.front) >= 1
    (limit,) = [budget.limit for budget in result.budgets]
    assert limit == pytest.approx(0.9 * 1e-6 * result.dense.cost.params)  # as the made-up device measures it
    seconds = [float(member.timed["seconds"]) for member in result.front if member.timed]
    assert len(seconds) == len(result.front)
    assert seconds == sorted(seconds)
    for member in result.front:
        assert 1.01e-6 * member.cost.params <= limit  # type: ignore[union-attr]
        stored = result.latency[member.label]
        assert [reading["conditions"]["batch"] for reading in stored] == [1, 8]
        assert stored[0] == member.timed
    assert result.config["latency"]["device"] == "cpu:1thread"  # that of the training
    assert result.latency_model["error"]["nets"] == 2
    assert result.axis == "latency"
    assert "measured latency (ms, log scale)" in (tmp_path / "run" / "report.html").read_text()
    again = run(dataclasses.replace(tiny_config(Path()), **_resumed(tmp_path / "run")))  # type: ignore[arg-type]
    assert [member.label for member in again.front] == [member.label for member in result.front]


def _resumed(folder: Path) -> dict[str, object]:
    stored = load_config(folder / "config.yaml")
    return {**{field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}, "resume": str(folder)}


@pytest.mark.usefixtures("made_up_device")
def test_a_latency_budget_under_the_smallest_network_ends_the_search_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"under what the smallest network .* measures on cpu:1thread at batch 1: "):
        run(tiny_config(tmp_path / "out", budget=("0.05ms", "50%"), latency=TWO_SIZES))
    assert not (tmp_path / "out").exists()


def test_an_unknown_latency_device_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="'tpu:0' is not on this machine; there is: cpu:1thread"):
        run(tiny_config(tmp_path / "out", latency=LatencyConfig("tpu:0")))
    assert not (tmp_path / "out").exists()


class _Interrupts(SearchCallback):
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        if progress.finished == 2:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_finished_trials_front_and_report(tmp_path: Path) -> None:
    result = run(tiny_config(tmp_path / "stopped"), [_Interrupts()])
    assert result.interrupted
    assert len(result.results) == 2
    for name in ("result.json", "front.csv", "report.html", "front.png"):
        assert (tmp_path / "stopped" / name).exists()
    assert count_cost(load(tmp_path / "stopped", trust=True), (3, 8, 8)) == result.chosen.cost  # type: ignore[union-attr]


class _Loses(SearchCallback):
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        if progress.finished == 2:
            raise LostError("the Ray cluster at head:6379 is lost")


@pytest.mark.usefixtures("without_programs")
def test_a_lost_cluster_keeps_the_front_and_says_how_to_go_on(tmp_path: Path) -> None:
    told = r"the Ray cluster at head:6379 is lost; the front .* written, python -m search --resume \S*lost goes on"
    with pytest.raises(LostError, match=told):
        run(tiny_config(tmp_path / "lost"), [_Loses()])
    result = json.loads((tmp_path / "lost" / "result.json").read_text())
    assert result["lost"] == "the Ray cluster at head:6379 is lost"
    assert len(result["results"]) == 2
    assert result["dense"]["test_accuracy"] is not None
    assert (tmp_path / "lost" / "front.csv").read_text().count("\n") > 1
    page = (tmp_path / "lost" / "report.html").read_text()
    assert "Missing baseline: " in page


class _Clock(SearchCallback):
    """Moves the time of a search to an hour after its second trial."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        self.now = 3600.0 if progress.finished == 2 else self.now


@pytest.mark.usefixtures("without_programs")
def test_a_time_limit_ends_a_search_with_a_normal_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("search.orchestrator.TimeLimit", lambda text, seconds: TimeLimit(text, seconds, clock))
    result = run(tiny_config(tmp_path / "run", time_limit="30m"), [clock])
    assert [trial.state for trial in result.results] == ["complete", "complete"]
    assert result.time_limited
    assert not result.interrupted
    assert all(member.test_accuracy is not None for member in result.front)
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (stored["time_limited"], stored["config"]["time_limit"]) == (True, "30m")
    words = "The time limit of 30m ended the search after 2 finished trials."
    assert words in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("without_programs")
def test_the_uniform_baseline_is_finished_when_the_limit_is_over_before_it(
    finished: tuple[Path, SearchResult], tmp_path: Path
) -> None:
    _, same_dense_net = finished
    result = run(tiny_config(tmp_path / "run", time_limit="0.001s"))
    assert [(trial.trial.baseline, trial.state) for trial in result.results] == [("uniform", "complete")]
    assert result.chosen is not None
    assert result.time_limited
    assert result.dense.val_accuracy == same_dense_net.dense.val_accuracy


def test_a_limit_shorter_than_the_dense_training_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TimeLimitError, match="limit of 0.001s was over after epoch 1 of 3 of the dense training"):
        run(tiny_config(tmp_path / "out", time_limit="0.001s"))
    assert not (tmp_path / "out").exists()


def _command(folder: Path, *flags: str) -> list[str]:
    base = "--budget 50% --model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32"
    base += " --device cpu --latency-device none"
    command = [sys.executable, "-m", "search", *base.split(), "--out", str(folder)]
    return [*command, *flags]


def _environment(cache: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "SLIMFRONT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def test_ctrl_c_ends_a_search_with_ray_and_keeps_its_trials(tmp_path: Path) -> None:
    command = _command(tmp_path / "run", "--trials", "500", "--runner", "ray", "--method", "l2")
    process = subprocess.Popen(
        command, env=_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "3/500" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    for words in ("are kept", "Pareto front", "mlflow ui --backend-store-uri"):
        assert words in rest
    results = SearchResult.from_json((tmp_path / "run" / "result.json").read_text()).results
    assert len(results) >= 3
    assert {result.state for result in results} == {"complete"}


@pytest.mark.usefixtures("without_programs")
def test_screened_trials_are_in_the_result_and_in_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = TrainConfig(batch_size=64, dense_epochs=1, precision="float32", device="cpu")
    only = SpaceConfig(only=("layers.stage3.*", "layers.stage2.*"))  # more groups than tiny nets have
    result = run(
        tiny_config(
            folder, model="resnet20", method="l1", budget=("90%",), trials=5, screen="3", space=only, train=train,
            lowest_fraction=1.0, allocation="search",
        )
    )  # fmt: skip
    screened = [trial for trial in result.results if "screened" in trial.note]
    assert len(result.results) == 5
    assert screened
    for trial in screened:
        assert 2 <= trial.note["screened"] <= 3
        # The same cut, but for the images of its BatchNorm statistics.
        assert trial.curve[0].proxy == pytest.approx(trial.note["proxy"], abs=0.05)
    assert f"Screening: {len(screened)} of 5 trials were the best of" in (folder / "report.html").read_text()
    assert SearchResult.from_json((folder / "result.json").read_text()).screening_audit == result.screening_audit


def test_a_machine_that_stays_busy_is_asked_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def busy(self: LatencyMeter, network: str, net: torch.nn.Module, batch: int) -> Reading:
        asked.append(network)
        return Reading(network, self.conditions(batch), "the machine was busy", tries=4)

    monkeypatch.setattr(LatencyMeter, "read_at", busy)
    monkeypatch.setattr(finalizer, "GIVE_UP", 1)
    monkeypatch.setattr(latency_report, "GIVE_UP", 1)
    result = run(tiny_config(tmp_path / "run", latency=LatencyConfig(), trials=12))
    assert len(result.front) > 1
    assert len(asked) == 2
    assert asked[0] == "dense"
    unmeasured = f"{len(result.front) - 1} network"
    assert any(
        line.startswith(unmeasured) and "not measured" in line for line in latency_report.latency_statements(result)
    )


def test_timing_ends_with_its_share_of_the_time_and_begins_with_the_chosen_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second network is begun here, where the share is over at once after the first."""
    asked = []

    def slow(self: LatencyMeter, network: str, _net: torch.nn.Module, batch: int) -> Reading:
        asked.append(network)
        time.sleep(0.2 * (network != "dense"))
        return Reading(network, self.conditions(batch), seconds=1e-3, low=9e-4, high=2e-3, ratio=0.5)

    monkeypatch.setattr(LatencyMeter, "read_at", slow)
    monkeypatch.setattr(finalizer, "LEAST_TIMING", 0.1)
    monkeypatch.setattr(finalizer, "TIMING_SHARE", 0.0)
    result = run(tiny_config(tmp_path / "run", latency=LatencyConfig(), trials=12))
    assert len(result.front) > 1
    assert asked == ["dense", result.chosen.label]
    assert any("timing takes a tenth" in line for line in latency_report.latency_statements(result))


@pytest.mark.parametrize(
    ("weighted", "advice"), [(False, "raise --dense-epochs"), (True, "--weights must be of these")]
)
def test_a_dense_network_that_guesses_is_told_with_what_can_be_done(weighted: bool, advice: str, caplog) -> None:
    data = SimpleNamespace(num_classes=10)
    environment = SimpleNamespace(data=data, task=Classification(), weighted=weighted)
    _warn_of_guessing(0.25, environment)
    assert not caplog.records
    _warn_of_guessing(0.125, environment)
    assert "12.5% on validation, close to guessing among 10 classes" in caplog.text
    assert advice in caplog.text
