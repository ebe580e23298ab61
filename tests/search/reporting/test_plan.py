"""The table before a search, and the page of `python -m search plan`."""

import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_space import chain
from made_up_search import problem_of
from rich.console import Console

from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.learning_curve import LearningCurve
from search.environment import Environment, Plan, prepare
from search.reporting.plan import _screening, plan_page, plan_table
from search.reporting.wording import ROWS_SHOWN
from search.searchers.candidate_space import CandidateSpace
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace, SpaceConfig


def table_of(environment: Environment, **changes: object) -> str:
    plan = dataclasses.replace(Plan(environment, seconds=190.0), **changes)  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(plan_table(plan))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def with_space(environment: Environment, space: SearchSpace) -> Environment:
    return dataclasses.replace(environment, problem=dataclasses.replace(environment.problem, space=space))


def line_with(text: str, *words: str) -> str:
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, (words, text)
    return " ".join(lines[0].split())


def test_the_plan_says_costs_budget_images_and_workers(environment: Environment) -> None:
    text = table_of(dataclasses.replace(environment, workers=2))
    assert line_with(text, "dense cost") == "dense cost 2.560 MFLOPs, 2.560 kparams"
    assert line_with(text, "reachable") == "reachable 2.000 kFLOPs, 2 params (0.1% of the dense FLOPs)"
    assert line_with(text, "budget") == "budget at most 1.536 MFLOPs (60.0% of dense)"
    assert "1,150 train, 287 val, 360 test" in text
    assert "2 workers with 1 thread each, training on cpu in float32" in text
    assert "about 3 min 10 s" in text
    assert "di.way=closed" in text


def test_the_plan_lists_what_may_vary_and_why_the_rest_may_not(environment: Environment) -> None:
    space = environment.problem.space.restrict(SpaceConfig(skip=("conv1",), divisor=4))
    text = table_of(with_space(environment, space))
    assert "2 groups of channels may vary (4 layers)" in text
    assert line_with(text, "layer2.conv1") == "layer2.conv1 2 64 8 64 4"
    assert line_with(text, "fc") == "keeps its width: fc (its outputs are the classes)"
    assert line_with(text, "kept by --skip") == "keeps its width: conv1, conv1.twin (kept by --skip)"


def test_an_unknown_time_is_said_to_be_unknown(environment: Environment) -> None:
    assert line_with(table_of(environment, seconds=None), "time") == "time unknown"


def test_long_lists_of_groups_are_cut_and_say_so(environment: Environment, chain_space: SearchSpace) -> None:
    groups = tuple(ChannelGroup(f"g{i}", 8, 1, 8, producers=(f"g{i}",)) for i in range(ROWS_SHOWN + 5))
    names = chain_space.groups
    space = dataclasses.replace(chain_space, groups=names + groups)
    space.__dict__["dense_cost"], space.__dict__["smallest_cost"] = chain_space.dense_cost, chain_space.smallest_cost
    assert "... and 8 more" in table_of(with_space(environment, space))


def page_of(**changes: object) -> str:
    """Return the page with every run of spaces as one."""
    settings = {
        "budget": ("50%",),
        "model": "tiny_nets:residual",
        "method": "l2,aofp",
        "set": ("aofp.scope=all", "l2.compensate=true"),
        "trials": 9,
        "out": "one/run",
        "data": DataConfig("digits", image_size=8),
        "train": TrainConfig(device="cpu", precision="float32"),
        "runner": RunnerConfig(name="local"),
        **changes,
    }
    console = Console(width=200)
    with console.capture() as shown:
        environment = prepare(RunConfig(**settings), fetch=False)  # type: ignore[arg-type]
        console.print(plan_page(environment, CandidateSpace(environment.problem)))
    return re.sub(" +", " ", shown.get())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path.with_name("empty")))  # no dense net of another test


def test_rungs_are_shown_with_the_trials_and_the_training_that_are_expected_at_each() -> None:
    train = TrainConfig(epochs=4, device="cpu", precision="float32")
    text = page_of(train=train, trials=10, rungs="1,2")
    # 10 * 1 + 8 * 1 + 8 * 2: half of the trials are baselines, and three more are trained to the end.
    assert "Rungs: about 34 epochs of training instead of 40" in text
    assert "\n 1 10 every trial" in text
    assert "\n 4 8 baselines and the other exempt trials, and the better half" in text
    assert "4 epochs each at most, rungs after 1, 2" in text
    assert "Rungs" not in page_of(train=train, trials=10, rungs="none")
    assert "Rungs" not in page_of(trials=10)
    assert "rungs after" not in page_of(train=train, trials=10, rungs="auto", search_training="epochs")


def test_screening_is_shown_with_its_size_and_its_cost_and_takes_its_part_of_the_time() -> None:
    text = page_of(screen="4", method="l2", set=(), trials=12)
    assert re.search(r"Screening: about \d trials \(l2\) are the best of 4 candidates each", text)
    assert re.search(r"\d+ candidates, each from the dense network and from a trained one, which take about \d+%", text)
    assert "Screening" not in page_of(screen="none", method="l2", set=(), trials=12)
    assert "Screening: none, because aofp cannot be compared" in page_of(screen="4", method="aofp", set=(), trials=12)


def test_screening_is_said_to_cost_a_part_of_the_training() -> None:
    def planned(size: int, *methods: str) -> str:
        train = TrainConfig(epochs=2)
        problem = problem_of(chain(), ("20kflops",), methods, trials=20, train=train, screen=str(size))
        data = SimpleNamespace(train=range(2_000), calibration=range(2_048))
        environment: Any = SimpleNamespace(data=data, config=problem.config)
        return "".join(_screening(environment, CandidateSpace(problem)))

    text = planned(4, "l2", "csgd")
    assert "(l2) are the best of 4 candidates each before any training" in text
    # About 3 of 20 trials are screened, from two networks each: 2 * 3 * 4 * (160 + 128 + 512) / 3 of 20 * 2 * 2,000
    assert "12 candidates, each from the dense network and from a trained one, which take about 8% of the time" in text
    assert planned(4, "csgd") == "Screening: none, because csgd cannot be compared without training."
    assert planned(1, "l2", "csgd") == ""


def test_groups_have_widths_floors_and_divisors_and_the_rest_its_reason() -> None:
    text = page_of(space=SpaceConfig(divisor=2, skip=("inner",)))
    assert "\n stem 8 2 8 2 4 stem, outer" in text  # 10% of 8 channels, up to a multiple of 2
    assert "1 group of channels may vary" in text
    assert "\n fc 10 network output" in text
    assert re.search(r"\n inner 6 \S", text)


def test_the_smallest_and_largest_networks_are_those_of_the_space() -> None:
    config = SpaceConfig(bound=("stem=0.5:0.75",))
    text = page_of(space=config)
    made = prepare(
        RunConfig(
            budget=("50%",), model="tiny_nets:residual", data=DataConfig("digits", image_size=8), space=config,
            runner=RunnerConfig(name="local"), train=TrainConfig(device="cpu", precision="float32"),
        ),
        fetch=False,
    )  # fmt: skip
    space = made.problem.space
    dense = space.dense_cost
    for name, cost in (("smallest", space.smallest_cost), ("largest", space.cost(space.largest))):
        assert cost.flops < dense.flops
        assert re.search(rf"\n {name} [\d.]+ k {100 * cost.flops / dense.flops:.1f}% {cost.params} ", text)


def test_settings_are_searched_fixed_or_at_their_default() -> None:
    text = page_of(search_settings="aofp")
    for words in (
        "\nsettings searched of aofp, fixed: aofp.scope=all, l2.compensate=true",
        "theta searched 0.001 to 0.3, log",
        "scope fixed all",
        "half_batches default 1000",
        "compensate fixed true",
    ):
        assert words in text
    text = page_of(method="aofp", set=())
    for words in ("l2 (baseline only)", "di (baseline only)", "theta default 0.01", "\nsettings at their defaults"):
        assert words in text


def test_the_methods_behind_auto_are_named() -> None:
    assert "\nmethods di, aofp, csgd; baselines uniform l2, own di, uniform di" in page_of(
        method="auto", set=(), train=TrainConfig(epochs=2, device="cpu", precision="float32")
    )


def test_trials_are_told_apart_and_add_up() -> None:
    text = page_of()
    kinds = "(?:uniform|own) widths, (?:a baseline|to start from)|proposed by structured"
    rows = re.findall(rf"\n (\d+) ({kinds}) (\S+)", text)
    assert sum(int(count) for count, _, _ in rows) == 9
    assert {(what, method) for _, what, method in rows} >= {
        ("uniform widths, a baseline", "l2"),
        ("own widths, a baseline", "di"),
        ("uniform widths, a baseline", "di"),
        ("uniform widths, to start from", "aofp"),
    }
    text = page_of(method="l2,aofp,di", trials=2)
    assert "2 trials leave none for aofp; give more --trials." in text
    assert "2 trials leave none for the baselines uniform di; give more --trials." in text


def test_the_coordinates_of_the_sampler_are_named() -> None:
    text = page_of(sampler="structured")
    assert "Widths are proposed in " in text
    assert "share of the FLOPs, measured sensitivity), then group by group." in " ".join(text.split())
    assert "Sensitivities are measured on 512 training images, unless they are cached" in text
    assert "Sensitivities are measured" not in page_of(sampler="structured", trials=8).partition("Time, estimated")[0]
    assert "structural coordinate" not in page_of(sampler="tpe")


def test_time_and_disk_are_forecast_and_nothing_is_written(tmp_path: Path) -> None:
    text = page_of(time_limit="1h30m")
    for words in ("dense training", "trials, 1 at once", "\n time limit 1h30m", "one/run/study.db", "MLflow", "up to"):
        assert words in text
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_ends_before_the_dense_training_is_told_beforehand() -> None:
    words = "The limit of 0.001s will be over before the dense training is"
    assert words in page_of(time_limit="0.001s")
    assert words[:9] not in page_of(time_limit="100h")


def test_a_cached_dense_network_that_was_still_improving_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "still improving" not in page_of()
    curve = LearningCurve((0.4, 0.6, 0.7), train=0.7, val_images=100)
    monkeypatch.setattr(Environment, "dense_curve", curve)
    assert "was still improving as its training of 3 epochs ended: more --dense-epochs lift" in page_of()


def test_published_weights_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    text = page_of(model="squeezenet1_1", weights="DEFAULT", data=DataConfig(image_size=64))
    assert re.search(r"dense weights 2\.\d+ MB downloaded to /", text)
    assert list(tmp_path.iterdir()) == []


def test_a_latency_budget_is_planned_without_measuring_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("a plan measures no latency")

    monkeypatch.setattr("runners.latency.meter.LatencyMeter.read_at", measured)
    shown = " ".join(page_of(budget=("8ms", "1kparams"), objective="accuracy,latency").split())
    assert "budget at most 8 ms and at most 1.000 kparams" in shown
    assert "measured on cpu:1thread, eager, float32, at batch 1 for the budget and the axis of the front" in shown
    assert "A budget under what the smallest network measures then ends the search" in shown
    assert "of the front, measured at the end on cpu:1thread" in page_of()
    assert "latency" not in page_of(latency=LatencyConfig("none"))


def test_targets_share_the_proposals() -> None:
    text = page_of(budget=(), targets="20,40%", trials=9)
    assert re.search(r"\n ?targets at most \S+ \S+ \(\d+\.\d% of dense\); at most \S+ \S+ \(\d+\.\d% of dense\)", text)
    for what in ("uniform widths, a baseline l2", "own widths, a baseline di", "uniform widths, a baseline di"):
        assert re.search(rf"\n ?2 {what} 100\.0%, (49\.9|50\.\d)%", text)
    assert re.search(r"\d proposed by \w+ l2, aofp 100\.0%, (49\.9|50\.\d)%, the targets, in equal shares", text)
    assert "1 trials leave none for the baselines own di at target" in page_of(budget=(), targets="20,40%", trials=1)
