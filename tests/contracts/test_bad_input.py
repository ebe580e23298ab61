"""What is made of input that is odd or unusable: a finite net, or an error that says what to do.

By every method, and by the command line where latency is asked for.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny_nets import space_of
from torch import Tensor, nn

from configs.schema import ALLOCATIONS, RunConfig
from pruning.base import METHODS, Goal, Snapshot
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.latency.meter import LatencyMeter, Reading
from runners.trial import Trial, TrialResult, TrialState
from search.cli import main
from search.problem import Problem
from spaces.budget import Budget
from spaces.errors import SlimfrontError
from spaces.space import SearchSpace, SpaceConfig
from spaces.widths import Widths

IMAGES = torch.rand(2, 1, 8, 8)


def _chain(first: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 4),
    ).eval()  # fmt: skip


def _with(change) -> nn.Sequential:
    net = _chain()
    with torch.no_grad():
        for layer in (net[0], net[3], net[6]):
            change(layer.weight, layer.bias)
    return net


def _kill(weight: Tensor, bias: Tensor, last: int) -> None:
    weight[:last], bias[:last] = 0, 0


def _repeat(weight: Tensor, bias: Tensor) -> None:
    weight[2:], bias[2:] = weight[:1], bias[:1]


ODD = {
    "filters of zeros": lambda: _with(lambda weight, bias: _kill(weight, bias, 4)),
    "nothing but zeros": lambda: _with(lambda weight, bias: _kill(weight, bias, 8)),
    "two distinct filters": lambda: _with(_repeat),
    "filters all alike": lambda: _with(lambda weight, bias: weight.fill_(0.1)),
    "a layer of one channel": lambda: _chain(first=1),
    "huge weights": lambda: _with(lambda weight, bias: weight.mul_(1e15)),
    "tiny weights": lambda: _with(lambda weight, bias: weight.mul_(1e-30)),
}


@pytest.fixture(params=sorted(METHODS))
def name(request) -> str:
    return request.param


def _goal(name: str, space: SearchSpace, removed: int) -> Goal:
    if METHODS[name].takes_widths:
        return Goal(widths=Widths({group.name: max(1, group.width - removed) for group in space.variable}))
    return Goal(budgets=(Budget("flops", int(0.5 * space.dense_cost.flops)),))


def _snapshots(name: str, odd: str, search_context: SearchContext, removed: int) -> list[Snapshot]:
    method, net, space = METHODS[name](), ODD[odd](), space_of(ODD[odd], (1, 8, 8))
    context = TrialContext(
        search_context.data, search_context.train, seed=0, compute_format=search_context.compute_format
    )
    context.prepared = method.prepare(net, space, context)
    return list(method.run(net, space, _goal(name, space, removed), context))


@pytest.mark.parametrize("removed", [1, 8])
@pytest.mark.parametrize("odd", ODD)
def test_odd_filters_give_a_finite_net_or_an_error(
    tiny_search_context: SearchContext, name: str, odd: str, removed: int
) -> None:
    refusal = ""
    snapshots: list[Snapshot] = []
    try:
        snapshots = _snapshots(name, odd, tiny_search_context, removed)
    except SlimfrontError as error:
        refusal = str(error)
    assert snapshots or "; " in refusal  # what came, and the way out
    for snapshot in snapshots:
        assert all(torch.isfinite(value).all() for value in snapshot.net.state_dict().values())
        assert all(isinstance(value, str) or math.isfinite(value) for value in snapshot.note.values())
        assert snapshot.net.eval()(IMAGES).isfinite().all()


def _result(search_context: SearchContext, name: str, settings=None, **train) -> TrialResult:
    search_context = dataclasses.replace(search_context, train=dataclasses.replace(search_context.train, **train))
    running = evaluate(Trial(0, name, _goal(name, search_context.space, 3), settings or {}, seed=1), search_context)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(
    tiny_search_context: SearchContext, name: str
) -> None:
    result = _result(tiny_search_context, name, lr=1e9, dense_lr=1e9, epochs=2)
    assert (result.state, result.accuracy, result.checkpoint) == (TrialState.FAILED, None, None)
    assert "not finite" in result.error
    assert "lower the learning rate" in result.error


@pytest.mark.parametrize(
    ("name", "settings"),
    [("csgd", {"strength": "fixed", "epsilon": 1e30}), ("abfp", {"alpha": 1e30}), ("aofp", {"learning_rate": 1e9})],
)
def test_a_method_that_makes_the_loss_not_finite_fails_alike(
    tiny_search_context: SearchContext, name: str, settings
) -> None:
    result = _result(tiny_search_context, name, settings, epochs=4)
    assert (result.state, result.accuracy) == (TrialState.FAILED, None)
    assert "not finite" in result.error


@pytest.mark.parametrize("width", [2, 6, 9])
def test_widths_that_no_net_may_have_are_refused(tiny_search_context: SearchContext, name: str, width: int) -> None:
    method, space = METHODS[name](), tiny_search_context.space.restrict(SpaceConfig(divisor=4))
    if not method.takes_widths:
        pytest.skip("finds its own")
    context = TrialContext(
        tiny_search_context.data, tiny_search_context.train, seed=0, compute_format=tiny_search_context.compute_format
    )
    with pytest.raises(SlimfrontError, match=f"width {width} of .* is not legal; multiples of 4 from 4 to 8 are"):
        list(method.run(tiny_search_context.net, space, Goal(widths=Widths({"0": width})), context))
    with pytest.raises(SlimfrontError, match="'nose' is no variable group"):
        list(method.run(tiny_search_context.net, space, Goal(widths=Widths({"nose": 1})), context))


def test_where_no_width_may_vary_a_budget_is_refused_and_the_dense_widths_are_trained(
    tiny_search_context: SearchContext, name: str
) -> None:
    space, method = tiny_search_context.space.restrict(SpaceConfig(skip=("*",))), METHODS[name]()
    context = TrialContext(
        tiny_search_context.data, tiny_search_context.train, seed=0, compute_format=tiny_search_context.compute_format
    )
    context.prepared = method.prepare(tiny_search_context.net, space, context)
    half = Goal(budgets=(Budget.parse("50%"),))
    if not method.takes_widths:  # it does without cutting channels
        cost = list(method.run(tiny_search_context.net, space, half, context))[-1].cost
        assert cost is not None
        assert cost.flops <= 0.5 * space.dense_cost.flops
    else:
        with pytest.raises(SlimfrontError, match="smallest network|nothing that"):
            list(method.run(tiny_search_context.net, space, half, context))
        assert (
            list(method.run(tiny_search_context.net, space, Goal(widths=space.full), context))[-1].widths == space.full
        )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--budget 8ms --budget 9ms", "budgets 8ms and 9ms both limit latency; keep the one that must hold"),
        ("--budget 8ms --latency-device tpu:0", "latency device 'tpu:0' is not on this machine; there is: cpu:1thread"),
        ("--budget 8ms --latency-device none", "--latency-device none measures nothing, and a latency budget or"),
        ("--objective accuracy,latency --budget 50% --latency-device none", "or name a device such as cpu:1thread"),
        ("--budget 2ms", "is under what the smallest network of this space measures on cpu:1thread at batch 1: 3 ms"),
        ("--budget 2ms --budget 50%", "smallest network of this space measures on cpu:1thread at batch 1: 3 ms"),
        ("--budget 8parsecs", "has no known unit; write 0.5gflops"),
    ],
)
def test_a_latency_that_cannot_be_met_or_measured_ends_with_code_2(
    flags: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def three(meter: LatencyMeter, network: str, net: nn.Module, batch: int) -> Reading:
        return Reading(network, meter.conditions(batch), "", 0.003, 0.0029, 0.0031, 1.0)

    monkeypatch.setattr(LatencyMeter, "read_at", three)
    common = "--model tiny_nets:residual --data digits --image-size 8 --device cpu --precision float32"
    common += f" --out {tmp_path / 'run'}"
    assert main([*flags.split(), *common.split()]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [[], ["plan"]])
@pytest.mark.parametrize(
    ("method", "allocation", "reason"),
    [
        ("kse", "search", "work at widths that the search chooses: kse only finds widths itself"),
        ("csgd", "method", "find widths itself: csgd only works at given widths"),
    ],
)
def test_an_allocation_that_no_method_of_the_run_can_follow_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], method: str, allocation: str, reason: str
) -> None:
    flags = ["--budget", "50%", "--method", method, "--allocation", allocation, "--out", str(tmp_path / "run")]
    assert main([*command, *flags]) == 2
    assert capsys.readouterr().err == (
        f"error: --allocation is {allocation!r} and no method of the run can {reason}; "
        "leave --allocation at 'any', or add a method that can to --method\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_of_several_methods_one_that_can_follow_an_allocation_is_enough(
    allocation: str, tiny_search_context: SearchContext
) -> None:
    config = RunConfig(budget=("50%",), method="kse,csgd", allocation=allocation)
    assert Problem.resolve(config, tiny_search_context.space).methods == ("kse", "csgd")


@pytest.mark.parametrize("command", [[], ["plan"]])
@pytest.mark.parametrize("screen", ["0", "x", "-2", "1.5"])
def test_a_number_of_candidates_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], screen: str
) -> None:
    flags = ["--budget", "50%", f"--screen={screen}", "--out", str(tmp_path / "run")]
    assert main([*command, *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: --screen is {screen!r} and must be a whole number from 1")
    assert not (tmp_path / "run").exists()
