"""What a narrow network must compute, found without slicing: the dense one, with the removed channels at zero."""

import random

import torch
from torch import Tensor, nn

from pruning.selection import kept_ids
from spaces.space import SearchSpace

# These normalise over the channels, so a narrow network normalises over fewer.
OVER_CHANNELS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def random_selection(space: SearchSpace, rng: random.Random) -> dict[str, Tensor]:
    chosen = {}
    for group in space.variable:
        block = group.width // group.conv_groups
        count = rng.randint(1, block)
        kept = [sorted(rng.sample(range(start, start + block), count)) for start in range(0, group.width, block)]
        chosen[group.name] = torch.tensor(kept).flatten()
    return chosen


def masked(net: nn.Module, space: SearchSpace, selection: dict[str, Tensor], image: Tensor) -> Tensor:
    """Run the dense network with the removed channels set to zero in front of every layer that sums over them."""
    kept = kept_ids(space, selection)
    handles = []
    for name, module in net.named_modules():
        ids = space.axes.get(f"{name}.weight", {}).get(1)
        if ids is None or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        mask = torch.from_numpy(kept[ids]).float()

        def before(module: nn.Module, inputs: tuple[Tensor], mask: Tensor = mask) -> Tensor:
            return inputs[0] * (mask if isinstance(module, nn.Linear) else mask[:, None, None])

        handles.append(module.register_forward_pre_hook(before))
    with torch.no_grad():
        out = net(image)
    for handle in handles:
        handle.remove()
    return out
