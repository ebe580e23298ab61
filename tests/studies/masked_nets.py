"""What a narrow network must compute, found without slicing: the dense one, with the removed channels at zero."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pruning.rewriting.index_maps import NetworkClusters
from pruning.selection import kept_ids
from spaces.slicing.filters import as_filters
from spaces.slicing.slicer import KeptIds
from spaces.space import SearchSpace

# These normalise over the channels, so a narrow network normalises over fewer; by name, as timm need not be there.
OVER_CHANNELS = {
    "GroupNorm",
    "GroupNorm1",
    "LayerNorm",
    "LayerNorm2d",
    "RMSNorm",
    "GlobalResponseNorm",
    "Centred",
    "Strongest",
}
# Convolutions that standardise their filters, each over its inputs and positions, by the biased variance.
STANDARDISED = {"StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame", "Standardised"}


def normalises_over_channels(net: nn.Module) -> bool:
    return any(type(module).__name__ in OVER_CHANNELS for module in net.modules())


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
    with _moments_of_kept(net, space, kept):
        return _masked(net, space, kept, image)


@contextmanager
def _moments_of_kept(net: nn.Module, space: SearchSpace, kept: KeptIds) -> Iterator[None]:
    """Fill the removed inputs of filters that are standardised so that mean and variance are those of the kept ones.

    What a removed input is multiplied with does not matter, because it is zero.
    """
    weights = {}
    for name, module in net.named_modules():
        ids = space.axes.get(f"{name}.weight", {}).get(1)
        if type(module).__name__ in STANDARDISED and ids is not None:
            weights[module] = module.weight.detach().clone()
            stays = torch.from_numpy(kept[ids]).reshape(module.groups, -1)
            for block, part in zip(module.weight.data.chunk(module.groups), stays, strict=True):
                _fill(block, part)
    yield
    for module, weight in weights.items():
        module.weight.data.copy_(weight)


def _fill(block: Tensor, stays: Tensor) -> None:
    mean, deviation = block[:, stays].mean((1, 2, 3)), block[:, stays].std((1, 2, 3), correction=0)
    count = int((~stays).sum()) * block[0, 0].numel()
    if count == 0:
        return
    assert count > 1, "no single value has a deviation"
    three = [1.5**0.5, -(1.5**0.5), 0.0] if count % 2 else []
    signs = torch.tensor([*three, *[1.0, -1.0] * ((count - len(three)) // 2)])
    values = mean[:, None] + deviation[:, None] * signs
    block[:, ~stays] = values.reshape(len(block), -1, *block.shape[2:])


def pairs(net: nn.Module, space: SearchSpace) -> dict[str, Tensor]:
    """Return clusters of two channels in every group whose blocks have an even number of channels.

    A filter that is standardised is another one when inputs are merged, so what it reads has no clusters.
    """
    modules = dict(net.named_modules())
    even = [group for group in space.variable if group.width // group.conv_groups % 2 == 0]
    merged = [g for g in even if not any(type(modules.get(layer)).__name__ in STANDARDISED for layer in g.consumers)]
    return {group.name: torch.arange(group.width) // 2 for group in merged}


def with_equal_pairs(net: nn.Module, space: SearchSpace, clusters: dict[str, Tensor]) -> nn.Module:
    """Make the channels of every cluster equal, in place."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for merged in NetworkClusters(space, clusters).merged_dimensions():
            if not merged.summed:
                tensor = as_filters(space, merged.tensor, tensors[merged.tensor])
                tensor.copy_(merged.index_map.expand(merged.index_map.means(tensor, merged.dim), merged.dim))
    return net


class _Masking(TorchFunctionMode):
    """Sets removed channels to zero in front of every function that takes a weight and sums over its inputs."""

    def __init__(self, masks: dict[int, Tensor]) -> None:
        super().__init__()
        self.masks = masks  # id of a weight -> 1 for the inputs that are kept

    def __torch_function__(self, func, types, args=(), kwargs=None):
        mask = self.masks.get(id(args[1])) if len(args) > 1 and func in SUMMING else None
        if mask is not None:
            args = (args[0] * (mask if func is functional.linear else mask[:, None, None]), *args[1:])
        return func(*args, **(kwargs or {}))


SUMMING = (functional.conv2d, functional.conv_transpose2d, functional.linear)


def _masked(net: nn.Module, space: SearchSpace, kept: KeptIds, image: Tensor) -> Tensor:
    handles, masks = [], {}
    modules = dict(net.named_modules())
    for name, weight in net.named_parameters():
        ids = space.axes.get(name, {}).get(1)
        if ids is None:
            continue
        mask = torch.from_numpy(kept[ids]).float()
        module = modules[name.rpartition(".")[0]]
        if type(module).__name__ not in STANDARDISED:
            masks[id(weight)] = mask
            continue

        def before(_module: nn.Module, inputs: tuple[Tensor], mask: Tensor = mask) -> Tensor:
            return inputs[0] * mask[:, None, None]

        handles.append(module.register_forward_pre_hook(before))
    with torch.no_grad(), _Masking(masks):
        out = net(image)
    for handle in handles:
        handle.remove()
    return out
