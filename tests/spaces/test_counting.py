import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from traced_zoo import zoo_space

from spaces.cost import Cost
from spaces.counting import count_cost, peak_activations
from spaces.slicing.slicer import sliced
from spaces.space import ModelSpec
from spaces.tracing.proof import halves
from spaces.zoo import models as zoo


def test_a_convolution_and_its_parameters_are_counted():
    # 8 x 8 positions, 3 x 3 kernels, 2 channels in and 5 out; one multiply-add is one FLOP, and the bias is free. While
    # it runs, the image and the output are live, in float32.
    net = nn.Conv2d(2, 5, 3, padding=1)
    assert count_cost(net, (2, 8, 8)) == Cost(64 * 9 * 2 * 5, 9 * 2 * 5 + 5, 4 * 64 * (2 + 5))


def test_counting_restores_the_mode_of_every_module():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2).eval(), nn.ReLU()).train()
    net[1].eval()
    before = net[1].running_mean.clone()
    count_cost(net, (1, 4, 4))
    assert [module.training for module in net] == [True, False, True]
    assert torch.equal(net[1].running_mean, before)


def test_a_network_without_parameters_costs_nothing():
    assert count_cost(nn.Flatten(), (1, 4, 4)) == Cost(0, 0, 64)  # the image alone: flattening is a view


class Shortcut(nn.Module):
    """Adds the image to what becomes of it; the parts of a split share its memory, and a maximum has unread indices."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(2, 6, 1), nn.Conv2d(3, 2, 1)

    def forward(self, image):
        left, _ = self.wide(image).relu_().chunk(2, dim=1)
        return nn.functional.max_pool2d(image + self.narrow(left), 2)


def test_tensors_are_live_from_their_making_to_their_last_reading():
    # Of 64 positions, in channels: image 2 + wide 6, then image 2 + wide 6 (left is a view of it) + narrow 2.
    assert peak_activations(Shortcut(), (2, 8, 8)) == 4 * 64 * (2 + 6 + 2)


def brute_force(net, image):
    """Sum, at every operation, the tensors that exist and that a later operation, or the caller, still reads."""
    seen, reads = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = [[t for t in tree_leaves(part) if isinstance(t, torch.Tensor)] for part in ([args, kwargs], out)]
            seen.extend(t for part in found for t in part)  # kept, so that no address is used twice
            reads.append([{t.untyped_storage().data_ptr() for t in part} for part in found])
            return out

    with torch.no_grad(), Watch():
        output = net(image)
    reads.append([{output.untyped_storage().data_ptr()}, set()])
    size = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen}
    weights = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    best, made = 0, {image.untyped_storage().data_ptr()}
    for index, (read, written) in enumerate(reads):
        made |= written
        later = set().union(*(entering for entering, _ in reads[index + 1 :]))
        best = max(best, sum(size[p] for p in made - weights if p in read or p in later))
    return best


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_peak_of_narrow_networks_is_that_of_the_cost_model_and_of_brute_force(name):
    space = zoo_space(name, 64)
    net = zoo.build(ModelSpec(name, 10, (3, 64, 64))).eval()
    for seed in (1, 2):
        kept = halves(space, seed)[0]
        widths = {g.name: int(kept[g.start : g.start + g.width].sum()) for g in space.variable}
        narrow = sliced(net, space, kept)
        assert brute_force(narrow, torch.rand(1, 3, 64, 64)) == space.cost(widths).activations
