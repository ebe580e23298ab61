"""First-order change of the loss when a channel is removed."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion, PruningError
from pruning.criteria.weights import ChannelRows, channel_rows, norm_rows
from spaces.slicing.filters import as_filters
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Taylor(Criterion):
    """Keep the channels whose removal changes the loss most, to first order. Molchanov et al., arXiv 1906.10771.

    The score, in nats^2, is the mean over batches of (sum of gradient times value)^2, taken over the scales and shifts
    of the normalisation layers that a channel passes, as if they were a gate. A channel that passes none is scored by
    its filters and biases. All layers of a group are in one sum, because they are removed together.

    Scoring raises a PruningError if there are no calibration images, or gradients are not finite.
    """

    images: int = 512

    seeded: ClassVar[bool] = False

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        copied = copy.deepcopy(net).requires_grad_(True).eval()  # neither modes nor gradients of `net` may change
        gates = _gates(copied, space)
        scores = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in space.variable}
        batches = 0
        for images, targets in context.calibration_batches(self.images):
            batches += 1
            changes = _changes(copied, {gate.parameter for gate in gates}, images, targets, context)
            by_row = {name: _sum_of_rows(as_filters(space, name, change)) for name, change in changes.items()}
            first_order = {name: torch.zeros_like(score) for name, score in scores.items()}
            for group, parameter, rows, channels in gates:
                first_order[group.name].index_add_(0, channels, by_row[parameter][rows])
            for name, change in first_order.items():
                scores[name] += change.square()
        if not batches:
            raise PruningError("there are no calibration images; give the criterion a training set that is not empty")
        for name, score in scores.items():
            if not torch.isfinite(score).all():
                raise PruningError(f"the gradients of {name!r} are not finite; the dense weights are unusable")
        return {name: score / batches for name, score in scores.items()}


def _gates(net: nn.Module, space: SearchSpace) -> Sequence[ChannelRows]:
    """Return the rows of normalisation layers, and all rows of groups that pass no normalisation layer."""
    gates = list(norm_rows(net, space))
    gated = {gate.group.name for gate in gates}
    return [*gates, *(entry for entry in channel_rows(net, space) if entry.group.name not in gated)]


def _changes(net: nn.Module, names: set[str], images: Tensor, targets: Tensor, context: Context) -> dict[str, Tensor]:
    """Return, per parameter, gradient times value in float64, of the shape of the parameter."""
    if not names:
        return {}
    parameters = {name: net.get_parameter(name) for name in sorted(names)}
    with torch.enable_grad():
        loss = context.loss(net(images), targets)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {
        name: (gradient * parameter.detach()).cpu().double()
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }


def _sum_of_rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(dim=1)
