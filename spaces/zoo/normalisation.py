"""Images are standardised as for ImageNet; networks that were trained on others are made to take them."""

from collections.abc import Sequence

import torch
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # per colour, of values in [0, 1]


def fold_normalisation(conv: nn.Module, norm: nn.Module | None, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Make the first convolution of a network, in place, take images standardised with ImageNet's mean and deviation.

    Where it pads, the outermost pixels see a slightly different padding.

    Args:
        conv: a plain Conv2d that reads 3 colours. One with a forward pass of its own pads by its own rule, or
            standardises the weight, which would undo the scale.
        norm: what reads its output; a BatchNorm is needed where the convolution has no bias.
        mean, std: by which the images of its training were standardised, per colour.

    Returns:
        False, with nothing changed, where the convolution is no plain one, or neither of both can take the shift.
    """
    if not isinstance(conv, nn.Conv2d) or type(conv).forward is not nn.Conv2d.forward:
        return False
    weight = conv.weight
    scale = weight.new_tensor(IMAGENET_STD) / weight.new_tensor(std)
    offset = (weight.new_tensor(IMAGENET_MEAN) - weight.new_tensor(mean)) / weight.new_tensor(std)
    with torch.no_grad():
        shift = (weight.sum((2, 3)) * offset).sum(1)
        if conv.bias is not None:
            conv.bias += shift
        elif (
            isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and len(norm.running_mean) == len(shift)
        ):
            norm.running_mean -= shift
        else:
            return False
        weight *= scale[:, None, None]
    return True
