"""What a trace claims holds for random networks: outputs, costs, merging, reloading and a training step."""

import random
import warnings
from collections import Counter

import pytest
import torch
from masked_nets import masked, normalises_over_channels, pairs, random_selection, with_equal_pairs
from random_nets import IMAGE, RandomNet

from pruning import checkpoint
from pruning.rewriting.surgery import merge_channels, slice_channels
from spaces.counting import count_cost
from spaces.errors import TraceError
from spaces.tracing.tracer import trace


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
    assert count_cost(narrow, IMAGE).agrees(space.cost(widths))
    with torch.no_grad():
        out = narrow(image)
    if not normalises_over_channels(net):
        torch.testing.assert_close(out, masked(net, space, selection, image), rtol=1e-3, atol=1e-4)
    back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, None, widths), net).eval()
    with torch.no_grad():
        assert torch.equal(back(image), out)
    narrow.train()(image).sum().backward()
    clusters = pairs(net, space)
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
