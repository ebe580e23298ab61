"""What a training step costs while AOFP scores every batch: against a plain step, alternating, in one run."""

import statistics
import time

import pytest
import torch
from torch.nn import functional

from pruning.filter_search import Aim, FilterSearch, Pace
from pruning.halving import Rules
from pruning.methods.aofp import ApproximatedOracle
from spaces.budget import Budget
from spaces.space import ModelSpec
from spaces.tracing import trace
from spaces.zoo import build

ROUNDS = 9
IMAGE = (3, 32, 32)


class Step:
    """One net trained on one batch, with the search's hooks on it or not; every group is in its first half."""

    def __init__(self, name: str, scope: str, batch: int) -> None:
        self.net = build(ModelSpec(name, 10, IMAGE)).train()
        space = trace(self.net, torch.zeros(1, *IMAGE))
        aim = Aim(space, budgets=(Budget("flops", int(0.3 * space.dense_cost.flops)),))
        groups, found = ApproximatedOracle(scope=scope).targets(self.net, aim)
        assert found == scope
        self.search = FilterSearch(self.net, aim, groups, (Rules(0.0, 1000, 1), Pace(0, 1, 10**9)), 0)
        for group in self.search.groups.values():
            group.scored = 1  # under way
        self.search.load_state_dict(self.search.state_dict() | {"step": 1000 * len(groups)})
        self.images, self.labels = torch.randn(batch, *IMAGE), torch.arange(batch) % 10
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)

    def seconds(self, scoring: bool) -> float:
        start = time.perf_counter()
        if scoring:
            self.search.attach()
        self.optimiser.zero_grad()
        functional.cross_entropy(self.net(self.images), self.labels).backward()
        if scoring:
            self.search.after_batch()
            self.search.detach()
        self.optimiser.step()
        return time.perf_counter() - start


@pytest.mark.parametrize(
    ("name", "scope", "batch", "allowed"),
    [("resnet56", "internal", 64, 1.20), ("resnet56", "all", 64, 1.35), ("cifar_vgg16_bn", "all", 16, 1.35)],
)
def test_scoring_adds_a_part_of_a_step(benchmark, name: str, scope: str, batch: int, allowed: float) -> None:
    step, pairs = Step(name, scope, batch), []
    step.seconds(True), step.seconds(False)
    assert all(group.scored == 2 for group in step.search.groups.values())
    benchmark.pedantic(lambda: pairs.append((step.seconds(False), step.seconds(True))), rounds=ROUNDS)
    plain, scored = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(pair[1] / pair[0] for pair in pairs)  # of neighbours in time, which share the machine's load
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {"plain_seconds": plain, "scored_seconds": scored, "ratio": ratio}
    print(f"\nAOFP on {name}, {scope}: {scored:.3f} s a step, plain {plain:.3f} s, ratio {ratio:.3f}", ratios)
    assert ratio <= allowed
