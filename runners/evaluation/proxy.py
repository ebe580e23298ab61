"""The proxy, by which candidates are compared before any training: how far a cut network still sees what the dense saw.

It is the share of the variance of the dense network's logits that a linear readout of the cut network's last features
explains (coefficient of determination). A cut leaves the last layer with a classifier that no longer fits its inputs,
which training mends in a few steps; so accuracy and loss of a cut network say more about that layer than about what
training can make of the network, the more so the narrower it is. Figures: docs/measured.md.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from runners.data.splits import Split
from runners.training.compute_format import PLAIN, ComputeFormat
from runners.training.scoring import evaluating, on_device

PROXY_IMAGES = 512  # training images, without augmentation
BATCH = 256
MAP_SIDE = 8  # of outputs that are maps, as those of a segmentation network are
# Penalty on the readout of standardised features. From 3 to 30 the rank correlations of the study
# `tests/studies/proxies.py` stay within 0.02.
RIDGE = 10.0


@torch.no_grad()
def proxy_target(dense: nn.Module, split: Split, *, device: torch.device) -> Tensor:
    """Return the dense network's logits on the images of the proxy, shape (images, outputs), on the CPU."""
    dense = on_device(dense, device)
    with evaluating(dense):
        logits = [_flat(dense(images)) for images, _ in split.batches(BATCH, device=device, limit=PROXY_IMAGES)]
    return torch.cat(logits) if logits else torch.empty(0, 0)


def proxy(
    net: nn.Module, target: Tensor, split: Split, *, device: torch.device, compute_format: ComputeFormat = PLAIN
) -> float:
    """Return the proxy of a cut network whose BatchNorm statistics are estimated: at most 1, higher is better.

    NaN where the features of the network are not finite, or where there are too few images.

    Args:
        target: `proxy_target` of the dense network on the same split.
        compute_format: the precision in which images pass through the network.
    """
    features = last_features(net, split, device=device, compute_format=compute_format)
    return explained(features, target) if len(target) > 2 else float("nan")


@torch.no_grad()
def last_features(
    net: nn.Module, split: Split, *, device: torch.device, compute_format: ComputeFormat = PLAIN
) -> Tensor:
    """Return the inputs of the last linear layer on the images of the proxy, shape (images, features), on the CPU.

    A network that does not end in a linear layer has its outputs for features.
    """
    net = on_device(net, device)
    seen: list[tuple[Tensor, Tensor]] = []
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    hooks = [
        module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
        for module in linear[-1:]
    ]
    found: list[Tensor] = []
    try:
        with evaluating(net):
            for images, _ in split.batches(BATCH, device=device, limit=PROXY_IMAGES):
                with compute_format.autocasting(device):
                    logits = net(images)
                inputs, output = seen.pop() if seen else (logits, None)
                found.append(_flat(inputs if output is logits else logits))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found) if found else torch.empty(0, 0)


def _flat(outputs: Tensor) -> Tensor:
    """Return outputs as float32 of shape (B, outputs) on the CPU; maps at no more than `MAP_SIDE` places a side."""
    outputs = outputs.float()
    if outputs.ndim == 4:
        height, width = outputs.shape[-2:]
        outputs = functional.adaptive_avg_pool2d(outputs, (min(height, MAP_SIDE), min(width, MAP_SIDE)))
    return outputs.flatten(1).cpu()


def explained(features: Tensor, target: Tensor) -> float:
    """Return the share of the variance of `target` that ridge regression on features explains, image by image left out.

    Args:
        features: of shape (images, features); those that do not vary explain nothing.
        target: of shape (images, outputs).

    Returns:
        At most 1; 0 or a little less for features that tell nothing; NaN for a target that does not vary.
    """
    features, target = features.double(), target.double()
    count, size = features.shape
    deviation = features.std(0)
    inputs = torch.where(deviation == 0, 0.0, (features - features.mean(0)) / deviation)
    centred = target - target.mean(0)
    if size <= count:
        penalised = inputs.T @ inputs + RIDGE * torch.eye(size, dtype=torch.float64)
        hat = inputs @ torch.linalg.solve(penalised, inputs.T)
    else:
        kernel = inputs @ inputs.T
        hat = torch.linalg.solve(kernel + RIDGE * torch.eye(count, dtype=torch.float64), kernel)
    # Residuals of the regression on all other images (Allen's PRESS); the intercept has a leverage of 1 / count.
    residuals = (centred - hat @ centred) / (1 - 1 / count - hat.diagonal())[:, None]
    without = centred * count / (count - 1)
    return float(1 - residuals.square().sum() / without.square().sum())
