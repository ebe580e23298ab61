import copy
import dataclasses
import math

import pytest
import tiny_nets
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.methods.aofp.filter_search import FilterSearch, SearchGoal, SearchSchedule, scoring_turns
from pruning.methods.aofp.halving import HalvingRules
from pruning.rewriting.surgery import slice_channels
from spaces.budget import Budget
from spaces.counting import count_cost
from spaces.space import SpaceConfig
from spaces.tracing.tracer import trace

KINDS = [kind for kind in tiny_nets.ALL if kind is not tiny_nets.ChannelsLast]  # no mask can narrow a LayerNorm


def budget(space, share):
    return (Budget("flops", int(share * space.dense_cost.flops)),)


def search_in(net, goal, theta=math.inf, batches=4, deadline=10**6, warm_up=0, seed=0):
    rules, schedule = HalvingRules(theta, batches, 2, few_sets=1), SearchSchedule(warm_up, 1, deadline, spread=batches)
    return FilterSearch(net, goal, goal.space.variable, rules, schedule, seed)


def train(net, search, steps, rate=0.01):
    """Train on random images; yield the widths after every batch that cut something."""
    generator = torch.Generator().manual_seed(3)
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    search.attach()
    net.train()
    for _ in range(steps):
        images = torch.randn(8, *tiny_nets.IMAGE, generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(net(images), torch.arange(8) % 5).backward()
        cuts = search.after_batch()
        optimiser.step()
        yield from cuts
    search.detach()


@pytest.fixture(params=KINDS)
def net(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def space(net):
    return trace(net, torch.zeros(1, *tiny_nets.IMAGE))


def test_the_trimmed_net_is_the_masked_net(net, space):
    search = search_in(net, SearchGoal(space, budgets=budget(space, 0.5)))
    cuts = list(train(net, search, 80))
    assert search.reached
    narrow = slice_channels(net, space, search.selection).eval()
    images = torch.randn(4, *tiny_nets.IMAGE)
    search.attach()
    masked = net.eval()(images)
    assert torch.allclose(narrow(images), masked, atol=1e-6, rtol=1e-6)
    flops = [space.dense_cost.flops, *(space.cost(widths).flops for widths in cuts)]
    assert flops == sorted(flops, reverse=True)
    assert count_cost(narrow, space.input_shape) == space.cost(search.widths)


def test_a_dead_channel_gets_no_gradient_of_the_loss(net, space):
    search = search_in(net, SearchGoal(space, budgets=budget(space, 0.5)))
    list(train(net, search, 80))
    search.attach()
    net.zero_grad()
    net.train()(torch.randn(8, *tiny_nets.IMAGE)).square().sum().backward()
    for group in search.groups.values():
        dead = group.group.start + (~group.alive).nonzero().flatten()
        for name, parameter in net.named_parameters():
            for dim, ids in space.axes.get(name, {}).items():
                places = torch.isin(torch.as_tensor(ids), dead).nonzero().flatten()
                if name not in space.grouped and len(places):
                    gradient = tiny_nets.filters_of(name, parameter.grad)
                    assert not gradient.index_select(dim, places).any()


def test_the_last_move_is_cut_to_the_budget(net, space):
    goal = SearchGoal(space, budgets=budget(space, 0.7))
    search = search_in(net, goal)
    *before, last = list(train(net, search, 80))
    assert goal.reached(last)
    assert not any(goal.reached(widths) for widths in before)
    previous = before[-1] if before else space.full
    (name,) = [name for name in last if last[name] != previous[name]]
    wider = last | {name: last[name] + space.by_name[name].divisor}
    assert not goal.reached(wider)
    assert search.deadline_cuts == 0


def test_given_widths_are_reached_exactly(net, space):
    widths = space.fit([1.0] * len(space.variable), budget(space, 0.4))
    search = search_in(net, SearchGoal(space, widths=widths))
    cuts = list(train(net, search, 120))
    assert search.widths == cuts[-1] == widths
    assert all(cut[name] >= widths[name] for cut in cuts for name in widths)


@pytest.mark.parametrize("warm_up", [0, 1000])
def test_channels_still_to_be_cut_at_the_deadline_are_cut_at_once(net, space, warm_up):
    goal = SearchGoal(space, budgets=budget(space, 0.5))
    search = search_in(net, goal, theta=0.0, deadline=10, warm_up=warm_up)
    assert list(train(net, search, 15)) == []
    assert search.finished
    cut = search.reach_goal()
    assert goal.reached(cut)
    space.check(cut)
    assert search.moves == 0
    assert search.deadline_cuts == sum(space.full.values()) - sum(cut.values())
    assert search.finished


@pytest.mark.parametrize("theta", [0.05, 0.3])
def test_a_search_goes_on_from_a_file_bit_equal_to_one_never_interrupted(net, space, tmp_path, theta):
    """The interruption is within a half, and the file is read with weights_only=True."""
    goal = SearchGoal(space, budgets=budget(space, 0.3))
    search = search_in(net, goal, theta=theta)
    list(train(net, search, 11))
    torch.save(search.state_dict(), tmp_path / "state.pt")
    other_net = copy.deepcopy(net)
    other = search_in(other_net, goal, theta=theta, seed=7)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert list(train(net, search, 40)) == list(train(other_net, other, 40))
    ours, theirs = search.state_dict(), other.state_dict()
    assert {name: ours[name] for name in ours if name != "groups"} == {n: theirs[n] for n in theirs if n != "groups"}
    for name, group in ours["groups"].items():
        torch.testing.assert_close(group.pop("evidence"), theirs["groups"][name]["evidence"], rtol=0, atol=0)
        for key, value in group.items():  # errors of batches still to come are NaN
            other = torch.as_tensor(theirs["groups"][name][key])
            torch.testing.assert_close(torch.as_tensor(value), other, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(tensor, other_net.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_scoring_leaves_training_as_it_was(net, space):
    """Parameters and running statistics after training are bit-equal; nothing is cut at theta 0."""
    scored, plain = copy.deepcopy(net), copy.deepcopy(net)
    goal = SearchGoal(space)
    assert list(train(scored, search_in(scored, goal, theta=0.0), 10)) == []
    assert list(train(plain, search_in(plain, goal, warm_up=10**6), 10)) == []
    for name, tensor in scored.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name])


def test_without_a_goal_the_threshold_decides_alone(net, space):
    goal = SearchGoal(space)
    search = search_in(net, goal, deadline=30)
    assert list(train(net, search, 40))
    assert search.finished
    assert not search.reached
    assert search.deadline_cuts == 0


class NoReadingBack(TorchDispatchMode):
    """Refuses operations whose result the host must wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_from_the_device_within_a_half(net, space):
    search = search_in(net, SearchGoal(space, budgets=budget(space, 0.5)), theta=0.0, batches=200)
    list(train(net, search, 10))  # channels are ranked after 4 scored batches, and after 16
    with NoReadingBack():
        list(train(net, search, 5))
    assert any(group.scored > 2 for group in search.groups.values())


def test_groups_that_one_layer_reads_take_turns():
    space = trace(tiny_nets.Concat(), torch.zeros(1, *tiny_nets.IMAGE))
    left, right, join = (scoring_turns(space.variable)[name] for name in ("left", "right", "join"))
    assert left != right
    assert join == 0


def test_groups_that_no_layer_shares_are_scored_together():
    chain = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(384, 2))
    assert set(scoring_turns(trace(chain, torch.zeros(1, *tiny_nets.IMAGE)).variable).values()) == {0}


def test_halves_of_neighbours_end_at_different_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(384, 5))
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    search, ends = search_in(net, SearchGoal(space), theta=0.0, batches=6, warm_up=2), {}
    for step, _ in enumerate(_steps(net, search, 14)):
        for name, group in search.groups.items():
            if group.candidates.sum() < 6:
                ends.setdefault(name, step)
    assert list(ends.values()) == [2 + 6 - 1, 2 + 6 - 1 + 6 // 2]


def _steps(net, search, steps):
    for _ in range(steps):
        yield list(train(net, search, 1))


def test_tied_channels_are_scored_at_all_their_consumers():
    torch.manual_seed(0)
    net = tiny_nets.Residual()
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    group = space.by_name["stem"]
    rules = HalvingRules(0.0, 50, 2, few_sets=1)
    search = FilterSearch(net, SearchGoal(space), [group], rules, SearchSchedule(0, 1, 100), 0)
    with torch.no_grad():  # channel 0 matters to one consumer only, and it alone matters there
        net.inner.weight[:, 0] = 0
        net.fc.weight[:, 1:] = 0
    list(train(net, search, 49, rate=1e-9))
    halving = search.groups["stem"]
    assert int(halving.shares().argmax()) == 0
    assert set(group.consumers) == {"inner", "fc"}


def test_shares_rank_channels_like_hiding_each_of_them_alone():
    """The reference is the oracle of the paper: every channel is hidden alone, on all images, in a loop."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
    with torch.no_grad():
        first.weight *= torch.linspace(0.2, 2, 16).view(-1, 1, 1, 1)
    net = nn.Sequential(first, nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    rules, schedule = HalvingRules(0.0, 6, 10**6, few_sets=3), SearchSchedule(0, 1, 10**6)
    search = FilterSearch(net, SearchGoal(space), [space.by_name["0"]], rules, schedule, 0)
    list(train(net, search, 40, rate=0.0))
    images = torch.randn(256, *tiny_nets.IMAGE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        read, exact = first(images).relu(), []
        base = functional.batch_norm(second(read), None, None, training=True).relu()
        for channel in range(16):
            hidden = read.clone()
            hidden[:, channel] = 0
            without = functional.batch_norm(second(hidden), None, None, training=True).relu()
            exact.append(float((base - without).square().sum() / base.square().sum()))
    ranks = torch.stack([torch.tensor(exact).argsort().argsort(), search.groups["0"].shares().argsort().argsort()])
    assert float(torch.corrcoef(ranks.double())[0, 1]) > 0.9


def test_a_net_wider_than_the_space_allows_has_not_reached_its_goal():
    config = SpaceConfig(bound=("inner=0.3:0.5",))
    goal = SearchGoal(trace(tiny_nets.Residual(), torch.zeros(1, *tiny_nets.IMAGE), config))
    assert not goal.reached(goal.space.full)
    assert goal.reached(goal.space.full | {"inner": 3})
    search = search_in(tiny_nets.Residual(), goal, theta=0.0, deadline=0)
    assert search.reach_goal() == goal.space.largest


def test_a_goal_of_the_dense_widths_is_reached_from_the_start():
    space = trace(tiny_nets.Residual(), torch.zeros(1, *tiny_nets.IMAGE))
    assert SearchGoal(space, widths=space.full).reached(space.full)
    assert not SearchGoal(space).reached(space.full)


def test_channels_that_more_layers_read_have_a_larger_error():
    net = tiny_nets.Residual()
    net.stem, net.bn = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
    net.inner, net.outer = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    net.fc = nn.Linear(32, 5)
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    stem, inner = space.by_name["stem"], space.by_name["inner"]
    goal = SearchGoal(space, budgets=(Budget("flops", space.dense_cost.flops // 2),))
    kept = []
    for group in (stem, dataclasses.replace(stem, consumers=("inner",))):
        rules = HalvingRules(0.0, 50, 2, few_sets=1)
        search = FilterSearch(net, goal, [group, inner], rules, SearchSchedule(0, 1, 100), 0)
        kept.append(search.reach_goal()["stem"])
    assert kept[0] > kept[1]
