"""What a cut costs before any training, measured on a few hundred training images."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pruning.allocation import Curve
from pruning.base import Context
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

SHARES_LEFT = (0.75, 0.5, 0.25)  # of a group's channels, where its curve is measured


class Divergence:
    """How far a cut net is from the dense one: KL of their softmax outputs in nats, averaged over images.

    Far better resolved than top-1 accuracy on as few images. BatchNorm normalises by the batch at hand, which stands
    for the re-estimation that follows every cut.

    Args:
        net: the dense network.
        context: lends the images.
        images: how many training images to compare on.
    """

    def __init__(self, net: nn.Module, context: Context, images: int) -> None:
        dense = _rebatched(copy.deepcopy(net))
        with torch.no_grad():
            self._batches = [
                (batch, functional.log_softmax(dense(batch), dim=1))
                for batch, _ in context.calibration_batches(images)
                if len(batch) > 1
            ]

    def __call__(self, narrow: nn.Module) -> float:
        """Return the divergence of a net, whose running statistics are spoilt."""
        _rebatched(narrow)
        total = count = 0.0
        with torch.no_grad():
            for batch, dense in self._batches:
                logits = functional.log_softmax(narrow(batch), dim=1)
                total += float(functional.kl_div(logits, dense, log_target=True, reduction="sum"))
                count += len(batch)
        return max(total / max(count, 1.0), 0.0)


def _rebatched(net: nn.Module) -> nn.Module:
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return net


def sensitivity(space: SearchSpace, harm: Callable[[Mapping[str, int]], float]) -> dict[str, Curve]:
    """Measure what each group alone costs as it narrows.

    Args:
        space: bounds of the groups.
        harm: what a net of these widths costs; groups that are not named are dense.

    Returns:
        A falling curve per variable group: straight lines between the shares measured, carried on below the last.
    """
    return {group.name: _curve(group, harm) for group in space.variable}


def _curve(group: ChannelGroup, harm: Callable[[Mapping[str, int]], float]) -> Curve:
    measured = {group.width: 0.0}
    for share in SHARES_LEFT:
        width = max(group.lowest, round(share * group.width / group.divisor) * group.divisor)
        if width not in measured and group.legal(width):
            measured[width] = harm({group.name: width})
    widths = sorted(measured)
    lost = np.maximum.accumulate([measured[width] for width in reversed(widths)])[::-1]
    curve = np.interp(np.arange(group.width + 1), widths, lost)
    if len(widths) > 1:
        slope = (lost[0] - lost[1]) / (widths[1] - widths[0])
        curve[: widths[0]] = lost[0] + slope * (widths[0] - np.arange(widths[0]))
    return curve
