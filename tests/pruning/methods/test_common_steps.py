import pytest
import torch

from pruning.base import Goal
from pruning.methods.common_steps import finetune, uniform_widths, wanted_widths
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.tracing.tracer import trace
from spaces.widths import Widths


@pytest.fixture
def space(tiny_residual):
    return trace(tiny_residual, torch.zeros(1, 3, 8, 8))


def test_given_widths_leave_other_groups_dense(space) -> None:
    assert wanted_widths(space, Goal(widths=Widths({"stem": 3}))) == space.full | {"stem": 3}


def test_budgets_give_the_largest_uniform_widths(space) -> None:
    goal = Goal(budgets=(Budget.parse("50%"), Budget("params", space.dense_cost.params)))
    widths = wanted_widths(space, goal)
    assert widths == uniform_widths(space, goal)
    assert 0.4 * space.dense_cost.flops < space.cost(widths).flops <= 0.5 * space.dense_cost.flops
    shares = [width / space.full[name] for name, width in widths.items()]
    assert max(shares) - min(shares) <= 1 / min(space.full.values())


def test_a_budget_below_all_widths_is_an_error(space) -> None:
    with pytest.raises(BudgetError):
        uniform_widths(space, Goal(budgets=(Budget("flops", 1),)))


def test_fine_tuning_takes_the_epochs_that_are_left(tiny_residual, tiny_context, space) -> None:
    snapshots = list(finetune(tiny_residual, space.full, tiny_context(epochs=5), {"cuts": 1}, spent=3))
    assert [snapshot.epoch for snapshot in snapshots] == [3, 4, 5]
    assert all(snapshot.net is tiny_residual and snapshot.note == {"cuts": 1} for snapshot in snapshots)


def test_without_epochs_left_the_cut_net_is_the_only_snapshot(tiny_residual, tiny_context, space) -> None:
    before = tiny_residual.norm.running_mean.clone()
    (snapshot,) = finetune(tiny_residual, space.full, tiny_context(epochs=2), spent=2)
    assert snapshot.epoch == 2
    assert not torch.equal(tiny_residual.norm.running_mean, before)
