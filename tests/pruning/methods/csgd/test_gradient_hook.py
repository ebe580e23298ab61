import copy

import pytest
import tiny_nets as nets
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import TrainingPlan
from pruning.methods.csgd.clustering import cluster_channels
from pruning.methods.csgd.collapse import CollapsePlan, deviation_left
from pruning.methods.csgd.gradient_hook import (
    CentripetalHook,
    ClusterAverage,
    RescalingHook,
    clustered_tensors,
    deviations,
    worst,
)
from pruning.rewriting.index_maps import Clusters, NetworkClusters
from pruning.rewriting.surgery import merge_channels
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace

DECAY, RATE, EPSILON = 0.02, 0.05, 0.3
EQUAL = {"kernel": 1.0, "scale": 1.0, "bias": 1.0}
WIDTHS = {nets.Residual: {"stem": 3, "inner": 4}, nets.Concat: {"left": 2, "right": 4, "join": 3}}
WIDTHS |= {nets.Depthwise: {"expand": 5, "squeeze": 2, "project": 3}, nets.Grouped: {"first": 8, "grouped": 12}}


def plan(momentum: float = 0.0, nesterov: bool = False, steps: int = 30, decay: float = DECAY) -> TrainingPlan:
    return TrainingPlan((RATE,) * steps, momentum, nesterov, decay)


class Setup:
    """A net in float64 with clusters; gradients come from random numbers."""

    def __init__(self, make: type[nn.Module] = nets.Residual, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = make()
        self.space: SearchSpace = trace(self.net, torch.empty(1, *nets.IMAGE))
        self.net.to(dtype)
        self.clusters: Clusters = cluster_channels(self.net, self.space, WIDTHS[make])
        self.network_clusters = NetworkClusters(self.space, self.clusters)
        self.clustered = clustered_tensors(self.net, self.space, self.network_clusters)

    def hook(self, collapse: CollapsePlan | None = None, training: TrainingPlan | None = None) -> CentripetalHook:
        collapse = collapse or CollapsePlan(EPSILON, 0.0, 30, 0.0)
        return CentripetalHook(self.clustered, collapse, EQUAL, training or plan())

    def random_gradients(self) -> None:
        for parameter in self.net.parameters():
            parameter.grad = torch.randn_like(parameter)

    def optimiser(self, training: TrainingPlan) -> torch.optim.SGD:
        settings = {"momentum": training.momentum, "nesterov": training.nesterov}
        return torch.optim.SGD(self.net.parameters(), RATE, weight_decay=training.weight_decay, **settings)

    def apart(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                rows.name: rows.tensor - rows.index_map.expand(rows.index_map.means(rows.tensor, rows.dim), rows.dim)
                for rows in self.clustered
            }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_averages_by_index_equal_the_papers_matrix_products(dtype: torch.dtype, tolerance: float) -> None:
    setup = Setup(dtype=dtype)
    setup.random_gradients()
    labels = setup.clusters["stem"]
    inside = labels[:, None] == labels[None, :]
    averages = inside / inside.sum(1, keepdim=True).double()
    laplacian = (DECAY + EPSILON) * torch.eye(8).double() - EPSILON * averages
    torch.testing.assert_close(averages @ averages, averages, rtol=0, atol=1e-15)
    torch.testing.assert_close(averages.sum(1), torch.ones(8).double())
    torch.testing.assert_close(laplacian.sum(1), torch.full((8,), DECAY).double())
    weight = setup.net.get_parameter("outer.weight")
    expected = averages @ weight.grad.flatten(1).double() + laplacian @ weight.detach().flatten(1).double()
    setup.hook()(setup.net, 0)
    ours = weight.grad.flatten(1) + DECAY * weight.detach().flatten(1)  # the optimiser adds the decay
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dim", [0, 1])
def test_averages_by_index_and_by_matrix_are_the_same(dim: int) -> None:
    index_map = next(rows for rows in Setup().clustered if rows.name == "stem.weight").index_map
    tensor = torch.randn(8, 8, 3)
    expected = index_map.expand(index_map.means(tensor, dim), dim)
    for by_matrix in (False, True):
        torch.testing.assert_close(ClusterAverage(index_map, by_matrix)(tensor, dim), expected)


def test_gradients_of_layers_without_clusters_are_not_changed() -> None:
    setup = Setup()
    setup.clustered = []
    setup.random_gradients()
    before = [parameter.grad.clone() for parameter in setup.net.parameters()]
    setup.hook()(setup.net, 0)
    assert all(torch.equal(a, b.grad) for a, b in zip(before, setup.net.parameters(), strict=True))


def test_kernels_norms_and_biases_of_all_tied_layers_are_clustered() -> None:
    kinds = {rows.name: rows.kind for rows in Setup().clustered}
    assert kinds == {
        "stem.weight": "kernel", "outer.weight": "kernel", "inner.weight": "kernel", "bn.weight": "scale",
        "bn.bias": "bias", "outer.bias": "bias", "inner.bias": "bias", "bn.running_mean": "scale",
        "bn.running_var": "scale",
    }  # fmt: skip


@pytest.mark.parametrize("nesterov", [False, True])
def test_at_twice_the_rate_deviations_shrink_as_under_twice_the_strength(nesterov: bool) -> None:
    setup, training = Setup(), plan(0.9, nesterov, steps=12, decay=0.0)
    biases = [parameter for name, parameter in setup.net.named_parameters() if name.endswith("bias")]
    optimiser = torch.optim.SGD([{"params": biases, "lr": 2 * RATE}], momentum=0.9, nesterov=nesterov)
    hook, before = setup.hook(training=training), setup.apart()
    for step in range(12):
        setup.random_gradients()
        hook(setup.net, step)
        optimiser.step()
    left = float(deviation_left(training, [2 * EPSILON], 12)[0])
    for name in ("outer.bias", "inner.bias"):
        torch.testing.assert_close(setup.apart()[name], left * before[name], rtol=1e-10, atol=1e-14)


def test_without_momentum_deviations_shrink_by_a_factor_whatever_the_gradients() -> None:
    setup = Setup()
    optimiser, hook = setup.optimiser(plan()), setup.hook()
    for _ in range(5):
        before = setup.apart()
        setup.random_gradients()
        hook(setup.net, 0)
        optimiser.step()
        for name, apart in setup.apart().items():
            factor = 1.0 if "running" in name else 1 - RATE * (DECAY + EPSILON)
            torch.testing.assert_close(apart, factor * before[name], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(
                apart.square().sum(), factor**2 * before[name].square().sum(), rtol=1e-11, atol=0
            )


@pytest.mark.parametrize("nesterov", [True, False])
def test_with_momentum_deviations_follow_the_recursion(nesterov: bool) -> None:
    setup, training = Setup(), plan(0.9, nesterov)
    optimiser, hook, first = setup.optimiser(training), setup.hook(training=training), setup.apart()
    for step in range(30):
        setup.random_gradients()
        hook(setup.net, step)
        optimiser.step()
    left = float(deviation_left(training, [DECAY + EPSILON], 30)[0])
    for name, apart in setup.apart().items():
        if "running" not in name:
            torch.testing.assert_close(apart, left * first[name], rtol=0, atol=1e-13)


def test_cluster_means_follow_sgd_on_averaged_gradients() -> None:
    setup, training = Setup(), plan(0.9, True)
    optimiser, hook = setup.optimiser(training), setup.hook()
    tensor = next(rows for rows in setup.clustered if rows.name == "outer.weight")
    mean = nn.Parameter(tensor.index_map.means(tensor.tensor.detach()))
    plain = torch.optim.SGD([mean], RATE, 0.9, weight_decay=DECAY, nesterov=True)
    for _ in range(10):
        setup.random_gradients()
        mean.grad = tensor.index_map.means(tensor.tensor.grad)
        hook(setup.net, 0)
        optimiser.step()
        plain.step()
    torch.testing.assert_close(tensor.index_map.means(tensor.tensor.detach()), mean.detach(), rtol=1e-12, atol=1e-13)


def test_equal_members_stay_bit_equal() -> None:
    setup = Setup(dtype=torch.float32)
    optimiser, hook = setup.optimiser(plan(0.9, True)), setup.hook()
    collapse(setup)
    for _ in range(10):
        setup.random_gradients()
        hook(setup.net, 0)
        optimiser.step()
    assert deviations([rows for rows in setup.clustered if "running" not in rows.name]).values()
    for rows in setup.clustered:
        values = rows.tensor.detach()
        assert torch.equal(values, rows.index_map.expand(values[rows.index_map.first]))


def collapse(setup: Setup) -> None:
    with torch.no_grad():
        for rows in setup.clustered:
            rows.tensor.copy_(rows.index_map.expand(rows.index_map.means(rows.tensor, rows.dim), rows.dim))


def test_a_kind_of_tensor_has_its_own_strength() -> None:
    setup = Setup()
    hook = CentripetalHook(setup.clustered, CollapsePlan(EPSILON, 0.0, 1, 0.0), EQUAL | {"scale": 0.1}, plan(decay=0.0))
    with torch.no_grad():
        setup.net.get_parameter("bn.weight").normal_()
    before = setup.apart()
    setup.random_gradients()
    hook(setup.net, 0)
    setup.optimiser(plan(decay=0.0)).step()
    after = setup.apart()
    for name, factor in (("bn.weight", 0.1), ("inner.bias", 1.0)):
        torch.testing.assert_close(after[name], (1 - RATE * EPSILON * factor) * before[name], rtol=1e-12, atol=1e-15)


def test_a_direct_share_ends_in_equality_and_the_optimiser_moves_no_deviation() -> None:
    setup, training = Setup(), plan(0.9, True)
    with torch.no_grad():
        for buffer in ("bn.running_mean", "bn.running_var"):
            setup.net.get_buffer(buffer).normal_()
    groups = [{"params": [p], "weight_decay": DECAY if p.ndim > 1 else 0.0} for p in setup.net.parameters()]
    optimiser = torch.optim.SGD(groups, RATE, 0.9, nesterov=True)
    hook, first = setup.hook(CollapsePlan(0.0, 0.25, 4, 0.0), training), setup.apart()
    for step in range(6):
        setup.random_gradients()
        hook(setup.net, step)
        optimiser.step()
        left = 0.75 ** (step + 1) if step < 3 else 0.0
        for name, apart in setup.apart().items():
            torch.testing.assert_close(apart, left * first[name], rtol=1e-11, atol=1e-15)
    assert worst(deviations(setup.clustered))[0] < 1e-15


def train_a_step(net: nn.Module, hook: CentripetalHook | RescalingHook, optimiser: torch.optim.SGD, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, *nets.IMAGE, generator=generator, dtype=torch.float64)
    optimiser.zero_grad()
    functional.cross_entropy(net(images), torch.arange(8) % 5).backward()
    hook(net, step)
    optimiser.step()


@pytest.mark.parametrize("make", WIDTHS)
def test_the_narrow_net_with_rescaled_gradients_trains_like_the_wide_one(make: type[nn.Module]) -> None:
    setup, training = Setup(make), plan(0.9, True)
    collapse(setup)
    wide, hook = setup.net.train(), setup.hook()
    optimiser = setup.optimiser(training)
    for step in range(3):
        train_a_step(wide, hook, optimiser, step)
    narrow = merge_channels(wide, setup.space, setup.clusters)
    momentum = copy.deepcopy(wide)
    with torch.no_grad():
        for parameter, trained in zip(momentum.parameters(), wide.parameters(), strict=True):
            parameter.copy_(optimiser.state[trained]["momentum_buffer"])
    momentum = merge_channels(momentum, setup.space, setup.clusters)
    narrow_optimiser = torch.optim.SGD(narrow.parameters(), RATE, 0.9, weight_decay=DECAY, nesterov=True)
    for parameter, buffer in zip(narrow.parameters(), momentum.parameters(), strict=True):
        narrow_optimiser.state[parameter]["momentum_buffer"] = buffer.detach()
    rescaling = RescalingHook(narrow, setup.space, setup.network_clusters)
    for step in range(3, 13):
        train_a_step(wide, hook, optimiser, step)
        train_a_step(narrow, rescaling, narrow_optimiser, step)
    expected = merge_channels(wide, setup.space, setup.clusters).state_dict()
    for name, tensor in narrow.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
