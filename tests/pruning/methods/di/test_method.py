import copy
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pruning import checkpoint
from pruning.base import Goal, PruningError
from pruning.methods.di.method import DiscriminantInformation
from pruning.quantization.layers import quantize
from pruning.quantization.rounding import register_rounding
from pruning.settings import declared_settings
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.errors import BudgetError
from spaces.tracing.tracer import trace
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


def test_trials_share_the_dense_rankings(tiny_residual, tiny_context) -> None:
    context, method = tiny_context(), DiscriminantInformation()
    space = trace(tiny_residual, context.images)
    context.prepared = pickle.loads(pickle.dumps(method.prepare(tiny_residual, space, context)))
    context.calibrations = 0
    for settings in ({}, {"label_weight": 0.5}, {"score": "drop"}):
        goal = Goal(widths=Widths({"stem": 4, "conv1": 6}))
        list(DiscriminantInformation(**settings).run(tiny_residual, space, goal, context))
    assert context.calibrations == 0


def test_curves_stay_as_they_are_when_tensors_go_to_another_process(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    prepared = DiscriminantInformation().prepare(tiny_residual, trace(tiny_residual, context.images), context)
    curves = prepared.curves["information"]
    before = {name: curve.copy() for name, curve in curves.items()}
    ForkingPickler.dumps(prepared)  # moves the tensors' memory
    junk = [torch.full((len(curve),), torch.nan, dtype=torch.float64) for curve in before.values() for _ in range(50)]
    assert len(junk)
    assert all(np.array_equal(curves[name], curve) for name, curve in before.items())


def test_the_result_is_the_same_with_and_without_shared_rankings(tiny_residual, tiny_context) -> None:
    context, method = tiny_context(), DiscriminantInformation()
    space = trace(tiny_residual, context.images)
    alone = list(method.run(tiny_residual, space, HALF, context))[-1]
    shared = tiny_context(prepared=method.prepare(tiny_residual, space, context))
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


def test_a_dead_channel_is_cut_first_and_nothing_is_nan(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.norm1.weight[3] = tiny_residual.norm1.bias[3] = 0.0
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    method = DiscriminantInformation()
    context = tiny_context()
    rankings = method.rankings(tiny_residual, space, method.activation_moments(tiny_residual, space, context))
    assert rankings["conv1"].ranks[3] == 0
    assert all(torch.isfinite(ranking.lost).all() for ranking in rankings.values())


def test_a_group_of_one_channel_is_not_cut(tiny_context) -> None:
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
        ({"gradual_epochs": -1}, "gradual_epochs=-1"),
        ({"gradual_rate": 0.0}, "gradual_rate=0.0.*above 0"),
        ({"features": "pooled"}, "compensate=True.*compensate=False"),
        ({"distill": 1.5}, r"distill=1.5.*\[0, 1\]"),
        ({"bits": 3}, "bits=3 is no mean of low_bits=4 and high_bits=8"),
        ({"bits": 9}, "bits=9 is no mean"),
        ({"bits": 5, "low_bits": 8, "high_bits": 4}, "low_bits=8 and high_bits=4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message) -> None:
    with pytest.raises(PruningError, match=message):
        DiscriminantInformation(**settings)


def test_a_search_varies_only_settings_that_the_shared_statistics_answer() -> None:
    searched = {declared.name for declared in declared_settings(DiscriminantInformation) if declared.searchable}
    assert searched == {"label_weight", "ridge"}


def _logits(net: Any, context: Any) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(context.images)


def test_the_better_ranked_filters_get_more_bits(tiny_residual, tiny_context) -> None:
    context, method = tiny_context(), DiscriminantInformation(bits=5, low_bits=4, high_bits=8)
    space = trace(tiny_residual, context.images)
    goal = Goal(widths=Widths({"stem": 8, "conv1": 8}))
    net = list(method.run(tiny_residual, space, goal, context))[-1].net
    rankings = method.rankings(tiny_residual, space, method.activation_moments(tiny_residual, space, context))
    ranks = rankings["conv1"].ranks
    kept = torch.argsort(ranks, descending=True)[:8].sort().values
    best = torch.argsort(ranks[kept], descending=True)[:2]
    assert torch.nonzero(net.conv1.bits == 8).flatten().tolist() == sorted(best.tolist())
    assert net.stem.bits.double().mean() == net.conv1.bits.double().mean() == net.conv2.bits.double().mean() == 5
    assert torch.equal(net.stem.bits, net.conv2.bits)  # they write the same channels
    assert net.head.bits.tolist() == [8, 8, 8]  # classes have no rank


def test_the_measured_net_is_the_stored_net(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=3)
    space = trace(tiny_residual, context.images)
    files = []
    for snapshot in DiscriminantInformation(bits=4.5, low_bits=3, high_bits=6).run(tiny_residual, space, HALF, context):
        files.append((checkpoint.to_bytes(snapshot.net, None, snapshot.widths), _logits(snapshot.net, context)))
        assert count_cost(snapshot.net, space.input_shape) == space.cost(snapshot.widths)
        assert snapshot.note["size_mb"] < 0.5 * 4e-6 * space.cost(snapshot.widths).params
        assert 4 < snapshot.note["bits"] < 6
    assert len(files) == 4
    for data, logits in files:  # training goes on with a net of its own
        assert torch.equal(_logits(checkpoint.from_bytes(data, model=tiny_residual), context), logits)
    assert not torch.equal(files[0][1], files[-1][1])


def test_the_size_of_a_net_that_is_not_quantised_is_reported_too(tiny_residual, tiny_context) -> None:
    for bits in (0, 32):
        snapshot = _result(tiny_residual, tiny_context(), HALF, bits=bits)
        params = sum(parameter.numel() for parameter in snapshot.net.parameters())
        assert snapshot.note["size_mb"] == 4 * params / 1e6
        assert snapshot.note["bits"] == 32


def _rounded_afterwards(net: Any, bits: int) -> Any:
    rounded = copy.deepcopy(net)
    layers = {
        name: layer for name, layer in net.named_modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    }
    register_rounding(rounded, {name: torch.full((len(layer.weight),), bits).byte() for name, layer in layers.items()})
    return quantize(rounded)


def test_eight_bits_hardly_change_a_trained_net(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=30, learning_rate=0.1)
    net = _result(tiny_residual, context, HALF).net
    plain, stored = _logits(net, context), _logits(_rounded_afterwards(net, 8), context)
    assert (plain.argmax(1) == context.labels).float().mean() > 0.85
    assert 0 < (plain - stored).abs().max() < 0.02 * plain.abs().max()


def test_training_through_the_rounding_beats_rounding_after_training(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=30, learning_rate=0.1)
    after = _rounded_afterwards(_result(tiny_residual, context, HALF).net, 2)
    through = _result(tiny_residual, context, HALF, bits=2, low_bits=2, high_bits=2).net
    losses = [float(functional.cross_entropy(_logits(net, context), context.labels)) for net in (through, after)]
    assert losses[0] < 0.9 * losses[1]


def test_distillation_brings_the_net_nearer_to_the_dense_one(tiny_residual, tiny_context) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_residual.state_dict().items()}
    context = tiny_context(epochs=20, learning_rate=0.1)
    dense = _logits(tiny_residual, context).log_softmax(1)
    apart = []
    for distill in (0.0, 1.0):
        logits = _logits(_result(tiny_residual, context, HALF, distill=distill).net, context).log_softmax(1)
        apart.append(float(functional.kl_div(logits, dense, reduction="batchmean", log_target=True)))
    assert apart[1] < 0.2 * apart[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_residual.state_dict().items())


@pytest.mark.parametrize("labels", ["unit", "onehot"])
def test_a_class_missing_from_the_images_ranks_as_if_there_were_none(tiny_residual, tiny_context, labels) -> None:
    smaller = copy.deepcopy(tiny_residual)
    smaller.head = torch.nn.Linear(8, 2)
    method = DiscriminantInformation(label_weight=1.0, labels=labels)
    found = []
    for net in (tiny_residual, smaller):  # of three classes, the last of which has no image, and of two
        context = tiny_context()
        space = trace(net, context.images)
        context.images, context.labels = context.images[context.labels < 2], context.labels[context.labels < 2]
        found.append(method.rankings(net, space, method.activation_moments(net, space, context)))
        snapshot = list(method.run(net, space, HALF, context))[-1]
        assert all(torch.isfinite(tensor).all() for tensor in snapshot.net.state_dict().values())
    for name, ranking in found[0].items():
        assert torch.isfinite(ranking.lost).all()
        assert torch.equal(ranking.ranks, found[1][name].ranks)
        torch.testing.assert_close(ranking.lost, found[1][name].lost)


def test_one_class_alone_is_an_error(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    context.labels = torch.zeros_like(context.labels)
    with pytest.raises(PruningError, match="fewer than two classes"):
        _result(tiny_residual, context, HALF)
