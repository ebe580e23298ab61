"""What a trace claims holds for random networks: outputs, costs, merging, reloading and a training step."""

import random
import warnings
from collections import Counter

import pytest
import torch
from random_nets import IMAGE, RandomNet
from torch import Tensor, nn

from pruning import checkpoint
from pruning.rewriting.index_maps import NetworkClusters
from pruning.rewriting.surgery import merge_channels, slice_channels
from pruning.selection import kept_ids
from spaces.counting import count_cost
from spaces.errors import TraceError
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace

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


def pairs(space: SearchSpace) -> dict[str, Tensor]:
    """Return clusters of two channels in every group of which the blocks have an even number of channels."""
    even = [group for group in space.variable if group.width // group.conv_groups % 2 == 0]
    return {group.name: torch.arange(group.width) // 2 for group in even}


def with_equal_pairs(net: nn.Module, space: SearchSpace, clusters: dict[str, Tensor]) -> nn.Module:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for merged in NetworkClusters(space, clusters).merged_dimensions():
            if not merged.summed:
                tensor = tensors[merged.tensor]
                tensor.copy_(merged.index_map.expand(merged.index_map.means(tensor, merged.dim), merged.dim))
    return net


def check(seed: int) -> str:
    """Check all claims for the network of a seed; return "refused" or "varies"."""
    net = RandomNet(seed).eval()
    image = torch.randn(2, *IMAGE)
    try:
        space = trace(net, image)
    except TraceError as error:
        return "refused" if "no layer of this network can be narrowed" in str(error) else f"not traced: {error}"
    selection = random_selection(space, random.Random(seed))
    narrow = slice_channels(net, space, selection).eval()
    widths = {name: len(kept) for name, kept in selection.items()}
    assert count_cost(narrow, IMAGE) == space.cost(widths)
    with torch.no_grad():
        out = narrow(image)
    if not any(isinstance(module, OVER_CHANNELS) for module in net.modules()):
        torch.testing.assert_close(out, masked(net, space, selection, image), rtol=1e-3, atol=1e-4)
    back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, None, widths), net).eval()
    with torch.no_grad():
        assert torch.equal(back(image), out)
    narrow.train()(image).sum().backward()
    clusters = pairs(space)
    equal = with_equal_pairs(net, space, clusters)
    with torch.no_grad():
        torch.testing.assert_close(merge_channels(equal, space, clusters)(image), equal(image), rtol=1e-3, atol=1e-4)
    return "varies"


def check_all(seeds: range) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        outcomes = Counter(check(seed) for seed in seeds)
    assert outcomes["varies"] > 0.9 * len(seeds), outcomes


def test_every_claim_holds_for_random_nets() -> None:
    check_all(range(40))


@pytest.mark.slow
def test_every_claim_holds_for_many_random_nets() -> None:
    check_all(range(1000, 1500))
