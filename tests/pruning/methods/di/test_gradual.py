"""Gradual narrowing: the goals of its cuts, its intermediate networks, and the net that meets the goal."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_nets as nets
import torch
from torch import nn

from pruning.base import TRIAL_RATES, Goal, Rates, Snapshot
from pruning.methods.di.gradual import goals_between, reached
from pruning.methods.di.method import DiscriminantInformation
from pruning.traits import wide_epochs
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import evaluate
from runners.trial import Trial, TrialState
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.errors import BudgetError, SpaceError
from spaces.space import SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths

HALF = Goal(budgets=(Budget.parse("50%"),))
WIDTHS = Goal(widths=Widths({"stem": 3, "conv1": 5}))
BY_ACCURACY = {"allocation": "accuracy", "judge": "accuracy", "step": 0.02}


def run(net: nn.Module, context: Any, goal: Goal, **settings: Any) -> list[Snapshot]:
    """Return copies of all snapshots, because training goes on changing their nets."""
    method = DiscriminantInformation(**{"gradual_epochs": 3} | settings)
    snapshots: Iterator[Snapshot] = method.run(net, trace(net, context.images), goal, context)
    return [dataclasses.replace(snapshot, net=copy.deepcopy(snapshot.net)) for snapshot in snapshots]


def longer(search_context: SearchContext, epochs: int) -> SearchContext:
    return dataclasses.replace(search_context, train=dataclasses.replace(search_context.train, epochs=epochs))


def flops(space: SearchSpace, snapshots: list[Snapshot]) -> list[int]:
    return [space.cost(snapshot.widths).flops for snapshot in snapshots]


def test_costs_that_budgets_limit_fall_by_constant_amounts(tiny_residual) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    dense = space.dense_cost
    limits = (Budget("flops", dense.flops // 2), Budget("params", dense.params + 7), Budget("latency", 0.1))
    goals = goals_between(space, Goal(budgets=limits), 4)
    assert [between.budgets[0].limit for between in goals] == [
        dense.flops // 2 + int((dense.flops - dense.flops // 2) * left) for left in (0.75, 0.5, 0.25, 0)
    ]
    assert all(between.budgets[1:] == limits[1:] for between in goals)


def test_widths_shrink_by_constant_factors_down_to_the_goal() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 2))
    space = trace(net, torch.zeros(1, 3, 8, 8))
    goals = goals_between(space, Goal(widths=Widths({"0": 4})), 4)
    assert [between.widths["0"] for between in goals] == [12, 8, 6, 4]
    assert not reached(space, goals[0])
    assert reached(space, Goal(widths=Widths({"0": 16})))


@pytest.mark.parametrize("settings", [{}, BY_ACCURACY, {"allocation": "uniform"}], ids=str)
def test_budgets_are_met_gradually(tiny_residual, tiny_context, settings) -> None:
    context = tiny_context(epochs=5)
    space = trace(tiny_residual, context.images)
    snapshots = run(tiny_residual, context, HALF, **settings)
    assert [snapshot.epoch for snapshot in snapshots] == [1, 2, 3, 4, 5]
    costs, half = flops(space, snapshots), space.dense_cost.flops // 2
    assert space.dense_cost.flops > costs[0] > costs[1] > half
    assert 0.9 * half <= costs[2] <= half
    assert costs[2:] == costs[2:3] * 3
    for snapshot in snapshots:
        space.check(snapshot.widths)
        assert count_cost(snapshot.net, space.input_shape) == space.cost(snapshot.widths)
    assert [snapshot.note["cuts"] for snapshot in snapshots[:2]] == [2, 4]
    assert snapshots[-1].note["gradual_epochs"] == 3


def test_widths_are_exact_and_channels_that_were_cut_stay_cut(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=4)
    space = trace(tiny_residual, context.images)
    snapshots = run(tiny_residual, context, WIDTHS)
    assert snapshots[-1].widths == space.full | WIDTHS.widths
    assert (snapshots[-1].net.stem.out_channels, snapshots[-1].net.conv1.out_channels) == (3, 5)
    for wider, narrower in zip(snapshots, snapshots[1:], strict=False):
        assert all(narrower.widths[name] <= width for name, width in wider.widths.items())


def test_every_cut_is_chosen_on_the_current_net(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=4)
    space = trace(tiny_residual, context.images)
    context.prepared = DiscriminantInformation().prepare(tiny_residual, space, context)
    context.calibrations = 0
    run(tiny_residual, context, WIDTHS)
    assert context.calibrations == 5  # six cuts, the first of the dense net


def test_the_rate_is_constant_between_cuts_and_fine_tuning_has_its_own_schedule(tiny_residual, tiny_context) -> None:
    context, seen = tiny_context(epochs=5, learning_rate=0.5), []
    fit = context.fit

    def watched(net, epochs, rates=TRIAL_RATES, **how):
        seen.append((epochs, rates))
        yield from fit(net, epochs, rates=rates, **how)

    context.fit = watched
    run(tiny_residual, context, HALF, gradual_rate=0.2)
    assert seen == [(1, Rates(constant=0.1))] * 3 + [(2, TRIAL_RATES)]


@pytest.mark.parametrize(("epochs", "expected"), [(0, [0]), (1, [1]), (2, [1, 2])])
def test_a_short_trial_narrows_in_all_its_epochs(tiny_residual, tiny_context, epochs, expected) -> None:
    context = tiny_context(epochs=epochs)
    space = trace(tiny_residual, context.images)
    snapshots = run(tiny_residual, context, HALF)
    assert [snapshot.epoch for snapshot in snapshots] == expected
    assert flops(space, snapshots)[-1] <= space.dense_cost.flops // 2


def test_a_net_that_meets_its_goal_is_trained_like_any_other(tiny_residual, tiny_context) -> None:
    for goal in (Goal(budgets=(Budget.parse("100%"),)), Goal(widths=Widths({"stem": 8}))):
        snapshots = run(tiny_residual, tiny_context(epochs=1), goal)
        assert [snapshot.epoch for snapshot in snapshots] == [0, 1]
        assert snapshots[-1].net.stem.out_channels == 8


def test_the_same_seed_gives_the_same_net_and_the_lent_one_stays(tiny_search_context: SearchContext) -> None:
    state = {name: tensor.clone() for name, tensor in tiny_search_context.net.state_dict().items()}
    found = []
    for _ in range(2):
        context = TrialContext(
            tiny_search_context.data,
            longer(tiny_search_context, 3).train,
            5,
            compute_format=tiny_search_context.compute_format,
        )
        method = DiscriminantInformation(gradual_epochs=2)
        found.append(
            list(method.run(tiny_search_context.net, tiny_search_context.space, HALF, context))[-1].net.state_dict()
        )
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_search_context.net.state_dict().items())


def test_a_trial_reports_its_intermediate_networks(tiny_search_context: SearchContext) -> None:
    running = evaluate(Trial(0, "di", HALF, {"gradual_epochs": 3}, seed=1), longer(tiny_search_context, 5))
    epochs = []
    while True:
        try:
            epochs.append(next(running).epoch)
        except StopIteration as end:
            result = end.value
            break
    assert result.state is TrialState.COMPLETE
    assert epochs == [3, 4, 5]
    assert 1 <= len(result.intermediate_networks) <= 2
    assert all(intermediate.cost.flops > result.cost.flops for intermediate in result.intermediate_networks)


@pytest.mark.parametrize("make", nets.ALL)
@pytest.mark.parametrize("divisor", [1, 4])
def test_nets_of_every_kind_of_tie_are_narrowed(tiny_context, make, divisor: int) -> None:
    torch.manual_seed(0)
    net = make().eval()
    context = tiny_context(epochs=2, classes=5)
    space = trace(net, context.images, SpaceConfig(divisor=divisor))
    for goal in (Goal(widths=space.smallest), Goal(budgets=(Budget("flops", int(1.3 * space.smallest_cost.flops)),))):
        method = DiscriminantInformation(gradual_epochs=2, **BY_ACCURACY | {"images": 48})
        last = list(method.run(net, space, goal, context))[-1]
        assert count_cost(last.net, space.input_shape) == space.cost(last.widths)
        assert goal.widths in (None, last.widths)
        assert all(budget.allows(space.cost(last.widths)) for budget in goal.budgets)


def test_bits_and_distillation_work_with_gradual_narrowing(tiny_residual, tiny_context) -> None:
    settings = {"bits": 5, "distill": 0.5}
    *intermediate, last = run(tiny_residual, tiny_context(epochs=3), HALF, gradual_epochs=2, **settings)
    assert last.net.stem.bits.double().mean() <= 5.5
    assert last.note["bits"] < 8
    assert [snapshot.epoch for snapshot in intermediate] == [1, 2]


def test_goals_out_of_reach_are_refused_before_any_training(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=4)
    context.fit = None
    with pytest.raises(BudgetError, match="smallest network"):
        run(tiny_residual, context, Goal(budgets=(Budget.parse("0.01%"),)))
    with pytest.raises(SpaceError, match="width 9 of 'stem' is not legal"):
        run(tiny_residual, context, Goal(widths=Widths({"stem": 9})))


def test_half_of_the_gradual_epochs_count_as_training_at_full_width() -> None:
    assert wide_epochs(DiscriminantInformation(gradual_epochs=4), 10) == 2
    assert wide_epochs(DiscriminantInformation(gradual_epochs=40), 10) == 5
