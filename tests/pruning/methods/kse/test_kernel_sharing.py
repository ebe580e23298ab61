import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning import checkpoint
from pruning.export import export_network
from pruning.inference import choose_forms, for_inference
from pruning.methods.kse.kernel_indicator import channel_kernels
from pruning.methods.kse.kernel_sharing import KMeansSettings, SharedKernelConv2d, share_kernels
from spaces.counting import count_cost

SHAPES = {
    "3x3": (nn.Conv2d(6, 8, 3, padding=1), [8, 2, 0, 4, 2, 1]),
    "strided, no bias": (nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), [2, 2, 0, 8, 8, 1]),
    "1x1": (nn.Conv2d(6, 8, 1), [8, 2, 3, 4, 2, 1]),
    "dilated": (nn.Conv2d(6, 8, (3, 1), dilation=2, padding=(2, 0)), [0, 0, 0, 4, 0, 0]),
    "grouped": (nn.Conv2d(6, 8, 3, padding=1, groups=2), [4, 2, 0, 1, 2, 2]),
    "grouped, unequal": (nn.Conv2d(6, 8, 3, groups=2), [0, 2, 0, 1, 2, 4]),
    "grouped, one empty": (nn.Conv2d(6, 8, 3, groups=2), [0, 0, 0, 1, 2, 4]),
    "none whole": (nn.Conv2d(6, 8, 3), [0, 2, 3, 1, 2, 4]),
    "one each": (nn.Conv2d(6, 8, 3), [1, 1, 1, 1, 1, 1]),
}


@pytest.fixture(params=SHAPES)
def case(request):
    torch.manual_seed(0)
    conv, kept = copy.deepcopy(SHAPES[request.param])
    conv.reset_parameters()
    return conv.double(), np.array(kept)


def images(count=3):
    return torch.randn(count, 6, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rebuilt(conv, layer):
    """Return the plain convolution whose kernels are replaced by their centroids, from indices and codebook."""
    kernels = torch.zeros_like(channel_kernels(conv.weight, conv.groups))
    book = layer.codebook.detach()
    for level, index in zip(layer.levels, layer.indices(), strict=True):
        for i, channel in enumerate(level.channels):
            kernels[channel] = book[level.first + i * level.kernels + torch.from_numpy(index[i])]
    plain = copy.deepcopy(conv)
    by_group = kernels.unflatten(0, (conv.groups, -1)).transpose(1, 2)
    plain.weight.data = by_group.reshape(conv.weight.shape).clone()
    return plain


def test_all_kernels_kept_is_the_dense_convolution():
    conv = nn.Conv2d(6, 8, 3, padding=1).double()
    layer = share_kernels(conv, np.full(6, 8), KMeansSettings())
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(images()), conv(images()), rtol=0, atol=1e-12)


def test_training_evaluation_and_the_rebuilt_convolution_agree(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings())
    expected = rebuilt(conv, layer)(images())
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(images()), expected, rtol=0, atol=1e-10)


def test_every_form_computes_what_the_rebuilt_convolution_does(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings()).eval()
    expected = rebuilt(conv, layer)(images())
    assert layer.forms()[0] == "dense"
    with torch.no_grad():
        for form in layer.forms():
            alone = layer.inference_module(form).eval()
            layer.form = form
            for module in (alone, layer, for_inference(nn.Sequential(layer))):
                torch.testing.assert_close(module(images()), expected, rtol=0, atol=1e-10)


def test_a_layer_with_few_kernels_has_a_separable_form_that_multiplies_less():
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    layer = share_kernels(conv, np.array([1, 2, 0, 8, 4, 1]), KMeansSettings())
    # Of 9 * 8 = 72 products a channel: one kernel needs 9 + 8, two 34, and four 68.
    products = count_cost(layer.inference_module("separable"), (6, 9, 9)).flops / 81
    assert products == 17 + 34 + 72 + 68 + 17
    assert count_cost(layer.inference_module("dense"), (6, 9, 9)).flops / 81 == 5 * 72
    assert count_cost(layer.inference_module("padded"), (6, 9, 9)).flops / 81 == 6 * 72
    assert "separable" not in share_kernels(conv, np.array([5, 8, 5, 5, 5, 5]), KMeansSettings()).forms()


def test_evaluation_follows_a_change_of_the_kernels():
    conv, kept = copy.deepcopy(SHAPES["3x3"])
    layer = share_kernels(conv.double(), np.array(kept), KMeansSettings()).eval()
    with torch.no_grad():
        before = layer(images())
        layer.codebook.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(images()), 2 * before)


def test_gradients_of_kernels_are_the_sums_over_their_uses(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings())
    plain = rebuilt(conv, layer)
    weight = torch.randn_like(plain(images()))
    (plain(images()) * weight).sum().backward()
    gradients = channel_kernels(plain.weight.grad, conv.groups)
    expected = torch.zeros_like(layer.codebook)
    for level, index in zip(layer.levels, layer.indices(), strict=True):
        for i, channel in enumerate(level.channels):
            rows = torch.from_numpy(level.first + i * level.kernels + index[i])
            expected.index_add_(0, rows, gradients[channel])
    for mode in (True, False):
        layer.zero_grad()
        (layer.train(mode)(images()) * weight).sum().backward()
        torch.testing.assert_close(layer.codebook.grad, expected, rtol=0, atol=1e-10)


def test_fvcore_counts_a_kernel_per_map_and_parameter_only(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings()).float()
    counted = count_cost(layer, (6, 9, 9))
    height, width = conv(images()).shape[2:]
    area = conv.kernel_size[0] * conv.kernel_size[1]
    assert counted.flops == height * width * area * kept.sum()
    assert counted.params == area * kept.sum() + (8 if conv.bias is not None else 0)


def test_indices_come_back_from_their_bits(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings())
    kernels = 8 // conv.groups
    bits = sum(kernels * int(np.ceil(np.log2(q))) for q in kept if 0 < q < kernels)
    assert layer.index_bits == bits
    assert layer.packed.dtype == torch.uint8
    assert bits <= 8 * layer.packed.numel() < bits + 8 * len(layer.levels)
    before = [index.copy() for index in layer.indices()]
    layer.set_indices([torch.from_numpy(index) for index in before])
    for old, new in zip(before, layer.indices(), strict=True):
        assert (old == new).all()


def test_reordered_filters_reorder_the_indices_only():
    conv, order = nn.Conv2d(6, 8, 3).double(), torch.randperm(8)
    moved = copy.deepcopy(conv)
    moved.weight.data = conv.weight.data[order]
    kept = np.array([8, 2, 4, 4, 2, 1])
    first, second = (rebuilt(plain, share_kernels(plain, kept, KMeansSettings(restarts=30))) for plain in (conv, moved))
    torch.testing.assert_close(first.weight[order], second.weight)


def test_the_state_brings_everything_into_a_layer_of_the_same_structure(case):
    conv, kept = case
    layer = share_kernels(conv, kept, KMeansSettings()).eval()
    with torch.device("meta"):
        plain = nn.Conv2d(12, 16, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    plain.bias = plain.bias if conv.bias is not None else None
    other = SharedKernelConv2d.rebuild(plain.double(), layer.structure()).double().eval()
    assert not torch.equal(other(images()), layer(images()))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images()), layer(images()))
    assert torch.equal(other.train()(images()), layer.train()(images()))


def net_of(case):
    conv, kept = case
    dense = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), conv.float(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dense.append(nn.Linear(8, 4))
    narrow = copy.deepcopy(dense)
    narrow[2] = share_kernels(conv, np.array(kept), KMeansSettings())
    return dense, narrow.eval()


def test_a_checkpoint_comes_back_bit_equal(case):
    dense, narrow = net_of(case)
    narrow[2].form = narrow[2].forms()[-1]
    back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, None, {}), model=dense).eval()
    assert back[2].form == narrow[2].form
    image = torch.randn(2, 3, 12, 12)
    assert isinstance(back[2], SharedKernelConv2d)
    assert torch.equal(back(image), narrow(image))
    assert torch.equal(back.train()(image), narrow.train()(image))


@pytest.mark.parametrize("name", ["3x3", "1x1", "grouped, unequal"])
def test_it_is_exported_as_a_program_that_takes_any_number_of_images(tmp_path, name):
    _, narrow = net_of(copy.deepcopy(SHAPES[name]))
    narrow[2].form = narrow[2].forms()[-2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = export_network(narrow, None, {}, (3, 12, 12), tmp_path)
    assert written.program is not None
    assert written.program.suffix == ".pt2"


def test_channels_last_and_bfloat16_training_work():
    _, narrow = net_of(copy.deepcopy(SHAPES["3x3"]))
    image = torch.randn(2, 3, 12, 12)
    expected = narrow(image)
    narrow.to(memory_format=torch.channels_last)
    placed = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(narrow(placed), expected)
    for mode in (True, False):
        narrow.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            logits = narrow(placed)
        functional.cross_entropy(logits.float(), torch.tensor([0, 1])).backward()
    assert torch.isfinite(narrow[2].codebook.grad).all()


def test_the_layer_is_copied_and_clusters_are_seeded():
    conv, kept = SHAPES["3x3"]
    first, second = (share_kernels(conv, np.array(kept), KMeansSettings(seed=4)) for _ in range(2))
    assert torch.equal(first.codebook, second.codebook)
    assert torch.equal(first.packed, second.packed)
    copied = copy.deepcopy(first)
    assert torch.equal(copied(images().float()), first(images().float()))
    assert copied.codebook is not first.codebook


def test_only_a_convolution_can_be_its_place():
    with pytest.raises(TypeError, match="Linear"):
        SharedKernelConv2d.rebuild(nn.Linear(2, 2), {"channels": [2, 2], "levels": [[1, [0]]]})


def test_every_layer_takes_the_form_that_is_timed_as_the_fastest():
    _, narrow = net_of(copy.deepcopy(SHAPES["3x3"]))
    narrow.train()
    timed = []

    def last(modules, images_of_layer):
        timed.append(images_of_layer.shape)
        return len(modules) - 1

    choose_forms(narrow, torch.zeros(2, 3, 12, 12), last)
    assert narrow[2].form == "maps"
    assert timed == [(2, 6, 10, 10)]
    assert narrow.training
    choose_forms(narrow, torch.zeros(2, 3, 12, 12), last)  # what is chosen stays
    assert len(timed) == 1
