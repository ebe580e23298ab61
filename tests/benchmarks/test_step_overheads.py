"""The time that methods add to a training step, measured alternately with plain SGD and printed as one table.

One-shot methods are missing: after their cut, they train the narrow network with plain SGD.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from pruning.base import StepHook, TrainingPlan
from pruning.criteria.weights import norm_scores
from pruning.methods.abfp.balancing import AutoBalance, balance_factors
from pruning.methods.aofp.filter_search import FilterSearch, SearchGoal, SearchSchedule
from pruning.methods.aofp.halving import HalvingRules
from pruning.methods.aofp.method import ApproximatedOracle
from pruning.methods.csgd.clustering import cluster_channels
from pruning.methods.csgd.collapse import CollapsePlan
from pruning.methods.csgd.gradient_hook import CentripetalHook, RescalingHook, clustered_tensors
from pruning.methods.kse.kernel_levels import KernelSpace
from pruning.methods.kse.method import KernelSparsityEntropy
from pruning.rewriting.index_maps import NetworkClusters
from pruning.rewriting.surgery import merge_channels
from pruning.selection import select_channels
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = int(os.environ.get("SLIMFRONT_BENCHMARK_ROUNDS", "100" if DEVICE.type == "cuda" else "7"))
SHAPE = (3, 32, 32)
SLIGHT, INTERNAL, ALL, GATHERED = 1.03, 1.20, 1.35, 1.20  # times a plain step
EQUAL: Mapping[str, float] = {"kernel": 1.0, "scale": 1.0, "bias": 1.0}
# With one thread, the thread's own time leaves out what other processes take meanwhile.
clock = time.thread_time if DEVICE.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


Timed = Callable[[], tuple[float, float]]  # seconds of a step, and of the hook within it


@dataclass(frozen=True)
class Case:
    """A step of a method and the plain step it is compared with.

    Attributes:
        allowed: times a plain step.
        hook_alone: the method adds a hook and nothing else, so what it adds is timed within one and the same step.
    """

    plain: Timed
    method: Timed
    allowed: float
    hook_alone: bool = False


def _step(
    net: nn.Module,
    batch: int,
    hook: StepHook | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Timed:
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=1e-4, nesterov=True)
    images, labels = torch.randn(batch, *SHAPE, device=DEVICE), torch.arange(batch, device=DEVICE) % 10

    def seconds() -> tuple[float, float]:
        start, inside = _now(), 0.0
        with around():
            optimiser.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            if hook is not None:
                before = clock()
                hook(net, 0)
                inside = clock() - before
            optimiser.step()
        return _now() - start, inside

    return seconds


def _now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock()


def _hooked(net: nn.Module, hook: StepHook, batch: int = 64) -> Case:
    return Case(_step(net, batch), _step(net, batch, hook), SLIGHT, hook_alone=DEVICE.type == "cpu")


def _traced(name: str) -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    net = build(ModelSpec(name, 10, SHAPE))
    return net.to(DEVICE), trace(copy.deepcopy(net).cpu(), torch.zeros(1, *SHAPE))


def _csgd(collapse: CollapsePlan) -> Case:
    net, space = _traced("resnet56")
    clusters = cluster_channels(net, space, {group.name: group.width * 5 // 8 for group in space.variable}, "even")
    clustered = clustered_tensors(net, space, NetworkClusters(space, clusters))
    return _hooked(net, CentripetalHook(clustered, collapse, EQUAL, TrainingPlan((1e-3,), 0.9, True, 1e-4)))


def _csgd_trimmed() -> Case:
    net, space = _traced("resnet56")
    clusters = cluster_channels(net, space, {group.name: group.width * 5 // 8 for group in space.variable}, "even")
    narrow = merge_channels(net, space, clusters)
    return _hooked(narrow, RescalingHook(narrow, space, NetworkClusters(space, clusters)))


def _abfp() -> Case:
    net, space = _traced("resnet56")
    importance = norm_scores(net, space, order=1)
    kept = select_channels(space, importance, {group.name: group.width // 2 for group in space.variable})
    factors = {name: balance_factors(importance[name], channels) for name, channels in kept.items()}
    return _hooked(net, AutoBalance(net, space, factors, 5e-4))


def _aofp(name: str, scope: str, batch: int, allowed: float) -> Case:
    """Every group is in its first half, which hides one set a batch, as published."""
    net, space = _traced(name)
    goal = SearchGoal(space, budgets=(Budget("flops", int(0.3 * space.dense_cost.flops)),))
    groups, found = ApproximatedOracle(scope=scope).targets(net, goal)
    assert found == scope
    search = FilterSearch(net, goal, groups, HalvingRules(0.0, 10_000, 1, few_sets=0), SearchSchedule(0, 1, 10**9), 0)

    @contextmanager
    def attached():
        search.attach()
        yield
        search.detach()

    def score(net: nn.Module, step: int) -> None:
        before = {group.scored for group in search.groups.values()}
        search.after_batch()
        assert not before & {group.scored for group in search.groups.values()}  # all were scored

    return Case(_step(net, batch), _step(net, batch, score, attached), allowed)


def _kse() -> Case:
    """Of the net with shared kernels, against the dense one: the weights are gathered, and reading some copies them."""
    net, space = _traced("resnet56")
    method = KernelSparsityEntropy(restarts=1)
    prepared = method.prepare(net, space, None)
    kernels = KernelSpace(net, space, prepared.convs, method.indicators(prepared))
    _, assignment, _ = method.chosen(kernels, [Budget("flops", space.dense_cost.flops // 2)])
    return Case(_step(net, 64), _step(method.built(net, kernels, assignment, 0).to(DEVICE), 64), GATHERED)


CASES: dict[str, Callable[[], Case]] = {
    "csgd, by the gradient, ResNet-56": lambda: _csgd(CollapsePlan(0.05, 0.0, 1000, 0.0)),
    "csgd, direct, ResNet-56": lambda: _csgd(CollapsePlan(0.0, 0.01, 1000, 0.0)),
    "csgd after the trim, narrow ResNet-56": _csgd_trimmed,
    "abfp, ResNet-56": _abfp,
    "aofp, internal layers, ResNet-56": lambda: _aofp("resnet56", "internal", 64, INTERNAL),
    "aofp, all layers, ResNet-56": lambda: _aofp("resnet56", "all", 64, ALL),
    "aofp, all layers, VGG-16, batch 16": lambda: _aofp("cifar_vgg16_bn", "all", 16, ALL),
    "kse at 50% of the FLOPs, ResNet-56": _kse,
}


def test_a_step_of_each_method_against_one_of_plain_sgd(benchmark) -> None:
    cases = {name: make() for name, make in CASES.items()}
    pairs: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {name: [] for name in cases}

    def once() -> None:
        for name, case in cases.items():
            if len(pairs[name]) % 2:  # in turn, so that what warms up or drifts falls on both
                method, plain = case.method(), case.plain()
            else:
                plain, method = case.plain(), case.method()
            pairs[name].append((plain, method))

    once()
    for readings in pairs.values():
        readings.clear()
    benchmark.pedantic(once, rounds=ROUNDS)
    columns = f"{'plain':>9} {'method':>9} {'ratio':>6} {'quartiles':>11} {'hook alone':>10} {'allowed':>8}"
    print(f"\n{DEVICE.type:38} {columns}")
    over = [name for name, case in cases.items() if not _row(name, case, pairs[name], benchmark.extra_info)]
    assert not over


def _row(name: str, case: Case, pairs, found: dict[str, object]) -> bool:
    """Print a line of the table; return whether the step costs no more than it may."""
    plain, method = (statistics.median(seconds for seconds, _ in series) for series in zip(*pairs, strict=True))
    low, _, high = statistics.quantiles([ours[0] / theirs[0] for theirs, ours in pairs], n=4)
    alone = statistics.median(seconds / (seconds - inside) for _, (seconds, inside) in pairs)
    found[name] = {"plain_seconds": plain, "ratio": method / plain, "quartiles": [low, high], "hook_alone": alone}
    shown = f"{alone:10.3f}" if case.hook_alone else f"{'':10}"
    times = f"{1e3 * plain:6.1f} ms {1e3 * method:6.1f} ms {method / plain:6.3f}"
    print(f"{name:38} {times} {low:.3f}-{high:.3f} {shown} {case.allowed:8.2f}")
    return (alone if case.hook_alone else method / plain) <= case.allowed
