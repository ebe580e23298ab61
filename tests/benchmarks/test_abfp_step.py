"""What the auto-balanced regulariser adds to a training step: against plain SGD, step by step in turn, in one run."""

import time

import torch
from torch.nn import functional

from pruning.balancing import AutoBalance, balance_factors
from pruning.criteria.weights import norm_scores
from pruning.selection import select_channels
from spaces.space import ModelSpec
from spaces.tracing import trace
from spaces.zoo import build

BATCH, ROUNDS = 64, 8
ALLOWED = 1.03


def test_a_balanced_step_costs_what_a_plain_one_does(benchmark) -> None:
    net = build(ModelSpec("resnet56", 10, (3, 32, 32)))
    space = trace(net, torch.zeros(1, 3, 32, 32))
    importance = norm_scores(net, space, order=1)
    kept = select_channels(space, importance, {group.name: group.width // 2 for group in space.variable})
    hook = AutoBalance(net, space, {name: balance_factors(importance[name], kept[name]) for name in kept}, 5e-4)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 10
    seconds = []

    def once() -> None:
        start = time.perf_counter()
        optimiser.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        before = time.perf_counter()
        hook(net, 0)
        after = time.perf_counter()
        optimiser.step()
        seconds.append((after - before, time.perf_counter() - start))

    net.train()
    once()
    seconds.clear()
    benchmark.pedantic(once, rounds=ROUNDS)
    added = min(hooked for hooked, _ in seconds)
    plain = min(whole - hooked for hooked, whole in seconds)  # the least disturbed of each
    ratio = (plain + added) / plain
    benchmark.extra_info |= {"plain_seconds": plain, "added_seconds": added, "ratio": ratio}
    print(f"\nABFP adds {1e3 * added:.1f} ms to a step of {1e3 * plain:.0f} ms: ratio {ratio:.4f}")
    assert ratio <= ALLOWED
