"""Trials that start from a trained narrow network: their own after a pause, or another one, their parent."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from pruning.base import Context, Goal, Method, Snapshot
from pruning.checkpoint import from_bytes, header_of
from pruning.rewriting.narrowing import space_of
from runners.trial import TrainingSegment, Trial
from spaces.counting import count_cost
from spaces.errors import WeightsError
from spaces.space import SearchSpace
from spaces.widths import Widths


def is_continuation(segment: TrainingSegment | None) -> TypeGuard[TrainingSegment]:
    """Return whether a training segment is not the first of its trial."""
    return segment is not None and segment.trained > 0


def continue_training(
    segment: TrainingSegment, dense: nn.Module, space: SearchSpace, context: Context
) -> Iterator[Snapshot]:
    """Train the network of the segment before over a whole schedule; yield it after every epoch.

    The schedule has the full peak learning rate. LeNet-5 on digits at 10% of its FLOPs, in segments of 1, 1, 2 and 4
    epochs (4 seeds), reaches 97.3% with the full peak and 97.05% with a half or a quarter of it; 8 epochs at once give
    97.5%.

    Args:
        dense: the network that the narrow one was cut from; not changed.

    Raises:
        WeightsError: the segment has no weights, or weights of another network.
    """
    if segment.start is None:
        raise WeightsError(
            f"the network after {segment.trained} epochs has no weights to go on from; start its trial anew"
        )
    net = from_bytes(segment.start, dense).to(context.device)
    header = header_of(segment.start)
    # The widths alone do not give the cost of special layers; the first segment has checked it.
    cost = count_cost(net, space.input_shape) if header.layers else None
    for epoch in context.fit(net, segment.epochs):
        yield Snapshot(net, header.widths, segment.trained + epoch, {}, cost)


@dataclass(frozen=True)
class Parent:
    """A trained narrow network that others are cut from instead of the dense one.

    Attributes:
        net: in evaluation mode.
        space: of the network: its widths are the largest there are.
        widths: of all groups of the dense network.
    """

    net: nn.Module
    space: SearchSpace
    widths: Widths


def parent_of(trial: Trial, dense: nn.Module, space: SearchSpace, device: torch.device) -> Parent:
    """Return the parent of a trial on a device.

    Args:
        dense: the network that the parent was cut from; not changed.
        space: of the dense network.

    Raises:
        WeightsError: the trial has no weights of its parent, or the parent has layers that are not plain.
        SpaceError: the space of the parent is not known; see `pruning.rewriting.narrowing.space_of`.
    """
    if trial.segment is None or trial.segment.start is None:
        raise WeightsError(f"network {trial.parent}, from which trial {trial.number} is cut, has no weights")
    header = header_of(trial.segment.start)
    if header.layers:
        raise WeightsError(f"network {trial.parent} has layers that cannot be narrowed; cut the dense network")
    net = from_bytes(trial.segment.start, dense).to(device).eval()
    return Parent(net, space_of(space, header.widths), header.widths)


def cut_parent(parent: Parent, method: Method, goal: Goal, context: Context) -> Iterator[Snapshot]:
    """Have a method narrow a parent instead of the dense network; yield its networks.

    The method gathers its statistics on the parent, within whose widths the goal must lie.
    """
    if goal.widths is not None:
        goal = Goal(Widths({group.name: goal.widths[group.name] for group in parent.space.variable}), goal.budgets)
    for snapshot in method.run(parent.net, parent.space, goal, context):
        yield dataclasses.replace(snapshot, widths=Widths({**parent.widths, **snapshot.widths}))
