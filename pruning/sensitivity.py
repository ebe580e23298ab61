"""The loss that a cut causes before any training, measured on a few hundred training images."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.allocation import Curve
from pruning.base import Context
from pruning.steps import counted
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

MEASURED_RATIOS = (0.75, 0.5, 0.25)  # width ratios of a group at which its curve is measured


class Divergence:
    """Divergence of a cut net from the dense one: KL of their softmax outputs in nats, averaged over images.

    Outputs that are no logits of classes are compared by their squared difference, as a share of the dense variance.
    On as few images the divergence resolves far smaller differences than top-1 accuracy. BatchNorm normalises by the
    batch, which stands for the re-estimation of its statistics that follows every cut.

    Args:
        net: the dense network.
        context: gives the training images.
        images: number of training images on which outputs are compared.
        label_weight: weight of the cross-entropy with the labels, which is added where these are classes: with 1 the
            sum is the loss of knowledge distillation at a temperature of 1.
    """

    def __init__(self, net: nn.Module, context: Context, images: int, label_weight: float = 0.0) -> None:
        dense, self._classifies = _normalising_by_batch(copy.deepcopy(net)), context.classifies
        self._label_weight = label_weight
        with torch.no_grad():
            self._batches = [
                (batch, self._comparable(dense(batch)), targets)
                for batch, targets in context.calibration_batches(images)
                if len(batch) > 1
            ]

    def _comparable(self, outputs: Tensor) -> Tensor:
        return functional.log_softmax(outputs, dim=1) if self._classifies else outputs

    def __call__(self, narrow: nn.Module) -> float:
        """Return the divergence of a net; the call changes the net's running statistics."""
        _normalising_by_batch(narrow)
        total = count = 0.0
        with torch.no_grad():
            for batch, dense, targets in self._batches:
                outputs = self._comparable(narrow(batch))
                if self._classifies:
                    total += float(functional.kl_div(outputs, dense, log_target=True, reduction="sum"))
                    if self._label_weight:
                        total += self._label_weight * float(functional.nll_loss(outputs, targets, reduction="sum"))
                else:
                    varying = (dense - dense.mean(0)).square().mean().clamp_min(torch.finfo(dense.dtype).tiny)
                    total += float((outputs - dense).square().mean() / varying) * len(batch)
                count += len(batch)
        return max(total / max(count, 1.0), 0.0)


def _normalising_by_batch(net: nn.Module) -> nn.Module:
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return net


def sensitivity(
    space: SearchSpace, loss: Callable[[Mapping[str, int]], float], ratios: Sequence[float] = MEASURED_RATIOS
) -> dict[str, Curve]:
    """Measure the loss that each group alone causes as it narrows.

    Args:
        space: bounds of the groups.
        loss: loss of a net of the given widths; groups that are not named have their full width.
        ratios: width ratios at which it is measured, falling.

    Returns:
        A falling curve per variable group: straight lines between the measured widths, extrapolated below the smallest.
    """
    return {group.name: _curve(group, loss, ratios) for group in counted(space.variable)}


def _curve(group: ChannelGroup, loss: Callable[[Mapping[str, int]], float], ratios: Sequence[float]) -> Curve:
    measured = {group.width: 0.0}
    for ratio in ratios:
        width = max(group.lowest, round(ratio * group.width / group.divisor) * group.divisor)
        if width not in measured and group.legal(width):
            measured[width] = loss({group.name: width})
    widths = sorted(measured)
    lost = np.maximum.accumulate([measured[width] for width in reversed(widths)])[::-1]
    curve = np.interp(np.arange(group.width + 1), widths, lost)
    if len(widths) > 1:
        slope = (lost[0] - lost[1]) / (widths[1] - widths[0])
        curve[: widths[0]] = lost[0] + slope * (widths[0] - np.arange(widths[0]))
    return curve
