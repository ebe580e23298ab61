import dataclasses

import pytest
import tiny_nets as nets
import torch
from torch import nn

from pruning.base import Goal, PruningError
from pruning.methods.scratch import FromScratch, random_net
from spaces.budget import Budget
from spaces.space import ModelSpec, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.widths import Widths

CUT = Goal(widths=Widths({"stem": 4, "conv1": 6}))


def test_no_dense_weight_is_left(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    (first,) = FromScratch().run(tiny_residual, space, CUT, tiny_context(epochs=0, seed=3))
    with torch.no_grad():
        for tensor in (*tiny_residual.parameters(), tiny_residual.norm.running_mean):
            tensor.add_(1.0)
    (second,) = FromScratch().run(tiny_residual, space, CUT, tiny_context(epochs=0, seed=3))
    for name, tensor in first.net.state_dict().items():
        assert torch.equal(tensor, second.net.state_dict()[name])


def test_the_seed_of_the_trial_draws_the_weights_and_leaves_the_global_generator(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    one, other = (random_net(tiny_residual, space, CUT.widths, seed) for seed in (1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(one.stem.weight, other.stem.weight)


def test_weights_are_drawn_at_the_narrow_size() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 2, 1)).eval()
    space = trace(net, torch.zeros(1, 3, 8, 8))
    narrow = random_net(net, space, Widths({"0": 16, "1": 64}), 0)
    assert narrow[1].weight.shape[1] == 16
    largest = float(narrow[1].weight.detach().abs().max())
    assert 0.95 / (16 * 9) ** 0.5 < largest <= 1 / (16 * 9) ** 0.5  # uniform within 1 / sqrt(inputs)


def test_training_takes_the_dense_nets_rate_and_the_trials_epochs(tiny_residual, tiny_context) -> None:
    context, peaks = tiny_context(epochs=2), []
    fit = context.fit
    context.fit = lambda *args, rates, **kw: peaks.append(rates.peak) or fit(*args, rates=rates, **kw)
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    snapshots = list(FromScratch(learning_rate_scale=0.5).run(tiny_residual, space, CUT, context))
    assert [snapshot.epoch for snapshot in snapshots] == [1, 2]
    assert peaks == [0.5 * context.dense_learning_rate]
    assert snapshots[-1].note == {"learning_rate": peaks[0]}


def test_budgets_alone_mean_uniform_widths(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    budget = Budget.parse("40%")
    snapshot = next(FromScratch().run(tiny_residual, space, Goal(budgets=(budget,)), tiny_context()))
    assert snapshot.widths == space.fit(uniform_ratios(space), [budget.resolve(space.dense_cost)])


def test_a_parameter_without_reset_is_taken_from_a_newly_built_net_or_refused(tiny_context) -> None:
    net = nets.ChannelsLast().eval()
    with torch.no_grad():
        net.scale.fill_(5.0)  # trained
    space = trace(net, torch.zeros(1, *nets.IMAGE))
    widths = space.fit(uniform_ratios(space), [Budget("flops", space.dense_cost.flops // 2)])
    with pytest.raises(PruningError, match="'scale'.*reset_parameters.*factory"):
        random_net(net, space, widths, 0)
    built = dataclasses.replace(space, spec=ModelSpec("tiny_nets:ChannelsLast", 5, nets.IMAGE))
    narrow = random_net(net, built, widths, 0)
    assert (narrow.scale == 1).all()
    assert len(narrow.scale) == widths["stem"]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_trains_nothing_is_refused(scale) -> None:
    with pytest.raises(PruningError, match="learning_rate_scale.*above 0"):
        FromScratch(learning_rate_scale=scale)
