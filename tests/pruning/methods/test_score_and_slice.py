import pickle

import pytest
import tiny_nets as nets
import torch
from torch import nn

from pruning.base import METHODS, Goal, PruningError, Rates
from pruning.criteria.norms import L2
from pruning.methods.score_and_slice import RandomChannels, RankedMaps, ScoreAndSlice, TaylorGates, UniformL2
from pruning.settings import declared_settings
from spaces.budget import Budget
from spaces.errors import BudgetError, UnknownNameError
from spaces.space import SearchSpace, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.widths import Widths

CUT = Goal(widths=Widths({"stem": 4, "conv1": 6}))
BASELINES = ("bn_scale", "feature_rank", "geometric_median", "l1", "l2", "random", "taylor")


def _half(space: SearchSpace) -> Widths:
    return space.fit(uniform_ratios(space), [Budget("flops", space.dense_cost.flops // 2)])


def test_the_channels_of_the_best_scores_stay_with_their_weights(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=0)
    space = trace(tiny_residual, context.images)
    (snapshot,) = UniformL2().run(tiny_residual, space, CUT, context)
    scores = L2().scores(tiny_residual, space, context)
    stem, conv1 = (scores[name].topk(width).indices.sort().values for name, width in (("stem", 4), ("conv1", 6)))
    assert torch.equal(snapshot.net.conv1.weight, tiny_residual.conv1.weight[conv1][:, stem])


def test_batchnorm_is_re_estimated_before_the_first_snapshot(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=0)
    space = trace(tiny_residual, context.images)
    (snapshot,) = UniformL2().run(tiny_residual, space, CUT, context)
    with torch.no_grad():
        seen = snapshot.net.stem(context.images).mean(dim=(0, 2, 3))
    assert not torch.allclose(snapshot.net.norm.running_mean, torch.zeros(4))
    torch.testing.assert_close(snapshot.net.norm.running_mean, 0.1 * seen)  # one batch at the usual momentum


def test_a_snapshot_per_epoch_of_one_net(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    snapshots = list(UniformL2().run(tiny_residual, space, CUT, tiny_context(epochs=2)))
    assert [snapshot.epoch for snapshot in snapshots] == [0, 1, 2]
    assert len({id(snapshot.net) for snapshot in snapshots}) == 1


def test_budgets_alone_mean_uniform_widths(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    budget = Budget.parse("40%")
    snapshot = next(UniformL2().run(tiny_residual, space, Goal(budgets=(budget,)), tiny_context()))
    assert snapshot.widths == space.fit(uniform_ratios(space), [budget.resolve(space.dense_cost)])


def test_any_criterion_can_be_named(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    for criterion in ("l1", "discriminant"):
        snapshot = next(ScoreAndSlice(criterion).run(tiny_residual, space, CUT, tiny_context()))
        assert snapshot.note["criterion"] == criterion
    with pytest.raises(UnknownNameError, match="l3"):
        next(ScoreAndSlice("l3").run(tiny_residual, space, CUT, tiny_context()))


def test_random_channels_of_different_seeds_keep_different_channels(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))

    def kept(seed: int) -> torch.Tensor:
        return next(RandomChannels().run(tiny_residual, space, CUT, tiny_context(seed=seed))).net.stem.weight

    assert torch.equal(kept(1), kept(1))
    assert not torch.equal(kept(1), kept(2))


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_named_as_its_criterion_and_cites_a_paper(name) -> None:
    baseline = METHODS[name]()
    assert baseline.name == baseline.criterion == name
    assert "arXiv" in baseline.paper
    assert {"allocation", "compensate"} <= {declared.name for declared in declared_settings(baseline)}
    assert not any(declared.searchable for declared in declared_settings(baseline))


@pytest.mark.parametrize("name", ["taylor", "feature_rank", "l2"])
def test_the_dense_net_is_scored_once_per_search(tiny_residual, tiny_context, name) -> None:
    context, method = tiny_context(), METHODS[name](compensate=True)
    space = trace(tiny_residual, context.images)
    alone = list(method.run(tiny_residual, space, CUT, tiny_context()))[-1].net.state_dict()
    context.prepared = pickle.loads(pickle.dumps(method.prepare(tiny_residual, space, context)))
    context.calibrations = 0
    together = list(method.run(tiny_residual, space, CUT, context))[-1].net.state_dict()
    assert context.calibrations == 0
    assert all(torch.equal(tensor, together[key]) for key, tensor in alone.items())


def test_scores_of_other_settings_are_computed_anew(tiny_residual, tiny_context) -> None:
    context = tiny_context()
    space = trace(tiny_residual, context.images)
    context.prepared = TaylorGates(images=16).prepare(tiny_residual, space, context)
    context.calibrations = 0
    next(TaylorGates(images=16).run(tiny_residual, space, CUT, context))
    assert context.calibrations == 0
    next(TaylorGates(images=32).run(tiny_residual, space, CUT, context))
    assert context.calibrations == 1


def test_random_channels_are_those_of_the_trial_not_of_the_search(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    shared = RandomChannels().prepare(tiny_residual, space, tiny_context(seed=0))
    first, second = (
        next(RandomChannels().run(tiny_residual, space, CUT, tiny_context(seed=seed, prepared=shared))).net
        for seed in (1, 2)
    )
    assert not torch.equal(first.stem.weight, second.stem.weight)


def test_images_are_read_only_by_criteria_that_need_them(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    for method, passes in ((UniformL2(), 0), (UniformL2(compensate=True), 1), (RandomChannels(compensate=True), 1)):
        context = tiny_context()
        method.prepare(tiny_residual, space, context)
        assert context.calibrations == passes


@pytest.mark.parametrize("name", ["taylor", "feature_rank", "l2"])
def test_without_calibration_images_a_method_that_needs_them_says_so(tiny_residual, tiny_context, name) -> None:
    context = tiny_context()
    context.images, context.labels = context.images[:0], context.labels[:0]
    context.calibration_batches = lambda images: iter(())
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    with pytest.raises(PruningError, match="no calibration images"):
        METHODS[name](compensate=True).prepare(tiny_residual, space, context)


def _error(narrow: nn.Module, net: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((narrow.eval()(images) - net(images)).square().mean())


@pytest.mark.parametrize("build", nets.ALL)
def test_a_compensated_cut_is_nearer_to_the_trained_net(tiny_context, build) -> None:
    torch.manual_seed(0)
    context, net = tiny_context(epochs=0, classes=5), build()
    list(context.fit(net, 30, rates=Rates(constant=0.1)))
    net.eval()
    space = trace(net, context.images)
    plain, compensated = (
        next(UniformL2(compensate=on).run(net, space, Goal(_half(space)), context)).net for on in (False, True)
    )
    assert _error(compensated, net, context.images) < 0.9 * _error(plain, net, context.images)
    assert [tensor.shape for tensor in plain.parameters()] == [tensor.shape for tensor in compensated.parameters()]


@pytest.mark.parametrize("build", nets.ALL)
def test_compensation_changes_nothing_where_nothing_is_cut(tiny_context, build) -> None:
    torch.manual_seed(0)
    context, net = tiny_context(epochs=0, classes=5), build().eval()
    context.reestimate_batchnorm = lambda narrow: None
    space = trace(net, context.images)
    (snapshot,) = UniformL2(compensate=True).run(net, space, Goal(space.full), context)
    with torch.no_grad():
        assert torch.equal(snapshot.net(context.images), net(context.images))


@pytest.mark.parametrize("name", BASELINES)
def test_filters_of_zero_leave_every_result_finite(tiny_residual, tiny_context, name) -> None:
    with torch.no_grad():
        for layer in (tiny_residual.stem, tiny_residual.conv1, tiny_residual.conv2):
            layer.weight.zero_()
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    goal = Goal(budgets=(Budget.parse("50%"),))
    method = METHODS[name](compensate=True, allocation="global")
    for snapshot in method.run(tiny_residual, space, goal, tiny_context(epochs=1)):
        space.check(snapshot.widths)
        assert all(torch.isfinite(tensor).all() for tensor in snapshot.net.state_dict().values())


@pytest.mark.parametrize("name", BASELINES)
def test_a_layer_of_one_channel_keeps_it(tiny_context, name) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()  # fmt: skip
    space = trace(net, torch.zeros(1, 3, 8, 8))
    method = METHODS[name](compensate=True, allocation="global")
    snapshot = next(method.run(net, space, Goal(budgets=(Budget.parse("70%"),)), tiny_context()))
    assert snapshot.net[0].out_channels == 1
    assert snapshot.net[2].out_channels < 4


@pytest.mark.parametrize("allocation", ["global", "global_per_cost"])
@pytest.mark.parametrize("build", nets.ALL)
def test_globally_ranked_widths_meet_every_budget(tiny_context, build, allocation) -> None:
    torch.manual_seed(0)
    net = build().eval()
    space = trace(net, torch.zeros(1, *nets.IMAGE))
    goal = Goal(budgets=(Budget.parse("50%"), Budget("params", int(0.6 * space.dense_cost.params))))
    snapshot = next(UniformL2(allocation=allocation).run(net, space, goal, tiny_context()))
    space.check(snapshot.widths)
    cost = space.cost(snapshot.widths)
    assert cost.flops <= 0.5 * space.dense_cost.flops
    assert cost.params <= goal.budgets[1].limit
    assert snapshot.note["widths_from"] == allocation


def test_the_group_whose_scores_are_uneven_is_narrowed_first(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.conv1.weight[2:] *= 1e-3  # ten of twelve filters are worth almost nothing
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    goal = Goal(budgets=(Budget.parse("50%"),))
    widths = next(UniformL2(allocation="global").run(tiny_residual, space, goal, tiny_context())).widths
    assert widths["stem"] == 8
    assert widths["conv1"] < 6


def test_an_allocation_that_is_not_known_or_a_budget_below_all_widths_is_refused(tiny_residual, tiny_context) -> None:
    with pytest.raises(PruningError, match="allocation='greedy'.*global_per_cost"):
        UniformL2(allocation="greedy")
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    for allocation in ("uniform", "global", "global_per_cost"):
        method = UniformL2(allocation=allocation)
        with pytest.raises(BudgetError, match="smallest network"):
            next(method.run(tiny_residual, space, Goal(budgets=(Budget.parse("0.01%"),)), tiny_context()))


def test_methods_with_a_number_of_images_pass_it_to_the_criterion() -> None:
    assert RankedMaps(images=500).chosen().images == 500
    assert TaylorGates(images=7).chosen().images == 7
