import pickle
from typing import Any

import pytest
import torch

from pruning.base import Goal, PruningError, declared_settings
from pruning.methods.di import DiscriminantInformation
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.tracing import trace
from spaces.widths import Widths

HALF = Goal(budgets=(Budget.parse("50%"),))


def _result(net: Any, context: Any, goal: Goal, **settings: Any) -> Any:
    space = trace(net, context.images)
    return list(DiscriminantInformation(**settings).run(net, space, goal, context))[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"allocation": "closed_form", "compare": "sensitivity"},
        {"allocation": "closed_form", "compare": "information"},
        {"allocation": "accuracy", "judge": "divergence"},
        {"allocation": "accuracy", "judge": "accuracy", "step": 0.2},
        {"allocation": "uniform"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_allocation_meets_the_budget_and_uses_it(tiny_residual, tiny_context, settings) -> None:
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    snapshot = _result(tiny_residual, context, HALF, **settings)
    share = space.cost(snapshot.widths).flops / space.dense_cost.flops
    assert 0.9 * 0.5 <= share <= 0.5  # a step of so narrow a net is several percent


def test_a_params_budget_is_met_too(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    goal = Goal(budgets=(Budget.parse("80%"), Budget.parse("1000params")))
    for allocation in ("closed_form", "accuracy"):
        snapshot = _result(tiny_residual, context, goal, allocation=allocation)
        assert sum(parameter.numel() for parameter in snapshot.net.parameters()) <= 1000


def test_a_budget_that_no_widths_meet_is_an_error(tiny_residual, tiny_context) -> None:
    goal = Goal(budgets=(Budget.parse("0.01%"),))
    for allocation in ("closed_form", "accuracy", "uniform"):
        with pytest.raises(BudgetError, match="smallest network"):
            _result(tiny_residual, tiny_context(), goal, allocation=allocation)


def test_trials_share_what_was_prepared_once(tiny_residual, tiny_context) -> None:
    context, method = tiny_context(), DiscriminantInformation()
    space = trace(tiny_residual, context.images)
    context.statistics = pickle.loads(pickle.dumps(method.prepare(tiny_residual, space, context)))
    context.calibrations = 0
    for settings in ({}, {"label_weight": 0.5}, {"score": "drop"}):
        goal = Goal(widths=Widths({"stem": 4, "conv1": 6}))
        list(DiscriminantInformation(**settings).run(tiny_residual, space, goal, context))
    assert context.calibrations == 0


def test_prepared_or_not_the_result_is_the_same(tiny_residual, tiny_context) -> None:
    context, method = tiny_context(), DiscriminantInformation()
    space = trace(tiny_residual, context.images)
    alone = list(method.run(tiny_residual, space, HALF, context))[-1]
    shared = tiny_context(statistics=method.prepare(tiny_residual, space, context))
    together = list(method.run(tiny_residual, space, HALF, shared))[-1]
    assert alone.widths == together.widths
    for name, tensor in alone.net.state_dict().items():
        assert torch.equal(tensor, together.net.state_dict()[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"label_weight": 1.0},
        {"label_weight": 0.5, "labels": "onehot", "standardise": True},
        {"score": "drop"},
        {"score": "differential"},
        {"combine": "consumers", "label_weight": 1.0},
        {"even_outputs": True},
        {"features": "pooled", "compensate": False},
        {"features": "pooled", "where": "output", "label_weight": 1.0, "compensate": False},
        {"features": "flatten", "where": "output", "label_weight": 1.0, "compensate": False},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_variant_of_the_score_gives_a_net(tiny_residual, tiny_context, settings) -> None:
    goal = Goal(widths=Widths({"stem": 4, "conv1": 6}))
    snapshot = _result(tiny_residual, tiny_context(), goal, **settings)
    assert (snapshot.net.stem.out_channels, snapshot.net.conv1.out_channels) == (4, 6)


def test_the_channels_that_tell_the_classes_apart_stay(tiny_context) -> None:
    context = tiny_context()
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 1, bias=False), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 3)
    ).eval()
    context.images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    context.images[:, 0] += torch.tensor([-2.0, 0.0, 2.0])[context.labels][:, None, None]
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[1, 0] = net[0].weight[0, 1] = net[0].weight[2:, 2] = 1.0  # only channel 1 sees the class
    settings = {"label_weight": 1.0, "features": "pooled", "compensate": False}
    snapshot = _result(net, context, Goal(widths=Widths({"0": 1})), **settings)
    assert snapshot.net[0].weight[0, 0] != 0


def test_a_dead_channel_goes_first_and_nothing_is_nan(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.norm1.weight[3] = tiny_residual.norm1.bias[3] = 0.0
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    method = DiscriminantInformation()
    context = tiny_context()
    rankings = method.rankings(tiny_residual, space, method.statistics(tiny_residual, space, context))
    assert rankings["conv1"].ranks[3] == 0
    assert all(torch.isfinite(each.lost).all() for each in rankings.values())


def test_a_group_of_one_channel_is_left_alone(tiny_context) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(1, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    ).eval()  # fmt: skip
    snapshot = _result(net, tiny_context(), HALF)
    assert snapshot.net[0].out_channels == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "whole"}, "features='whole'.*pooled, spatial, flatten"),
        ({"where": "output"}, "observes no consumer"),
        ({"features": "flatten"}, "knows labels only"),
        ({"label_weight": 1.5}, r"label_weight=1.5.*\[0, 1\]"),
        ({"ridge": 0.0}, "ridge=0.0.*above 0"),
        ({"step": 0.0}, "step=0.0"),
        ({"features": "pooled"}, "compensate=True.*compensate=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    with pytest.raises(PruningError, match=message):
        DiscriminantInformation(**settings)


def test_a_search_varies_only_settings_that_the_shared_statistics_answer() -> None:
    searched = {each.name for each in declared_settings(DiscriminantInformation) if each.searchable}
    assert searched == {"label_weight", "ridge"}
