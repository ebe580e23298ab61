import json
import math

import pytest
import tiny_nets
import torch
from torch import nn

from pruning.base import METHODS, Goal, PruningError
from pruning.inference import for_inference
from pruning.methods.kse.kernel_levels import KernelSpace
from pruning.methods.kse.kernel_sharing import SharedKernelConv2d
from pruning.methods.kse.method import KernelSparsityEntropy
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.trial import Trial, TrialState
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.errors import BudgetError
from spaces.space import SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths

SHAPE = (3, 8, 8)


def run(net, tiny_context, share=0.5, method=None, **options):
    net.eval()
    space = trace(net, torch.zeros(1, *SHAPE))
    budgets = () if share is None else (Budget("flops", int(share * space.dense_cost.flops)),)
    method, context = method or KernelSparsityEntropy(), tiny_context(**options)
    context.prepared = method.prepare(net, space, context)
    return list(method.run(net, space, Goal(budgets=budgets), context))


def test_the_latency_ratio_is_measured_against_the_dense_net_by_the_context(tiny_residual, tiny_context):
    space, context = trace(tiny_residual, torch.zeros(1, *SHAPE)), tiny_context(latency=0.75)
    goal = Goal(budgets=(Budget.parse("50%"),))
    *_, last = KernelSparsityEntropy().run(tiny_residual, space, goal, context)
    assert last.note["latency_ratio"] == 0.75
    ((narrow, dense),) = context.timed
    assert narrow is last.net
    assert dense is tiny_residual


def shared(net):
    return [module for module in net.modules() if isinstance(module, SharedKernelConv2d)]


def test_snapshots_have_the_promised_cost_and_the_note_reports_the_levels(tiny_residual, tiny_context):
    first, last = run(tiny_residual, tiny_context)
    for snapshot in (first, last):
        assert count_cost(snapshot.net, SHAPE) == snapshot.cost
    assert [snapshot.epoch for snapshot in (first, last)] == [0, 1]
    note = dict(last.note)
    assert json.loads(json.dumps(note)) == note
    assert note["flops_ratio"] == last.cost.flops / count_cost(tiny_residual, SHAPE).flops <= 0.5
    assert note["latency_ratio"] == 1.25
    plain = count_cost(for_inference(last.net), SHAPE)
    assert note["flops_ratio"] < note["plain_flops_ratio"] == plain.flops / count_cost(tiny_residual, SHAPE).flops
    assert "latency_ratio" not in first.note
    assert note["levels"] == 4
    assert note["multiplier"] > 0
    assert 0 <= note["channels_unread"] < 1
    assert note["index_bits"] == sum(layer.index_bits for layer in shared(last.net))
    tensors = last.net.state_dict().values()
    assert note["size_mb"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def test_indices_stay_and_kernels_learn(tiny_residual, tiny_context):
    net = tiny_residual.eval()
    space = trace(net, torch.zeros(1, *SHAPE))
    goal = Goal(budgets=(Budget("flops", space.dense_cost.flops // 2),))
    snapshots = KernelSparsityEntropy().run(net, space, goal, tiny_context(epochs=2))
    (before, *_) = shared(next(snapshots).net)
    codebook, packed = before.codebook.detach().clone(), before.packed.clone()
    (after, *_) = shared(list(snapshots)[-1].net)
    assert not torch.equal(after.codebook, codebook)
    assert torch.equal(after.packed, packed)


def test_without_a_budget_the_levels_are_the_papers(tiny_residual, tiny_context):
    last = run(tiny_residual, tiny_context, share=None)[-1]
    assert last.note["multiplier"] == 1
    assert last.cost.flops < count_cost(tiny_residual, SHAPE).flops
    deeper = run(tiny_residual, tiny_context, share=None, method=KernelSparsityEntropy(shift=1))[-1]
    assert deeper.cost.flops < last.cost.flops


def test_levels_and_shift_alone_decide_as_published_where_nothing_is_fitted(tiny_residual):
    """The reference counts by the paper's formula, channel by channel: q = ceil(N / 2^(G - ceil(v G) + T))."""
    method = KernelSparsityEntropy(levels=4, shift=1, fitted=False)
    space = trace(tiny_residual, torch.zeros(1, *SHAPE), SpaceConfig(floor=1.0))  # channels that none reads stay
    prepared = method.prepare(tiny_residual, space, None)
    indicators, saved = method.indicators(prepared), 0
    for conv in prepared.convs:
        outputs = tiny_residual.get_submodule(conv.name).out_channels
        for v in indicators[conv.name]:
            kept = (
                0
                if 4 * v < 1
                else outputs
                if math.ceil(4 * v) == 4
                else math.ceil(outputs / 2 ** (5 - math.ceil(4 * v)))
            )
            saved += conv.positions * conv.area * (outputs - kept)
    kernel_space = KernelSpace(tiny_residual, space, prepared.convs, indicators)
    _, assignment, multiplier = method.chosen(kernel_space, [Budget("flops", space.dense_cost.flops)])
    assert (assignment.widths, multiplier) == (space.full, 1)
    assert space.dense_cost.flops - assignment.cost.flops == saved
    with pytest.raises(BudgetError, match=r"levels=4 and shift=1 alone give .* leave kse.fitted at true"):
        method.chosen(kernel_space, [Budget("flops", assignment.cost.flops - 1)])


@pytest.mark.parametrize("share", [0.25, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("factory", [tiny_nets.Residual, tiny_nets.Concat, tiny_nets.Depthwise, tiny_nets.Grouped])
def test_nets_of_all_kinds_meet_their_budget(factory, share, tiny_context):
    torch.manual_seed(0)
    net = factory()
    last = run(net, tiny_context, share, classes=5)[-1]
    counted = count_cost(last.net, SHAPE)
    assert counted == last.cost
    assert counted.flops <= share * count_cost(net, SHAPE).flops
    assert all(torch.isfinite(tensor).all() for tensor in last.net.state_dict().values())


def test_a_convolution_that_keeps_everything_stays_plain_and_exact(tiny_residual, tiny_context):
    net = run(tiny_residual, tiny_context, share=1.0, epochs=0)[-1].net
    assert not shared(net)
    for name, tensor in net.state_dict().items():
        if "norm" not in name:  # re-estimated
            assert torch.equal(tensor, tiny_residual.state_dict()[name])


def test_the_shift_rises_where_the_budget_asks_for_it():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(256, 3)).eval()
    space = trace(net, torch.zeros(1, *SHAPE))
    method = KernelSparsityEntropy()
    prepared = method.prepare(net, space, None)
    kernel_space = KernelSpace(net, space, prepared.convs, method.indicators(prepared))
    shifts = []
    for share in (0.9, 0.5, 0.3, 0.15):
        rule, assignment, _ = method.chosen(kernel_space, [Budget("flops", int(share * space.dense_cost.flops))])
        assert assignment.cost.flops > 0.98 * share * space.dense_cost.flops
        shifts.append(rule.shift)
    assert shifts == sorted(shifts)
    assert shifts[0] == 0
    assert shifts[-1] > 0


def test_widths_are_refused(tiny_residual, tiny_context):
    space = trace(tiny_residual, torch.zeros(1, *SHAPE))
    with pytest.raises(PruningError, match="cannot be given widths"):
        next(KernelSparsityEntropy().run(tiny_residual, space, Goal(Widths({"conv1": 4})), tiny_context()))


def test_a_budget_out_of_reach_names_the_least_cost(tiny_residual, tiny_context):
    with pytest.raises(BudgetError, match="at least, over the budget"):
        run(tiny_residual, tiny_context, share=0.01)


def test_a_net_without_kernels_to_share_is_refused(tiny_context):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    with pytest.raises(PruningError, match="no convolution"):
        run(net, tiny_context)


@pytest.mark.parametrize(
    "setting", ["levels=0", "shift=-1", "shift=17", "alpha=-1", "neighbours=0", "restarts=0", "iterations=0"]
)
def test_settings_out_of_range_are_refused(setting):
    name, value = setting.split("=")
    with pytest.raises(PruningError, match=f"setting {name}={value} of kse"):
        KernelSparsityEntropy(**{name: int(value)})


@pytest.mark.parametrize("options", [{"second_minmax": True}, {"alpha": 2.6}, {"neighbours": 2}, {"levels": 2}])
def test_every_setting_works(options, tiny_residual, tiny_context):
    last = run(tiny_residual, tiny_context, method=KernelSparsityEntropy(**options))[-1]
    assert count_cost(last.net, SHAPE) == last.cost


@pytest.mark.parametrize("break_it", ["zeros", "equal", "zero channel", "few"])
def test_odd_kernels_give_a_defined_net(break_it, tiny_context):
    torch.manual_seed(0)
    width = 4 if break_it == "few" else 12  # under 6 kernels
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 3), nn.BatchNorm2d(width)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, 8, 1), nn.Flatten(), nn.Linear(128, 3)).eval()
    with torch.no_grad():
        if break_it == "zeros":
            net[3].weight.zero_()
        elif break_it == "equal":
            net[3].weight.fill_(0.1)
            net[6].weight.fill_(0.1)
        elif break_it == "zero channel":
            net[3].weight[:, 2] = 0
            net[6].weight[3] = 0
    last = run(net, tiny_context, 0.4)[-1]
    assert count_cost(last.net, SHAPE) == last.cost
    assert all(torch.isfinite(tensor).all() for tensor in last.net.state_dict().values())
    assert not any(isinstance(value, float) and math.isnan(value) for value in last.note.values())


def test_one_channel_is_kept_whole_by_its_indicator(tiny_context):
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten())
    net.append(nn.Linear(128, 3))
    last = run(net, tiny_context, 0.7)[-1]
    assert count_cost(last.net, SHAPE) == last.cost


def test_weights_that_are_not_finite_are_refused(tiny_residual, tiny_context):
    with torch.no_grad():
        tiny_residual.conv2.weight[0, 0] = torch.inf
    with pytest.raises(PruningError, match="not finite"):
        run(tiny_residual, tiny_context)


def test_a_trial_is_evaluated_and_its_checkpoint_comes_back(tiny_search_context: SearchContext):
    from pruning import checkpoint

    goal = Goal(budgets=(Budget("flops", int(0.6 * tiny_search_context.space.dense_cost.flops)),))
    trial = evaluate(Trial(0, "kse", goal), tiny_search_context)
    while True:
        try:
            next(trial)
        except StopIteration as stop:
            result = stop.value
            break
    assert result.state is TrialState.COMPLETE, result.error
    back = checkpoint.from_bytes(result.checkpoint, model=tiny_search_context.net)
    assert count_cost(back, tiny_search_context.space.input_shape) == result.cost


def test_it_is_registered():
    assert METHODS["kse"] is KernelSparsityEntropy
    assert (KernelSparsityEntropy.finds_widths, KernelSparsityEntropy.takes_widths) == (True, False)
