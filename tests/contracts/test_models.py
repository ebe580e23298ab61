"""What every network of the zoo must offer; a new one is covered by its name alone."""

import pytest
import torch
from torch import Tensor
from traced_zoo import zoo_space

from pruning import checkpoint
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.space import ModelSpec
from spaces.zoo import models as zoo

# One of every kind: flatten, residual, concatenating, depthwise, gated, grouped, LayerNorm, without BatchNorm.
KINDS = [
    *("lenet5", "resnet20", "cifar_vgg16_bn", "densenet40", "googlenet", "mobilenet_v2", "mnasnet0_5"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny", "squeezenet1_1"),
]


@pytest.mark.parametrize("name", zoo.model_names())
def test_a_net_without_memory_has_no_tensor_but_those_of_a_checkpoint(name):
    """`checkpoint` builds nets on the meta device and gives them the stored tensors: there must be no others."""
    spec = ModelSpec(name, 10, zoo.default_input_shape(name))
    try:
        with torch.device("meta"):
            net = zoo.build(spec)
    except NotImplementedError:  # RegNets compute their widths with tensors, so `checkpoint` builds them on the CPU
        assert name.startswith("regnet")
        return
    stored = {id(tensor) for tensor in net.state_dict(keep_vars=True).values()}
    tensors = [*net.parameters(), *net.buffers()]
    for module in net.modules():
        tensors += [value for value in vars(module).values() if isinstance(value, Tensor)]
    assert all(id(tensor) in stored for tensor in tensors)


@pytest.mark.parametrize("name", KINDS)
def test_a_narrow_net_comes_back_bit_equal_from_its_checkpoint(name):
    side = 32 if name in zoo.CIFAR_NAMES else 64
    spec, space = ModelSpec(name, 10, (3, side, side)), zoo_space(name, side)
    image, widths = torch.rand(2, *spec.input_shape), space.smallest
    dense = zoo.build(spec).eval()
    scores = {group.name: torch.rand(group.width) for group in space.variable}
    narrow = slice_channels(dense, space, select_channels(space, scores, widths))
    back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, spec, widths)).eval()
    with torch.no_grad():
        assert torch.equal(back(image), narrow.eval()(image))
    assert sum(parameter.numel() for parameter in back.parameters()) == space.cost(widths).params
