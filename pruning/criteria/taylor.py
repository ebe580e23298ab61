"""What the loss would change by, to first order, without a channel."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import Context, PruningError
from pruning.criteria.weights import Entry, entries, norm_entries
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Taylor:
    """Keep the channels whose removal changes the loss most, to first order. Molchanov et al., arXiv 1906.10771.

    The score is the mean over batches of (sum of gradient times value)^2, over the scales and shifts of the
    normalisation layers that a channel passes: a gate behind them. A channel that passes none is judged by its filters
    and biases. All layers of a group are in one sum, since they are removed together.
    """

    images: int = 512

    seeded: ClassVar[bool] = False

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return the squared first-order changes of the cross-entropy, in nats^2.

        Raises:
            PruningError: no calibration images, or gradients that are not finite.
        """
        twin = copy.deepcopy(net).requires_grad_(True).eval()  # the gradients of `net` are nobody's to change
        gates = _gates(twin, space)
        scores = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in space.variable}
        batches = 0
        for images, labels in context.calibration_batches(self.images):
            batches += 1
            changes = _changes(twin, {name for _, name, *_ in gates}, images, labels)
            first_order = {name: torch.zeros_like(each) for name, each in scores.items()}
            for group, name, rows, channels in gates:
                first_order[group.name].index_add_(0, channels, changes[name][rows])
            for name, each in first_order.items():
                scores[name] += each.square()
        if not batches:
            raise PruningError("there are no calibration images; give the criterion a training set that is not empty")
        for name, each in scores.items():
            if not torch.isfinite(each).all():
                raise PruningError(f"the gradients of {name!r} are not finite; the dense weights are unusable")
        return {name: each / batches for name, each in scores.items()}


def _gates(net: nn.Module, space: SearchSpace) -> Sequence[Entry]:
    gates = list(norm_entries(net, space))
    gated = {group.name for group, *_ in gates}
    return [*gates, *(each for each in entries(net, space) if each[0].name not in gated)]


def _changes(net: nn.Module, names: set[str], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return, per parameter, the sum of gradient times value over each row: float64 of shape (rows,)."""
    if not names:
        return {}
    parameters = {name: net.get_parameter(name) for name in sorted(names)}
    with torch.enable_grad():
        loss = functional.cross_entropy(net(images), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {
        name: (gradient * parameter.detach()).double().reshape(len(parameter), -1).sum(dim=1).cpu()
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
