import dataclasses

import pytest
import tiny_nets
import torch
from torch import nn

from pruning.base import Goal, PruningError
from pruning.methods.aofp.method import ApproximatedOracle, search_goal_of
from pruning.rewriting.surgery import slice_channels
from runners.evaluation.context import TrialContext
from spaces.budget import Budget
from spaces.space import SpaceConfig
from spaces.tracing.tracer import trace
from spaces.widths import Widths

IMAGE = torch.zeros(1, *tiny_nets.IMAGE)
HALF = Goal(budgets=(Budget.parse("50%"),))


@pytest.fixture
def context(tiny_context):
    def build(epochs=1, steps=1):
        return tiny_context(epochs=epochs, steps_per_epoch=steps)

    return build


def run(method, net, goal, context):
    return list(method.run(net, trace(net, IMAGE), goal, context))


def scope_of(method, net, goal):
    groups, scope = method.targets(net, search_goal_of(trace(net, IMAGE), goal))
    return [group.name for group in groups], scope


def test_the_papers_scope_is_the_layers_inside_a_block(tiny_residual):
    assert scope_of(ApproximatedOracle(), tiny_residual, HALF) == (["conv1"], "internal")
    assert scope_of(ApproximatedOracle(scope="all"), tiny_residual, HALF) == (["stem", "conv1"], "all")


def test_a_depthwise_layer_does_not_make_a_layer_coupled():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(),
        nn.Linear(6 * 36, 4),
    )  # fmt: skip
    assert scope_of(ApproximatedOracle(), net, HALF) == (["0", "3"], "internal")


@pytest.mark.parametrize(("width", "scope"), [(4, "internal"), (3, "all")])
def test_coupled_groups_join_where_internal_ones_would_keep_less_than_a_third(tiny_residual, width, scope):
    space = trace(tiny_residual, IMAGE)  # 12 channels in conv1
    goal = Goal(budgets=(Budget("flops", space.cost(space.full | {"conv1": width}).flops),))
    assert scope_of(ApproximatedOracle(), tiny_residual, goal)[1] == scope


def test_only_groups_that_are_to_be_narrower_are_searched_for_given_widths(tiny_residual):
    goal = Goal(widths=Widths({"stem": 5}))
    assert scope_of(ApproximatedOracle(), tiny_residual, goal) == (["stem"], "given widths")


def test_a_net_that_meets_its_goal_is_only_trained(tiny_residual, context):
    first, last = run(ApproximatedOracle(), tiny_residual, Goal(budgets=(Budget.parse("100%"),)), context(1))
    assert first.widths == last.widths == trace(tiny_residual, IMAGE).full
    assert (first.epoch, last.epoch) == (0, 1)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_epochs_are_shared_between_search_and_training(tiny_residual, context, share):
    snapshots = run(ApproximatedOracle(search_share=share), tiny_residual, HALF, context(4, 1))
    result = [snapshot.epoch for snapshot in snapshots if snapshot.widths == snapshots[-1].widths]
    assert result == list(range({0.2: 0, 0.5: 2, 1.0: 4}[share], 5))  # 0.2 of 4 epochs end within the first


def test_every_cut_makes_an_intermediate_network(tiny_residual, context):
    method = ApproximatedOracle(theta=1e3, half_batches=2, warm_up_batches=0, search_share=0.9)
    space = trace(tiny_residual, IMAGE)
    goal = Goal(budgets=(Budget("flops", int(1.2 * space.smallest_cost.flops)),))
    snapshots = run(method, tiny_residual, goal, context(40, 1))
    *cuts, last = dict.fromkeys(snapshot.widths for snapshot in snapshots)
    assert len(cuts) >= 2
    for wider, narrower in zip([space.full, *cuts], [*cuts, last], strict=True):
        assert space.cost(narrower).flops < space.cost(wider).flops
    for snapshot in snapshots:
        assert snapshot.net(IMAGE).shape == (1, 3)
        modules = list(snapshot.net.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert snapshots[-1].note["deadline_cuts"] == 0


def test_of_many_cuts_in_an_epoch_few_become_intermediate_networks(tiny_search_context, monkeypatch):
    wide = [layer for _ in range(5) for layer in (nn.Conv2d(16, 16, 1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 16, 1), *wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    made = []
    monkeypatch.setattr(
        "pruning.methods.aofp.method.slice_channels", lambda *given: made.append(1) or slice_channels(*given)
    )
    train = dataclasses.replace(tiny_search_context.train, batch_size=1, epochs=4)
    context = TrialContext(tiny_search_context.data, train, seed=0, compute_format=tiny_search_context.compute_format)
    space = trace(net, torch.zeros(1, 1, 8, 8))
    method = ApproximatedOracle(theta=0.03, half_batches=2, warm_up_batches=0, search_share=0.9, give_ups=100)
    snapshots = list(method.run(net, space, Goal(widths=space.smallest), context))
    intermediate = [snapshot for snapshot in snapshots if snapshot.widths != space.smallest]
    assert snapshots[-1].note["moves"] > 20
    assert all(2 <= sum(snapshot.epoch == epoch for snapshot in intermediate) <= 4 for epoch in (1, 2))
    assert len(made) < 20
    costs = [space.cost(snapshot.widths).flops for snapshot in intermediate]
    assert costs == sorted(costs, reverse=True)


def test_the_note_reports_the_search(tiny_residual, context):
    note = run(ApproximatedOracle(theta=0.0), tiny_residual, HALF, context(2))[-1].note
    assert note["moves"] == 0
    assert note["deadline_cuts"] > 0
    assert note["scope"] == "internal"


def test_the_published_schedule_is_kept_where_it_fits_and_shortened_elsewhere(tiny_residual, context):
    method = ApproximatedOracle()
    groups = trace(tiny_residual, IMAGE).variable
    rules, schedule = method.schedule(groups, context(40, 1000), 20)
    assert (rules.batches, schedule.warm_up, schedule.deadline) == (1000, 500, 20_000)
    rules, schedule = method.schedule(groups, context(4, 120), 2)
    assert (rules.batches, schedule.warm_up, schedule.deadline) == (20, 10, 240)


def test_layers_that_normalise_across_channels_cannot_be_masked(context):
    net = tiny_nets.ChannelsLast()
    assert scope_of(ApproximatedOracle(), net, Goal(budgets=(Budget.parse("80%"),)))[0] == ["up"]
    with pytest.raises(PruningError, match="cannot narrow 'stem' to 5: norm normalises across them; leave it at 8"):
        run(ApproximatedOracle(), net, Goal(widths=Widths({"stem": 5})), context())


def test_a_net_with_nothing_to_cut_is_refused(context):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    with pytest.raises(PruningError, match="nothing that aofp can cut .*0: 1 normalises across them.*another method"):
        run(ApproximatedOracle(), net, HALF, context())


def test_where_all_groups_are_coupled_they_are_searched_and_the_note_says_so(context):
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head((self.left(x) + self.right(x)).relu().mean((2, 3)))

    last = run(ApproximatedOracle(scope="internal"), Added(), HALF, context(2))[-1]
    assert last.note["scope"] == "all"
    assert last.widths["left"] <= 4


def test_a_net_in_which_no_group_may_vary_is_refused(tiny_residual, context):
    space = trace(tiny_residual, IMAGE).restrict(SpaceConfig(skip=("*",)))
    with pytest.raises(PruningError, match=r"nothing that aofp can cut \(no group of it may vary\); take another"):
        list(ApproximatedOracle().run(tiny_residual, space, HALF, context()))


def test_a_budget_below_what_can_be_cut_is_refused(context):
    net = tiny_nets.ChannelsLast()
    with pytest.raises(PruningError, match="smallest net that aofp can make has .* flops .* raise the budget"):
        run(ApproximatedOracle(), net, Goal(budgets=(Budget.parse("10%"),)), context())


def test_without_training_nothing_can_be_found(tiny_residual, context):
    with pytest.raises(PruningError, match="has 0 epochs; give at least --epochs 1"):
        run(ApproximatedOracle(), tiny_residual, HALF, context(0))


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"theta": -1.0}, "theta=-1.0 of aofp must be at least 0"),
        ({"scope": "inner"}, "scope='inner' of aofp must be internal or all"),
        ({"search_share": 0.0}, r"search_share=0.0 of aofp must be in \(0, 1\]"),
        ({"half_batches": 1}, "half_batches=1 of aofp must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 of aofp must be above 0"),
        ({"give_ups": 0}, "give_ups=0 of aofp must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, rule):
    with pytest.raises(PruningError, match=rule):
        ApproximatedOracle(**setting)
