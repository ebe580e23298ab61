"""Kinds of networks that users of pruning tools report: what varies, and what is fixed by which name."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from pruning import checkpoint
from pruning.rewriting.surgery import slice_channels
from spaces.errors import TraceError
from spaces.space import SearchSpace
from spaces.tracing.tracer import trace

IMAGE = (3, 16, 16)


class Middle(nn.Module):
    """conv a (3 -> width) -> the middle -> conv b (read -> 12) -> mean -> linear."""

    def __init__(self, function, width=8, read=None, **parts):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.b = nn.Conv2d(read or width, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function

    def forward(self, x):
        x = functional.relu(self.b(self.function(self, functional.relu(self.a(x)))))
        return self.fc(x.mean((2, 3)))


class Branches(nn.Module):
    """Two branches of one image, flattened and concatenated."""

    def __init__(self, side):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 10, 3, padding=1)
        self.fc = nn.Linear(18 * side * side, 5)
        self.side = side

    def forward(self, x):
        pooled = [functional.adaptive_avg_pool2d(conv(x), self.side).flatten(1) for conv in (self.a, self.b)]
        return self.fc(torch.cat(pooled, 1))


def traced(net: nn.Module) -> SearchSpace:
    return trace(net.eval(), torch.zeros(1, *IMAGE))


def channels_last(layer):
    return lambda net, x: layer(net, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attend(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    return net.m(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


def weigh(_, x):
    tokens = x.flatten(2)
    return x + (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).reshape(x.shape)


def own(*shape):
    return nn.Parameter(torch.randn(shape))


PLACES = torch.linspace(-1, 1, 16).expand(1, 2, 16, 16)
ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
FREE = {
    "one slope for all channels": lambda: Middle(lambda n, x: n.m(x), m=nn.PReLU()),
    "a slope per channel": lambda: Middle(lambda n, x: n.m(x), m=nn.PReLU(8)),
    "BatchNorm made of buffers": lambda: Middle(lambda n, x: n.m(x), m=torchvision.ops.FrozenBatchNorm2d(8)),
    "a filter per channel in a buffer": lambda: Middle(
        lambda n, x: functional.conv2d(x, n.k, groups=x.shape[1]), k=torch.rand(8, 1, 3, 3)
    ),
    "one filter for all channels": lambda: Middle(
        lambda n, x: functional.conv2d(x, n.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]), k=torch.rand(1, 1, 3, 3)
    ),
    "BatchNorm without statistics": lambda: Middle(lambda n, x: n.m(x), m=nn.BatchNorm2d(8, track_running_stats=False)),
    "RMSNorm": lambda: Middle(channels_last(lambda n, x: n.m(x)), m=nn.RMSNorm(8)),
    "GroupNorm": lambda: Middle(lambda n, x: n.m(x), m=nn.GroupNorm(2, 8)),
    "a norm over positions as many as channels": lambda: Middle(lambda n, x: n.m(x), width=16, m=nn.LayerNorm(16)),
    "a norm over whole maps": lambda: Middle(lambda n, x: n.m(x), m=nn.LayerNorm((8, 16, 16))),
    "several filters per channel": lambda: Middle(
        lambda n, x: functional.relu(n.m(x)), read=16, m=nn.Conv2d(8, 16, 3, padding=1, groups=8)
    ),
    "channels twice": lambda: Middle(lambda n, x: torch.cat([x, x], 1), read=16),
    "channels and their negatives": lambda: Middle(lambda n, x: torch.cat([x, -x], 1).relu(), read=16),
    "average beside maximum pooling": lambda: Middle(
        lambda n, x: torch.cat([functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1)], 1), read=16
    ),
    "channels in reverse": lambda: Middle(lambda n, x: x.flip(1)),
    "halves": lambda: Middle(
        lambda n, x: torch.cat([*(y := x.chunk(2, 1)), n.m(y[1])], 1), read=12, m=nn.Conv2d(4, 4, 3, padding=1)
    ),
    "a part of the channels": lambda: Middle(
        lambda n, x: torch.cat([n.m(x[:, : x.shape[1] // 4]), x[:, x.shape[1] // 4 :]], 1), m=nn.Conv2d(2, 2, 1)
    ),
    "a value read in Python": lambda: Middle(lambda n, x: x * n.k.item(), k=nn.Parameter(torch.tensor(0.5))),
    "shuffle": lambda: Middle(lambda n, x: n.m(x), m=nn.ChannelShuffle(2)),
    "shuffle by views": lambda: Middle(
        lambda n, x: x.view(-1, 2, x.shape[1] // 2, 16, 16).transpose(1, 2).flatten(1, 2)
    ),
    "norm without weights": lambda: Middle(
        channels_last(lambda n, x: n.m(x)), m=nn.LayerNorm(8, elementwise_affine=False)
    ),
    "a norm by hand": lambda: Middle(
        lambda n, x: (x - x.mean(1, True)) / x.var(1, keepdim=True, unbiased=False).sqrt()
    ),
    "sum over channels": lambda: Middle(lambda n, x: x + x.sum(1, keepdim=True)),
    "transposed": lambda: Middle(lambda n, x: n.m(x), m=nn.ConvTranspose2d(8, 8, 2, stride=2)),
    "transposed, as wide as deep": lambda: Middle(lambda n, x: n.m(x), m=nn.ConvTranspose2d(8, 8, 3, bias=False)),
    "transposed depthwise": lambda: Middle(lambda n, x: n.m(x), m=nn.ConvTranspose2d(8, 8, 3, groups=8)),
    "a parameter of its own": lambda: Middle(
        lambda n, x: functional.conv2d(x, n.w, n.v, padding=1), w=own(8, 8, 3, 3), v=own(8)
    ),
    "a parameter of its own, transposed": lambda: Middle(
        lambda n, x: functional.conv_transpose2d(x, n.w, stride=2), w=own(8, 8, 2, 2)
    ),
    "a weight computed from a parameter": lambda: Middle(
        lambda n, x: functional.conv2d(x, 2 * n.w, padding=1), w=own(8, 8, 3, 3)
    ),
    "several filters per channel in a buffer": lambda: Middle(
        lambda n, x: functional.conv2d(x, n.k.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
        read=16,
        k=torch.rand(2, 1, 3, 3),
    ),
    "coordinates beside": lambda: Middle(lambda n, x: torch.cat([x, PLACES], 1), read=10),
    "zeros beside": lambda: Middle(lambda n, x: functional.pad(x, (0, 0, 0, 0, 1, 3)), read=12),
    "the largest of all channels": lambda: Middle(lambda n, x: x * x.max(1, keepdim=True).values),
    "a half that weighs the other": lambda: Middle(lambda n, x: functional.glu(n.m(x), 1), m=nn.Conv2d(8, 16, 1)),
    "maps as large as others": lambda: Middle(
        lambda n, x: x * n.m(x.mean(3, keepdim=True)).expand_as(x).sigmoid(), m=nn.Conv2d(8, 8, 1)
    ),
    "read at places": lambda: Middle(
        lambda n, x: functional.grid_sample(x, n.m(x).permute(0, 2, 3, 1), align_corners=False), m=nn.Conv2d(8, 2, 1)
    ),
    "a layer over positions": lambda: Middle(lambda n, x: n.m(x.flatten(2)).unflatten(2, (4, 4)), m=nn.Linear(256, 16)),
    "flattened vectors side by side": lambda: Branches(1),
    "flattened maps side by side": lambda: Branches(2),
}


@pytest.mark.parametrize("kind", FREE)
def test_the_channels_vary(kind):
    space = traced(FREE[kind]())
    assert {"a", "b"} <= {group.name for group in space.variable}
    assert [layer.name for layer in space.layers_fixed if layer.name in ("a", "b")] == []


FIXED = {
    "index": (lambda: Middle(lambda n, x: x[:, n.i], i=ORDER), "__getitem__"),
    "index in an attribute": (lambda: Middle(lambda n, x: x[:, ORDER]), "__getitem__"),
    "roll": (lambda: Middle(lambda n, x: x.roll(1, 1)), "roll"),
    "sort": (lambda: Middle(lambda n, x: x.sort(1).values), "sort"),
    "softmax over channels": (lambda: Middle(lambda n, x: x.softmax(1)), "softmax"),
    "a filter per channel, as many as written": (
        lambda: Middle(lambda n, x: functional.conv2d(x, n.k, groups=8), k=torch.ones(8, 1, 3, 3)),
        "conv2d",
    ),
    "norm over a written shape": (
        lambda: Middle(channels_last(lambda n, x: functional.layer_norm(x, (8,), n.g)), g=nn.Parameter(torch.ones(8))),
        "layer_norm",
    ),
    "attention layer": (lambda: Middle(attend, m=nn.MultiheadAttention(8, 2, batch_first=True)), "in m"),
    "attention by products": (lambda: Middle(weigh), "matmul"),
    "written view": (
        lambda: Middle(lambda n, x: x.view(x.shape[0], 8, -1).view(x.shape[0], 8, 16, 16)),
        r"view from \(1, 8, 16, 16\) to \(1, 8, 256\)",
    ),
    "filters mixed for each image": (lambda: Middle(_mixed, w=own(2, 8, 8, 1, 1)), "einsum"),
    "a norm over neighbouring channels": (lambda: Middle(lambda n, x: n.m(x), m=nn.LocalResponseNorm(3)), "in m"),
    "vectors of unit length": (lambda: Middle(lambda n, x: functional.normalize(x)), "normalize"),
    "a weight in a buffer": (
        lambda: Middle(lambda n, x: functional.conv2d(x, n.w, padding=1), w=torch.randn(8, 8, 3, 3)),
        "conv2d with w",
    ),
    "transposed in groups": (
        lambda: Middle(lambda n, x: n.m(x), m=nn.ConvTranspose2d(8, 8, 3, groups=2)),
        "conv_transpose2d of 2 groups",
    ),
    "a tied decoder": (
        lambda: Middle(lambda n, x: functional.conv_transpose2d(n.m(x), n.m.weight), m=nn.Conv2d(8, 8, 3)),
        "m.weight is the weight of a convolution and of a transposed one",
    ),
    "a written assertion": (lambda: Middle(lambda n, x: _of_eight(x)), "ValueError"),
    "written halves": (
        lambda: Middle(lambda n, x: torch.cat(x.split(4, 1)[::-1], 1)),
        "split",
    ),
    "product over channels": (lambda: Middle(lambda n, x: x - x.prod(1, keepdim=True)), "prod over channels"),
    "a tensor in an attribute": (lambda: Middle(lambda n, x: x * _SCALE), "mul"),
}
_SCALE = torch.rand(1, 8, 1, 1) + 0.5


def _mixed(net, x):
    return functional.conv2d(x, torch.einsum("e,eoikl->oikl", x.mean((0, 2, 3))[:2].softmax(0), net.w))


def _of_eight(x):
    if x.shape[1] != 8:
        raise ValueError("eight channels are needed")
    return x


@pytest.mark.parametrize("kind", FIXED)
def test_the_channels_are_fixed_by_name_and_the_others_vary(kind):
    make, reason = FIXED[kind]
    space = traced(make())
    assert "b" in {group.name for group in space.variable}
    (fixed,) = [layer for layer in space.layers_fixed if layer.name == "a"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(fixed.reason)


REFUSED = {
    "lazy": (lambda: Middle(lambda n, x: n.m(x), read=6, m=nn.LazyConv2d(6, 1)), "'m' is lazy"),
    "weight norm": (
        lambda: Middle(lambda n, x: n.m(x), m=nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        "'m' computes its weight.*remove_parametrizations",
    ),
    "spectral norm by a hook": (
        lambda: Middle(lambda n, x: n.m(x), m=nn.utils.spectral_norm(nn.Conv2d(8, 8, 1))),
        "'m' computes its weight.*remove_spectral_norm",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_without_values_of_their_own_are_refused(kind):
    make, reason = REFUSED[kind]
    with pytest.raises(TraceError, match=reason):
        traced(make())


def test_a_net_that_never_ends_is_refused_with_the_layer_where_it_stood(monkeypatch):
    def forever(net, x):
        while x is not None:
            x = net.m(x)

    monkeypatch.setattr("spaces.tracing.recording.MOST_STEPS", 100)
    with pytest.raises(TraceError, match="stood in m"):
        traced(Middle(forever, m=nn.ReLU()))


def test_layers_that_run_in_training_only_follow_their_channels():
    class Auxiliary(Middle):
        def forward(self, x):
            middle = functional.relu(self.a(x))
            out = self.fc(functional.relu(self.b(middle)).mean((2, 3)))
            return (out, self.aux(middle.mean((2, 3)))) if self.training else out

    space = traced(Auxiliary(None, aux=nn.Linear(8, 5)))
    assert {group.name for group in space.variable} == {"a", "b"}
    assert space.by_name["a"].consumers == ("b", "aux")


def test_a_transposed_convolution_writes_the_second_axis_of_its_weight():
    net = FREE["transposed"]().eval()
    space = traced(net)
    group = space.by_name["m"]
    assert (group.producers, group.consumers, space.by_name["a"].consumers) == (("m",), ("b",), ("m",))
    narrow = slice_channels(net, space, {"a": torch.tensor([1, 5]), "m": torch.tensor([0, 3, 7])})
    assert (narrow.m.in_channels, narrow.m.out_channels) == (2, 3)
    weight = net.m.weight[[1, 5]][:, [0, 3, 7]]  # by hand: (in, out, 2, 2)
    assert torch.equal(narrow.m.weight, weight)
    x = torch.randn(1, 2, 4, 4)
    out = torch.einsum("nihw,ioyx->nohywx", x, weight).reshape(1, 3, 8, 8) + net.m.bias[[0, 3, 7], None, None]
    torch.testing.assert_close(narrow.m(x), out, rtol=1e-4, atol=1e-5)
    # By hand: a 27 w + w, m w v 4 + v, b v 12 * 9 + 12, fc 12 * 5 + 5.
    assert space.cost({"a": 2, "m": 3, "b": 12}).params == sum((27 * 2 + 2, 2 * 3 * 4 + 3, 9 * 3 * 12 + 12, 65))


def test_halves_stay_equal():
    space = traced(FREE["halves"]())
    group = space.by_name["a"]
    assert (group.width, group.conv_groups, group.divisor) == (8, 2, 2)
    # By hand, 3x3 kernels: a 27 w + w, m (w / 2)^2 9 + w / 2, b (w + w / 2) 12 * 9 + 12, fc 12 * 5 + 5.
    params = sum((27 * 4 + 4, 9 * 2 * 2 + 2, 9 * (4 + 2) * 12 + 12, 65))
    assert space.cost({"a": 4, "m": 2, "b": 12}).params == params


class Parts(nn.Module):
    """A residual over the first channels of a wider map, and a split, at widths written in attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.parts = 4, (2, 6)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 10, 3, padding=1)
        self.c, self.d = nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(7, 5)

    def forward(self, x):
        x = functional.relu(self.a(x))
        y = self.b(x)
        y = torch.cat([y[:, : self.first] + x, y[:, self.first :]], 1)
        left, right = functional.relu(self.c(functional.relu(y))).split(self.parts, 1)
        return self.fc(torch.cat([left, self.d(right)], 1).mean((2, 3)))


def test_written_widths_follow_the_channels_that_they_count():
    net = Parts().eval()
    space = traced(net)
    assert {group.name: group.width for group in space.variable} == {"a": 4, "b": 6, "c": 2, "c#1": 6, "d": 5}
    kept = {"a": [0, 3], "b": [1, 2, 5], "c": [1], "c#1": [0, 4], "d": [2, 3]}
    narrow = slice_channels(net, space, {name: torch.tensor(indices) for name, indices in kept.items()})
    assert (narrow.first, narrow.parts) == (2, (1, 2))
    assert (net.first, net.parts) == (4, (2, 6))
    # By hand: the dense network's own functions with the rows and columns that are kept written out.
    rows = {"a": [0, 3], "b": [0, 3, 5, 6, 9], "c": [1, 2, 6], "d": [2, 3]}
    columns = {"a": [0, 1, 2], "b": [0, 3], "c": [0, 3, 5, 6, 9], "d": [0, 4]}
    image = torch.randn(2, *IMAGE)

    def conv(name, x):
        layer = net.get_submodule(name)
        return functional.conv2d(x, layer.weight[rows[name]][:, columns[name]], layer.bias[rows[name]], padding=1)

    x = conv("a", image).relu()
    y = conv("b", x)
    y = conv("c", torch.cat([y[:, :2] + x, y[:, 2:]], 1).relu()).relu()
    out = torch.cat([y[:, :1], conv("d", y[:, 1:])], 1).mean((2, 3))
    expected = functional.linear(out, net.fc.weight[:, [1, 4, 5]], net.fc.bias)
    torch.testing.assert_close(narrow(image), expected, rtol=1e-4, atol=1e-5)
    data = checkpoint.to_bytes(narrow, None, {name: len(indices) for name, indices in kept.items()})
    back = checkpoint.from_bytes(data, net)
    assert (back.first, back.parts) == (2, (1, 2))
    torch.testing.assert_close(back(image), expected, rtol=1e-4, atol=1e-5)


def test_a_standardised_filter_is_standardised_over_its_remaining_inputs():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = functional.batch_norm(
                self.weight.reshape(1, self.out_channels, -1), None, None, training=True
            ).reshape_as(self.weight)
            return functional.conv2d(x, weight, self.bias)

    net = Middle(lambda n, x: n.m(x), m=Standardised(8, 8, 1)).eval()
    space = traced(net)
    narrow = slice_channels(net, space, {"a": torch.tensor([0, 1, 6])})
    x = torch.randn(1, 3, 4, 4)
    weight = net.m.weight[:, [0, 1, 6], 0, 0]
    weight = (weight - weight.mean(1, True)) / (weight.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = torch.einsum("oi,nihw->nohw", weight, x) + net.m.bias[:, None, None]
    torch.testing.assert_close(narrow.m(x), expected, rtol=1e-4, atol=1e-5)


def test_what_a_forward_pass_caches_is_no_part_of_the_trace():
    class Caching(Middle):
        def forward(self, x):
            self.cache = getattr(self, "cache", None) or {"scale": self.k * 2}
            return super().forward(x * self.cache["scale"])

    net = Caching(lambda n, x: x, k=torch.tensor(0.5))
    assert {group.name for group in traced(net).variable} == {"a", "b"}
    assert not hasattr(net, "cache")


def test_radix_parts_of_a_grouped_convolution_lose_the_same_channels():
    class Radix(Middle):
        def forward(self, x):
            return super().forward(self.attend(functional.relu(self.r(x))))

        def attend(self, x):
            parts = x.reshape(len(x), 2, x.shape[1] // 2, *x.shape[2:])
            return (parts * parts.mean((3, 4), keepdim=True).softmax(1)).sum(1)

    net = Radix(lambda n, x: x, r=nn.Conv2d(3, 6, 1)).eval()
    net.a = nn.Conv2d(3, 8, 1)
    space = traced(net)
    group = space.by_name["r"]
    assert (group.width, group.fixed) == (3, "")
    assert space.axes["r.weight"][0].tolist() == [*range(group.start, group.start + 3)] * 2
