"""Go on with the training of a trial that has paused: from its own narrow net, without its method."""

from collections.abc import Iterator
from typing import TypeGuard

from torch import nn

from pruning.base import Context, Snapshot
from pruning.checkpoint import from_bytes, header_of
from runners.trial import TrainingSegment
from spaces.counting import count_cost
from spaces.errors import WeightsError
from spaces.space import SearchSpace


def is_continuation(segment: TrainingSegment | None) -> TypeGuard[TrainingSegment]:
    """Whether a leg is not the first of its trial."""
    return segment is not None and segment.trained > 0


def continue_training(
    segment: TrainingSegment, dense: nn.Module, space: SearchSpace, context: Context
) -> Iterator[Snapshot]:
    """Yield the network of an earlier leg after every epoch of another one, over a whole schedule of its own.

    It starts again at the full peak rate. LeNet-5 on digits at 10% of its FLOPs, legs of 1, 1, 2 and 4 epochs, 4 seeds:
    97.3% with the full peak, 97.05% with a half or a quarter of it, where 8 epochs at once give 97.5%.

    Args:
        dense: that the network was cut from; not changed.

    Raises:
        WeightsError: no weights, or those of another network.
    """
    if segment.start is None:
        raise WeightsError(
            f"the network after {segment.trained} epochs has no weights to go on from; start its trial anew"
        )
    net = from_bytes(segment.start, dense).to(context.device)
    header = header_of(segment.start)
    # Layers of their own kinds cost other than their widths say, which their trial was checked for.
    cost = count_cost(net, space.input_shape) if header.layers else None
    for epoch in context.fit(net, segment.epochs):
        yield Snapshot(net, header.widths, segment.trained + epoch, {}, cost)
