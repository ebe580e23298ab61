import math

import pytest
import torch

from pruning.base import Goal, PruningError
from pruning.criteria.weights import norm_scores
from pruning.methods.abfp.method import AutoBalanced
from pruning.selection import select_channels
from spaces.budget import Budget
from spaces.errors import SpaceError
from spaces.space import uniform_ratios
from spaces.tracing.tracer import trace
from spaces.widths import Widths

CUT = Goal(widths=Widths({"stem": 4, "conv1": 6}))


def run(method, net, goal, context) -> list:
    return list(method.run(net, trace(net, context.images), goal, context))


def test_weak_channels_are_chosen_before_the_balance_and_cut_after_it(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=1)
    seen = []
    context_fit = context.fit

    def fit(net, epochs, action, rates):
        seen.append((net.stem.out_channels, bool(action), rates.span))
        yield from context_fit(net, epochs, action)

    context.fit = fit
    space = trace(tiny_residual, context.images)
    scores = norm_scores(tiny_residual, space, order=1)
    kept = select_channels(space, scores, CUT.widths)["stem"]
    method = AutoBalanced(iterations=1, balancing=0.5)
    first = next(iter(run(method, tiny_residual, CUT, context)))
    assert seen == [(8, True, (0.0, 0.5)), (4, False, (0.5, 1.0))]
    assert first.net.norm.num_features == len(kept)


def test_every_iteration_balances_cuts_and_trains(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=8)
    widths_seen = []
    context_fit = context.fit

    def fit(net, epochs, action, rates):
        widths_seen.append((net.conv1.out_channels, bool(action), epochs))
        yield from context_fit(net, epochs, action)

    context.fit = fit
    goal = Goal(widths=Widths({"stem": 2, "conv1": 3}))
    last = run(AutoBalanced(iterations=2, balancing=0.5, weak_share=1e-4), tiny_residual, goal, context)[-1]
    assert widths_seen == [(12, True, 2.0), (6, False, 2.0), (6, True, 2.0), (3, False, 2.0)]
    assert last.note["cuts"] == 2
    assert last.epoch == 8


def test_every_snapshot_is_at_the_final_widths_and_none_repeats_an_epoch(tiny_residual, tiny_context) -> None:
    snapshots = run(AutoBalanced(iterations=3, weak_share=1e-4), tiny_residual, CUT, tiny_context(epochs=13))
    assert {snapshot.net.stem.out_channels for snapshot in snapshots} == {4}
    assert {snapshot.net.conv1.out_channels for snapshot in snapshots} == {6}
    epochs = [snapshot.epoch for snapshot in snapshots]
    assert epochs[-1] == 13
    assert len(set(epochs)) == len(epochs)


def test_a_balance_that_is_reached_leaves_its_epochs_to_the_narrow_net(tiny_residual, tiny_context) -> None:
    lazy, patient = (tiny_context(epochs=8), tiny_context(epochs=8))
    before = run(AutoBalanced(iterations=1, balancing=0.5, weak_share=0.49), tiny_residual, CUT, lazy)
    after = run(AutoBalanced(iterations=1, balancing=0.5, weak_share=1e-4, reach=False), tiny_residual, CUT, patient)
    assert sum(snapshot.note["cuts"] == 0 for snapshot in before) < sum(
        snapshot.note["cuts"] == 0 for snapshot in after
    )
    assert before[-1].epoch == after[-1].epoch == 8


def test_the_strength_is_raised_only_where_the_epochs_need_it(tiny_residual, tiny_context) -> None:
    raised = run(AutoBalanced(), tiny_residual, CUT, tiny_context(epochs=2))[-1].note
    given = run(AutoBalanced(reach=False), tiny_residual, CUT, tiny_context(epochs=2))[-1].note
    strong = run(AutoBalanced(alpha=1e3), tiny_residual, CUT, tiny_context(epochs=0))[-1].note
    assert raised["alpha"] > given["alpha"] == 5e-4
    assert strong["alpha"] == 1e3


def test_a_raised_strength_stays_where_no_step_oscillates(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.conv1.weight[3] = 0  # its factor is the largest there is
    context = tiny_context(epochs=2)
    note = run(AutoBalanced(), tiny_residual, CUT, context)[-1].note
    farthest = 1 + 8 * math.log(10)
    assert note["alpha"] == pytest.approx(1 / (2 * context.learning_rate * farthest))


def test_raised_strength_reaches_the_weak_share(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=40)  # as many steps: small rates need many for the exponential to hold
    snapshots = run(AutoBalanced(iterations=1, balancing=0.5), tiny_residual, CUT, context)
    assert snapshots[-1].note["weak_share"] < 0.02


def test_nothing_to_cut_is_plain_training(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    snapshots = run(AutoBalanced(), tiny_residual, Goal(widths=space.full), tiny_context(epochs=2))
    assert [snapshot.epoch for snapshot in snapshots] == [0, 1, 2]
    assert snapshots[-1].note["cuts"] == 0
    torch.testing.assert_close(snapshots[-1].net.stem.weight.shape, tiny_residual.stem.weight.shape)


def test_without_epochs_it_only_cuts(tiny_residual, tiny_context) -> None:
    (snapshot,) = run(AutoBalanced(), tiny_residual, CUT, tiny_context(epochs=0))
    scores = norm_scores(tiny_residual, trace(tiny_residual, torch.zeros(1, 3, 8, 8)), order=1)
    stem = scores["stem"].topk(4).indices.sort().values
    assert torch.equal(snapshot.net.norm.weight, tiny_residual.norm.weight[stem])
    assert (snapshot.epoch, snapshot.note["cuts"]) == (0, 1)


def test_the_pacesetter_alone_decides_for_its_followers(tiny_residual, tiny_context) -> None:
    with torch.no_grad():
        tiny_residual.conv2.weight[:4] *= 100
        tiny_residual.stem.weight[4:] *= 2
    (paced,) = run(AutoBalanced(importance="pacesetter"), tiny_residual, CUT, tiny_context(epochs=0))
    (together,) = run(AutoBalanced(), tiny_residual, CUT, tiny_context(epochs=0))
    assert torch.equal(paced.net.stem.weight, tiny_residual.stem.weight[4:])
    assert torch.equal(together.net.stem.weight, tiny_residual.stem.weight[:4])


@pytest.mark.parametrize("dead", [slice(0, 8), slice(0, 5)])
def test_dead_filters_give_a_finite_net(tiny_residual, tiny_context, dead) -> None:
    with torch.no_grad():
        tiny_residual.stem.weight[dead] = 0
        tiny_residual.conv2.weight[dead] = 0
    last = run(AutoBalanced(), tiny_residual, CUT, tiny_context(epochs=2))[-1]
    assert all(torch.isfinite(tensor).all() for tensor in last.net.state_dict().values())


def test_a_single_channel_can_be_left(tiny_residual, tiny_context) -> None:
    goal = Goal(widths=Widths({"stem": 1, "conv1": 2}))
    last = run(AutoBalanced(), tiny_residual, goal, tiny_context(epochs=4))[-1]
    assert last.net.conv2.weight.shape == (1, 2, 3, 3)


def test_widths_that_are_not_legal_are_refused_before_any_training(tiny_residual, tiny_context) -> None:
    with pytest.raises(SpaceError, match="width 1 of 'conv1' is not legal"):
        run(AutoBalanced(), tiny_residual, Goal(widths=Widths({"conv1": 1})), tiny_context(epochs=6))


def test_budgets_alone_mean_uniform_widths(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    budget = Budget.parse("40%")
    snapshot = run(AutoBalanced(), tiny_residual, Goal(budgets=(budget,)), tiny_context(epochs=0))[-1]
    assert snapshot.widths == space.fit(uniform_ratios(space), [budget.resolve(space.dense_cost)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 of abfp must be above 0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"iterations": 0}, "iterations=0"),
        ({"balancing": 1.0}, r"balancing=1.0 of abfp must be in \(0, 1\)"),
        ({"weak_share": 0.0}, "weak_share=0.0"),
        ({"importance": "leader"}, "'leader'.*group, pacesetter"),
    ],
)
def test_settings_out_of_range_are_named(settings, message) -> None:
    with pytest.raises(PruningError, match=message):
        AutoBalanced(**settings)
