import copy
import math

import pytest
import tiny_nets as nets
import torch
from torch import Tensor, nn

from pruning.criteria.weights import norm_scores
from pruning.methods.abfp.balancing import AutoBalance, balance_factors, normalised_layers, restore_norms
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace

ALPHA = 5e-4


def space_of(net: nn.Module) -> SearchSpace:
    return trace(copy.deepcopy(net).float(), torch.zeros(1, *nets.IMAGE))


def half_of(net: nn.Module) -> tuple[SearchSpace, dict[str, Tensor], dict[str, Tensor]]:
    """Return the space, the kept channels and all factors for a cut of every group to half its width."""
    space = space_of(net)
    importance = norm_scores(net, space, order=1)
    widths = {group.name: max(group.conv_groups, group.width // 2) for group in space.variable}
    kept = dict(select_channels(space, importance, widths))
    factors = {
        name: balance_factors(importance[name], strong, space.by_name[name].conv_groups)
        for name, strong in kept.items()
    }
    return space, kept, factors


def wide(make, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().double().eval()


def gradient_of(net: nn.Module, hook: AutoBalance) -> dict[str, Tensor]:
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    hook(net, 0)
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_factors_are_one_and_the_log_distance_from_the_threshold() -> None:
    found = balance_factors(torch.tensor([4.0, 1.0, 2.0, 8.0]), torch.tensor([0, 3]))
    assert found.tolist() == pytest.approx([-1.0, 1 + math.log(4), 1 + math.log(2), -1 - math.log(2)])


def test_signs_magnitudes_and_the_threshold_filter() -> None:
    importance = torch.rand(64, generator=torch.Generator().manual_seed(1))
    kept = importance.topk(20).indices.sort().values
    found = balance_factors(importance, kept)
    strong = torch.zeros(64, dtype=torch.bool).index_fill(0, kept, True)
    assert ((found < 0) == strong).all()
    assert (found.abs() >= 1).all()
    assert found[importance == importance[kept].min()].tolist() == [-1.0]


def test_factors_do_not_depend_on_the_scale_of_a_layer() -> None:
    importance, kept = torch.tensor([3.0, 0.5, 2.0, 7.0]), torch.tensor([0, 3])
    assert torch.allclose(balance_factors(1e5 * importance, kept), balance_factors(importance, kept))


def test_every_conv_group_has_its_own_threshold() -> None:
    found = balance_factors(torch.tensor([4.0, 2.0, 100.0, 50.0]), torch.tensor([0, 2]), conv_groups=2)
    assert found.tolist() == pytest.approx([-1.0, 1 + math.log(2)] * 2)


def test_equal_importances_differ_by_whether_the_channel_is_kept() -> None:
    assert balance_factors(torch.ones(4), torch.tensor([0, 1])).tolist() == [-1.0, -1.0, 1.0, 1.0]


@pytest.mark.parametrize("importance", [[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1e-30, 2.0], [1.0, 0.0, 0.0, 0.0]])
def test_dead_filters_have_bounded_factors(importance) -> None:
    found = balance_factors(torch.tensor(importance), torch.tensor([0, 3]))
    assert torch.isfinite(found).all()
    assert (found.abs() < 19.5).all()


def test_nothing_is_weak_when_all_stay() -> None:
    assert (balance_factors(torch.rand(5), torch.arange(5)) <= -1).all()


@pytest.mark.parametrize("make", nets.ALL)
def test_both_terms_cancel_in_every_layer_at_every_step(make) -> None:
    net = wide(make)
    space, _, factors = half_of(net)
    hook = AutoBalance(net, space, factors, ALPHA)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        pull, push = hook.terms()
        balanced = push < 0  # biases only decay
        assert balanced.any()
        assert (pull >= 0).all()  # and so tau >= 0
        assert ((pull + push)[balanced].abs() <= 1e-12 * pull[balanced]).all()
        optimiser.zero_grad()
        net(torch.randn(4, *nets.IMAGE, dtype=torch.float64)).square().mean().backward()
        hook(net, step)
        optimiser.step()


@pytest.mark.parametrize("make", nets.ALL)
def test_the_gradient_is_that_of_the_terms_with_the_balance_held_constant(make) -> None:
    net = wide(make)
    space, _, factors = half_of(net)
    ours = gradient_of(net, AutoBalance(net, space, factors, ALPHA, scales=False))
    table = torch.zeros(space.groups[-1].start + space.groups[-1].width + 1, dtype=torch.float64)
    owner = torch.full_like(table, -1)
    for index, group in enumerate(space.groups):
        if group.name in factors:
            table[group.start : group.start + group.width] = factors[group.name]
            owner[group.start : group.start + group.width] = index

    def loss(detached: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, weight in net.named_parameters():
            ids = space.axes.get(name, {}).get(0)
            if ids is None or weight.ndim < 2:
                continue
            energies, rows = nets.filters_of(name, weight).flatten(1).square().sum(1), torch.as_tensor(ids)
            for index in owner[rows].unique():
                lam = table[rows].where(owner[rows] == index, 0.0)
                pull, push = (lam.clamp_min(0) * energies).sum(), (lam.clamp_max(0) * energies).sum()
                if push < 0:
                    tau = -ALPHA * pull / push
                    total = total + ALPHA * pull + (tau.detach() if detached else tau) * push
        return total

    named = dict(net.named_parameters())
    theirs = torch.autograd.grad(loss(detached=True), list(named.values()), allow_unused=True)
    for (name, mine), reference in zip(ours.items(), theirs, strict=True):
        expected = torch.zeros_like(mine) if reference is None else reference
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-15, msg=name)
    undetached = torch.autograd.grad(loss(detached=False), list(named.values()), allow_unused=True)
    assert max(float(gradient.abs().max()) for gradient in undetached if gradient is not None) < 1e-15


def test_a_step_of_the_regulariser_alone_moves_energy_from_weak_to_strong_and_keeps_the_total() -> None:
    changes = []
    for rate in (1e-2, 1e-3):
        net = wide(nets.Residual)
        space, kept, factors = half_of(net)
        before = net.inner.weight.detach().flatten(1).square().sum(1)
        gradient = gradient_of(net, AutoBalance(net, space, factors, alpha=0.1))["inner.weight"]
        after = (net.inner.weight.detach() - rate * gradient).flatten(1).square().sum(1)
        strong = torch.zeros(6, dtype=torch.bool).index_fill(0, kept["inner"], True)
        assert (after[strong] > before[strong]).all()
        assert (after[~strong] < before[~strong]).all()
        changes.append(abs(float(after.sum() - before.sum())))
    assert changes[0] / changes[1] == pytest.approx(100, rel=1e-3)  # second order in the rate


def test_energy_ends_up_with_the_strong_filters() -> None:
    net = wide(nets.Residual)
    space, _, factors = half_of(net)
    hook = AutoBalance(net, space, factors, alpha=0.05)
    total, first = float(net.inner.weight.detach().square().sum()), hook.weak_share()
    for _ in range(200):
        gradient_of(net, hook)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    assert first > 0.2
    assert hook.weak_share() < 0.01
    assert float(net.inner.weight.detach().square().sum()) == pytest.approx(total, rel=0.02)


def test_the_balance_is_found_anew_at_every_step() -> None:
    net = wide(nets.Residual)
    space, kept, factors = half_of(net)
    hook = AutoBalance(net, space, factors, ALPHA)
    strong = int(kept["inner"][0])
    first = gradient_of(net, hook)["inner.weight"][strong]
    weak = sorted(set(range(6)) - set(kept["inner"].tolist()))
    with torch.no_grad():
        net.inner.weight[weak] *= 0.5
    second = gradient_of(net, hook)["inner.weight"][strong]
    torch.testing.assert_close(second, 0.25 * first)


def test_scaling_a_layer_does_not_change_its_balance() -> None:
    net = wide(nets.Residual)
    space, _, factors = half_of(net)
    one = gradient_of(net, AutoBalance(net, space, factors, ALPHA))["inner.weight"]
    with torch.no_grad():
        net.inner.weight *= 100
    other = gradient_of(net, AutoBalance(net, space, half_of(net)[2], ALPHA))["inner.weight"]
    torch.testing.assert_close(other, 100 * one)


def test_biases_of_weak_channels_decay_and_those_of_strong_ones_do_not_change() -> None:
    net = wide(nets.Residual)
    space, kept, factors = half_of(net)
    gradient = gradient_of(net, AutoBalance(net, space, factors, ALPHA))["inner.bias"]
    strong = torch.zeros(6, dtype=torch.bool).index_fill(0, kept["inner"], True)
    assert (gradient[strong] == 0).all()
    torch.testing.assert_close(gradient[~strong], 2 * ALPHA * factors["inner"][~strong] * net.inner.bias[~strong])


def test_without_scales_only_kernels_are_balanced() -> None:
    net = wide(nets.Residual)
    space, _, factors = half_of(net)
    gradients = gradient_of(net, AutoBalance(net, space, factors, ALPHA, scales=False))
    assert all(float(gradients[name].abs().sum()) == 0 for name in ("bn.weight", "bn.bias", "inner.bias", "fc.weight"))
    assert float(gradients["stem.weight"].abs().sum()) > 0


# Not ChannelsLast: a LayerNorm divides by the deviation over all channels, so that fewer of them change the others.
@pytest.mark.parametrize("make", [kind for kind in nets.ALL if kind is not nets.ChannelsLast])
def test_zeroed_weak_channels_can_be_cut_without_a_trace(make) -> None:
    net = wide(make)
    space, kept, factors = half_of(net)
    zeroed = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in zeroed.named_parameters():
            filters = nets.filters_of(name, parameter)
            for index in range(len(filters)):
                channel = int(space.axes.get(name, {}).get(0, [-1] * len(filters))[index])
                for group in space.variable:
                    if 0 <= channel - group.start < group.width and factors[group.name][channel - group.start] > 0:
                        filters[index] = 0
    images = torch.randn(3, *nets.IMAGE, dtype=torch.float64)
    narrow = slice_channels(zeroed, space, kept)
    torch.testing.assert_close(narrow(images), zeroed(images))


def test_dead_filters_nothing_to_cut_and_missing_gradients_leave_no_nan() -> None:
    net = wide(nets.Residual)
    with torch.no_grad():
        net.inner.weight.zero_()
    space, _, factors = half_of(net)
    hook = AutoBalance(net, space, factors, ALPHA)
    assert all(torch.isfinite(gradient).all() for gradient in gradient_of(net, hook).values())
    assert math.isfinite(hook.weak_share())
    for parameter in net.parameters():
        parameter.grad = None
    hook(net, 0)
    assert all(parameter.grad is None for parameter in net.parameters())
    idle = AutoBalance(net, space, {}, ALPHA)
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradient_of(net, idle).values())
    assert idle.weak_share() == 0


def test_without_a_cut_there_is_no_gradient() -> None:
    net = wide(nets.Residual)
    space = space_of(net)
    factors = {
        group.name: balance_factors(torch.rand(group.width), torch.arange(group.width)) for group in space.variable
    }
    assert all(
        float(gradient.abs().sum()) == 0
        for gradient in gradient_of(net, AutoBalance(net, space, factors, 0.1)).values()
    )


def test_only_layers_right_before_a_batchnorm_are_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.normalised = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.normalised(self.plain(x).relu())).mean(dim=(2, 3)))

    net = Mixed().train()
    assert normalised_layers(net, space_of(net)) == ["normalised"]
    assert net.norm.training
    assert not net.norm.num_batches_tracked


@pytest.mark.parametrize("make", [nets.Residual, nets.Depthwise])
def test_filters_before_a_batchnorm_get_their_norms_back_without_a_change_of_output(make) -> None:
    before = wide(make).train()
    for module in before.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    grown = copy.deepcopy(before)
    layers = normalised_layers(grown, space_of(grown))
    assert layers
    with torch.no_grad():
        for name in layers:
            weight = grown.get_submodule(name).weight
            weight.mul_(torch.linspace(0.5, 3, len(weight), dtype=weight.dtype).view(-1, 1, 1, 1))
    images = torch.rand(4, *nets.IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = grown(images)
    restore_norms(grown, before, space_of(grown), layers)
    assert torch.allclose(grown(images), expected, rtol=1e-9)
    for name in layers:
        assert torch.allclose(grown.get_submodule(name).weight, before.get_submodule(name).weight, rtol=1e-12)


def test_dead_filters_stay_dead_when_norms_are_restored() -> None:
    before = wide(nets.Residual)
    after = copy.deepcopy(before)
    layers = normalised_layers(after, space_of(after))
    with torch.no_grad():
        after.get_submodule(layers[0]).weight[0] = 0
    restore_norms(after, before, space_of(after), layers)
    assert not after.get_submodule(layers[0]).weight[0].any()
