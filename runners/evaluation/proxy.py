"""The proxy, by which candidates are compared before any training: minus the validation loss of the cut network.

It ranks networks as their accuracy after training does, and better than their accuracy before it: a count of correct
images is coarse, and a cut network that still guesses at the label may be far from it or close (figures: the study
`tests/studies/proxies.py` and docs/measured.md).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from runners.data.splits import Split
from runners.training.loop import evaluating

BATCH = 256
PROXY_IMAGES = 2 * BATCH  # on which the proxy is measured: the first of the validation images


@torch.no_grad()
def accuracy_and_proxy(
    net: nn.Module, split: Split, *, device: torch.device, limit: int | None = None
) -> tuple[float, float]:
    """Return top-1 accuracy in [0, 1] and the proxy, from one pass over the first `limit` images, in float32.

    The proxy is minus the mean cross entropy of the first `PROXY_IMAGES` of them, in nats, at most 0; higher is better.
    Both are 0.0 for an empty split.
    """
    correct: list[Tensor] = []
    losses: list[Tensor] = []
    seen = 0
    net.to(device)
    with evaluating(net):
        for images, labels in split.batches(BATCH, device=device, limit=limit):
            logits = net(images)
            correct.append((logits.argmax(1) == labels).sum())
            if seen < PROXY_IMAGES:
                losses.append(functional.cross_entropy(logits.float(), labels, reduction="sum"))
            seen += len(labels)
    if not seen:
        return 0.0, 0.0
    return int(torch.stack(correct).sum()) / seen, -float(torch.stack(losses).sum()) / min(seen, PROXY_IMAGES)
