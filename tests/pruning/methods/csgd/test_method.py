import copy
import dataclasses
import logging

import pytest
import torch
from torch import nn

from pruning.base import Goal, PruningError
from pruning.methods.csgd.method import CentripetalSGD, _difference
from runners.evaluation.context import TrialContext
from spaces.tracing.tracer import trace
from spaces.widths import Widths

LONG = {"epochs": 75, "batch_size": 4}  # 1200 steps, after which the gradient alone has made filters equal
CUT = Goal(widths=Widths({"stem": 4, "conv1": 6}))


def run(method: CentripetalSGD, search_context, epochs: int, **train):
    """Run the method on a net with two groups, 0 and 3, of 8 channels; an epoch has two steps."""
    config = dataclasses.replace(search_context.train, epochs=epochs, **train)
    goal = Goal(widths=Widths({group.name: 4 for group in search_context.space.variable}))
    return list(
        method.run(search_context.net, search_context.space, goal, TrialContext(search_context.data, config, seed=1))
    )


def test_a_snapshot_per_epoch_and_one_where_there_are_none(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    for epochs, expected in ((2, [1, 2]), (0, [0])):
        snapshots = list(CentripetalSGD().run(tiny_residual, space, CUT, tiny_context(epochs=epochs)))
        assert [snapshot.epoch for snapshot in snapshots] == expected


def test_short_trainings_collapse_by_a_direct_share_and_continue_in_the_narrow_net(tiny_search_context) -> None:
    *before, last = run(CentripetalSGD(), tiny_search_context, epochs=4)
    assert [snapshot.note["collapsed"] for snapshot in before] == [False, True, True]
    assert (last.note["collapsed"], last.note["pull"], last.note["trimmed_after_epoch"]) == (True, "direct", 2)
    assert last.note["deviation"] <= 1e-6
    assert last.note["merge_error"] <= 1e-5


def test_long_trainings_collapse_through_the_gradient_alone(tiny_search_context) -> None:
    last = run(CentripetalSGD(), tiny_search_context, **LONG)[-1]
    assert (last.note["pull"], last.note["collapsed"]) == ("gradient", True)
    assert last.note["epsilon"] > 0.003  # the paper's would take hundreds of epochs of its own data


def test_biases_that_learn_faster_collapse_faster_and_the_plan_knows(tiny_search_context) -> None:
    net = copy.deepcopy(tiny_search_context.net)
    for layer in (net[1], net[4]):
        torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(0))
    search_context = dataclasses.replace(tiny_search_context, net=net)
    once = run(CentripetalSGD(), search_context, **LONG)[-1].note
    twice = run(CentripetalSGD(bias_strength=0.5), search_context, **LONG, bias_lr_mult=2.0)[-1].note
    assert twice["epsilon"] == once["epsilon"]  # half the strength at twice the rate is the same product
    assert (twice["collapsed"], twice["pull"]) == (True, "gradient")
    strong = run(CentripetalSGD(strength="fixed", epsilon=0.01), search_context, 2, bias_lr_mult=2.0)[-1].note
    weak = run(CentripetalSGD(strength="fixed", epsilon=0.01, bias_strength=0.01), search_context, 2)[-1].note
    assert strong["deviation_bias"] < weak["deviation_bias"]


def test_a_net_that_has_not_collapsed_says_so_and_is_merged_nevertheless(tiny_search_context) -> None:
    (snapshot,) = run(CentripetalSGD(strength="fixed"), tiny_search_context, epochs=1)
    note = snapshot.note
    assert (note["collapsed"], note["epsilon"]) == (False, 0.003)
    assert note["deviation"] > 1e-3
    assert note["deviation"] == max(value for name, value in note.items() if name.startswith("deviation_w"))
    assert "merge_error" not in note
    assert "trimmed_after_epoch" not in note
    assert snapshot.net.eval()(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_batchnorm_is_re_estimated_where_filters_are_not_equal(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    context = tiny_context(epochs=0)
    (snapshot,) = CentripetalSGD().run(tiny_residual, space, CUT, context)
    with torch.no_grad():
        seen = snapshot.net.stem(context.images).mean(dim=(0, 2, 3))
    torch.testing.assert_close(snapshot.net.norm.running_mean, 0.1 * seen)


def test_the_narrow_net_ends_where_the_wide_one_would(tiny_search_context) -> None:
    narrow, merged = (
        run(CentripetalSGD(early_trim=trim), tiny_search_context, epochs=6)[-1].net for trim in (True, False)
    )
    for name, tensor in narrow.state_dict().items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_plan_and_the_deviation_of_every_tensor_are_logged(tiny_search_context, caplog) -> None:
    with caplog.at_level(logging.DEBUG, logger="pruning.methods.csgd.method"):
        note = run(CentripetalSGD(), tiny_search_context, epochs=1)[-1].note
        run(CentripetalSGD(strength="fixed"), tiny_search_context, epochs=1)
    messages = [record.getMessage() for record in caplog.records]
    direct, fixed = (message for message in messages if "of the deviations after" in message)
    assert f"after {note['collapse_planned_after_steps']} of 4 steps" in direct
    assert "epsilon 0.003 leaves" in fixed
    measured = next(message for message in messages if message.startswith("deviations after epoch 1"))
    for norm, kernel in (("1", "0"), ("4", "3")):
        tensors = [
            f"{kernel}.weight",
            *(f"{norm}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")),
        ]
        assert all(f"'{name}'" in measured for name in tensors)


@pytest.mark.parametrize("setting", ["scale_strength", "bias_strength"])
def test_a_weaker_strength_for_a_kind_of_tensor_leaves_larger_deviations(tiny_search_context, setting: str) -> None:
    fixed = {"strength": "fixed", "epsilon": 0.3}
    equal, weaker = (
        run(CentripetalSGD(**fixed, **{setting: strength}), tiny_search_context, epochs=1)[-1]
        for strength in (1.0, 0.1)
    )
    assert weaker.note["deviation_planned"] > equal.note["deviation_planned"]


def test_no_cluster_at_all_is_plain_training(tiny_search_context) -> None:
    goal = Goal(widths=tiny_search_context.space.full)
    context = TrialContext(tiny_search_context.data, tiny_search_context.train, seed=1)
    last = list(CentripetalSGD().run(tiny_search_context.net, tiny_search_context.space, goal, context))[-1]
    assert (last.note["collapsed"], last.note["deviation"]) == (True, 0.0)


@pytest.mark.parametrize("early_trim", [True, False])
def test_batchnorm_is_re_estimated_where_filters_were_made_equal_in_a_few_steps(
    tiny_residual, tiny_context, early_trim
) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    context = tiny_context(epochs=2)
    *_, last = CentripetalSGD(early_trim=early_trim, deadline=0.9).run(tiny_residual, space, CUT, context)
    assert (last.note["collapsed"], last.note["pull"]) == (True, "direct")
    with torch.no_grad():
        seen = last.net.stem(context.images).mean(dim=(0, 2, 3))
    momentum = last.net.norm.momentum  # one batch after statistics were reset
    assert torch.allclose(last.net.norm.running_mean, momentum * seen, atol=1e-5)


def test_layers_that_normalise_over_channels_are_never_called_collapsed(tiny_context) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(1, 8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 3)
    )
    space = trace(net, torch.zeros(1, 3, 8, 8))
    goal = Goal(widths=Widths({"0": 5}))
    last = list(CentripetalSGD(clusters="even").run(net, space, goal, tiny_context(epochs=4)))[-1]
    assert last.note["deviation"] <= 1e-6
    assert last.note["merge_error"] > 1e-5
    assert not last.note["collapsed"]


@pytest.mark.parametrize("clusters", ["even", "imbalanced"])
def test_other_clusters_reach_the_widths_too(tiny_search_context, clusters: str) -> None:
    last = run(CentripetalSGD(clusters=clusters), tiny_search_context, epochs=2)[-1]
    assert dict(last.widths) == dict.fromkeys(last.widths, 4)
    assert last.note["clusters"] == clusters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0 of csgd must be above 0"),
        ({"deadline": 1.5}, r"deadline=1.5 of csgd must be above 0, at most 1.0"),
        ({"bias_strength": -1.0}, "bias_strength"),
        ({"strength": "huge"}, "must be one of budget, fixed"),
        ({"clusters": "odd"}, "kmeans, even, imbalanced"),
        ({"rows": "none"}, "all, pacesetter"),
    ],
)
def test_settings_out_of_range_are_named(settings, message) -> None:
    with pytest.raises(PruningError, match=message):
        CentripetalSGD(**settings)


def test_the_loss_of_a_merge_is_measured_without_tf32(tiny_context) -> None:
    """TF32 exists on GPUs alone; its switches do everywhere."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, seen = (matmul.allow_tf32, cudnn.allow_tf32), []

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((matmul.allow_tf32, cudnn.allow_tf32))
            return images.mean((2, 3))

    assert _difference(Spy(), Spy(), tiny_context()) == 0.0
    assert set(seen) == {(False, False)}
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
