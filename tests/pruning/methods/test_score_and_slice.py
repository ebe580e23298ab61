import pytest
import torch

from pruning.base import Goal
from pruning.criteria.l2 import L2
from pruning.methods.score_and_slice import RandomChannels, ScoreAndSlice, UniformL2
from spaces.budget import Budget
from spaces.errors import UnknownNameError
from spaces.space import uniform_point
from spaces.tracing import trace
from spaces.widths import Widths

CUT = Goal(widths=Widths({"stem": 4, "conv1": 6}))


def test_the_channels_of_the_best_scores_stay_with_their_weights(tiny_residual, tiny_context) -> None:
    context = tiny_context(epochs=0)
    space = trace(tiny_residual, context.images)
    (snapshot,) = UniformL2().run(tiny_residual, space, CUT, context)
    scores = L2().scores(tiny_residual, space, context)
    stem, conv1 = (scores[name].topk(width).indices.sort().values for name, width in (("stem", 4), ("conv1", 6)))
    assert torch.equal(snapshot.net.conv1.weight, tiny_residual.conv1.weight[conv1][:, stem])


def test_batchnorm_is_estimated_again_before_the_first_snapshot(tiny_residual, tiny_context) -> None:
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
    assert [each.epoch for each in snapshots] == [0, 1, 2]
    assert len({id(each.net) for each in snapshots}) == 1


def test_budgets_alone_mean_uniform_widths(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    budget = Budget.parse("40%")
    snapshot = next(UniformL2().run(tiny_residual, space, Goal(budgets=(budget,)), tiny_context()))
    assert snapshot.widths == space.fit(uniform_point(space), [budget.resolve(space.dense_cost)])


def test_any_criterion_can_be_named(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))
    for criterion in ("l1", "discriminant"):
        snapshot = next(ScoreAndSlice(criterion).run(tiny_residual, space, CUT, tiny_context()))
        assert snapshot.note["criterion"] == criterion
    with pytest.raises(UnknownNameError, match="l3"):
        next(ScoreAndSlice("l3").run(tiny_residual, space, CUT, tiny_context()))


def test_random_arms_of_different_seeds_keep_different_channels(tiny_residual, tiny_context) -> None:
    space = trace(tiny_residual, torch.zeros(1, 3, 8, 8))

    def kept(seed: int) -> torch.Tensor:
        return next(RandomChannels().run(tiny_residual, space, CUT, tiny_context(seed=seed))).net.stem.weight

    assert torch.equal(kept(1), kept(1))
    assert not torch.equal(kept(1), kept(2))
