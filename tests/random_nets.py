"""Random small networks, put together from the pieces by which channels are tied, moved, split and normalised."""

import random
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

IMAGE = (3, 8, 8)


class Piece(nn.Module):
    """A function of an image and its own layers; the image keeps its size."""

    def __init__(self, function: Callable[..., Tensor], out: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function, self.out = function, out

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class Buffers(nn.Module):
    """A scale per channel that is saved, and a filter per channel that is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, width, 1, 1) + 0.5)
        self.register_buffer("kernel", torch.rand(width, 1, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x * self.scale, self.kernel, padding=1, groups=x.shape[1])


class Standardised(nn.Conv2d):
    """A convolution whose filters are standardised."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, padding=1)


class Centred(nn.Module):
    """Subtracts the mean over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def conv(width: int, out: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, padding=kernel // 2, **options)


def plain(rng: random.Random, width: int) -> Piece:
    out = rng.choice([6, 8, 10, 12])
    norm = rng.choice([nn.Identity, nn.BatchNorm2d, torchvision.ops.FrozenBatchNorm2d])
    act = rng.choice([nn.PReLU, nn.SiLU, lambda: nn.PReLU(out)])
    layers = (conv(width, out), nn.Identity() if norm is nn.Identity else norm(out), act())
    return Piece(lambda x, c, n, a: a(n(c(x))), out, *layers)


def residual(rng: random.Random, width: int) -> Piece:
    inner = piece(rng, width, depth=1)
    return Piece(lambda x, f, c: x + c(f(x)), width, inner, conv(inner.out, width, 1))


def concat(rng: random.Random, width: int) -> Piece:
    left, right = piece(rng, width, depth=1), piece(rng, width, depth=1)
    return Piece(lambda x, f, g: torch.cat([f(x), g(x)], 1), left.out + right.out, left, right)


def repeats(rng: random.Random, width: int) -> Piece:
    function = rng.choice(
        [
            lambda x: torch.cat([x, x], 1),
            lambda x: torch.cat([functional.relu(x), functional.relu(-x)], 1),
            lambda x: torch.cat([functional.avg_pool2d(x, 3, 1, 1), functional.max_pool2d(x, 3, 1, 1)], 1),
            lambda x: x.repeat(1, 2, 1, 1),
            lambda x: x.repeat_interleave(2, 1),
        ]
    )
    return Piece(function, 2 * width)


def depthwise(rng: random.Random, width: int) -> Piece:
    multiplier = rng.choice([1, 2])
    return Piece(lambda x, c: functional.relu(c(x)), multiplier * width, conv(width, multiplier * width, groups=width))


def moves(rng: random.Random, width: int) -> Piece:
    order = torch.randperm(width, generator=torch.Generator().manual_seed(rng.randrange(100)))
    function = rng.choice(
        [
            lambda x: functional.channel_shuffle(x, 2),
            lambda x: x.flip(1),
            lambda x: x.roll(1, 1),
            lambda x: x[:, order],
            lambda x: x.sort(dim=1).values,
            lambda x: x.view(x.shape[0], width, -1).view(x.shape[0], width, *x.shape[2:]),
            lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, x.shape[2:]),
            lambda x: x.softmax(1) * x,
            lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
            lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).softmax(1).flatten(1, 2),
        ]
    )
    return Piece(function, width)


def split(rng: random.Random, width: int) -> Piece:
    half = width // 2
    first = rng.choice([lambda x: x.chunk(2, 1), lambda x: x.split(half, 1), lambda x: (x[:, :half], x[:, half:])])

    def function(x: Tensor, c: nn.Module) -> Tensor:
        left, right = first(x)
        return torch.cat([left, right, c(right)], 1)

    return Piece(function, width + half, conv(half, half))


class Written(nn.Module):
    """Parts an image at widths that are written in attributes; the parts that remain go around the convolution."""

    def __init__(self, width: int, first: int, kind: str) -> None:
        super().__init__()
        self.first, self.parts, self.width, self.kind = first, [first, width - first], width, kind
        self.inner = conv(width // 2 if kind == "halves" else first, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "list":
            left, right = x.split(self.parts, 1)
        elif self.kind == "slices":
            left, right = x[:, : self.first], x[:, self.first :]
        else:
            left, right = x.split(self.width // 2, 1)
        return torch.cat([functional.relu(self.inner(left)), right, x.reshape(-1, self.width, *x.shape[2:])], 1)


def written(rng: random.Random, width: int) -> Piece:
    kind, first = rng.choice(["list", "slices", "halves"]), rng.choice([3, width // 2])
    rest = width // 2 if kind == "halves" else width - first
    return Piece(lambda x, n: n(x), 6 + rest + width, Written(width, first, kind))


def partial(rng: random.Random, width: int) -> Piece:
    def function(x: Tensor, c: nn.Module) -> Tensor:
        count = x.shape[1] // 2
        return torch.cat([c(x[:, :count]), x[:, count:]], 1)

    return Piece(function, width, conv(width // 2, width // 2))


def gate(rng: random.Random, width: int) -> Piece:
    mean = rng.choice([lambda x: x.mean((2, 3), keepdim=True), lambda x: functional.adaptive_avg_pool2d(x, 1)])
    inner = rng.choice([2, 4])
    layers = (conv(width, inner, 1), conv(inner, rng.choice([1, width]), 1))
    return Piece(lambda x, d, u: x * torch.sigmoid(u(functional.relu(d(mean(x))))), width, *layers)


def channel_norm(rng: random.Random, width: int) -> Piece:
    kind = rng.choice(["group", "layer", "rms", "bare", "positions", "centred"])
    if kind == "centred":
        return Piece(lambda x, n: n(x), width, Centred())
    if kind == "group":
        return Piece(lambda x, n: n(x), width, nn.GroupNorm(2, width))
    if kind == "positions":
        return Piece(lambda x, n: n(x), width, nn.LayerNorm(IMAGE[2]))
    norm = {"layer": nn.LayerNorm(width), "rms": nn.RMSNorm(width)}.get(
        kind, nn.LayerNorm(width, elementwise_affine=False)
    )
    return Piece(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), width, norm)


def own_norm(rng: random.Random, width: int) -> Piece:
    norm = rng.choice(
        [
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.InstanceNorm2d(width, affine=True),
            Buffers(width),
            nn.Hardswish(),
        ]
    )
    return Piece(lambda x, n: n(x), width, norm)


class Strongest(nn.Module):
    """Weighs every place by the largest of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.max(1, keepdim=True).values)


def beside(rng: random.Random, width: int) -> Piece:
    """Channels beside some that no layer writes."""
    before, after = rng.choice([(0, 2), (3, 0), (1, 1)])
    function = rng.choice(
        [
            lambda x: torch.cat([x, torch.linspace(-1, 1, IMAGE[2]).expand(len(x), before + after, *x.shape[2:])], 1),
            lambda x: functional.pad(x, (0, 0, 0, 0, before, after)),
            lambda x: functional.pad(x, (1, 1, 0, 0, before, after))[..., 1:-1],
        ]
    )
    return Piece(function, width + before + after)


def weighed(rng: random.Random, width: int) -> Piece:
    """Channels that are weighed, read at places, mixed over positions, or filtered by two kernels each."""
    kind = rng.choice(["half", "strongest", "places", "positions", "kernels"])
    if kind == "half":
        return Piece(lambda x, c: functional.glu(c(x), 1), 10, conv(width, 20))
    if kind == "strongest":
        return Piece(lambda x, n: n(x), width, Strongest())
    if kind == "places":
        read = lambda x, c: functional.grid_sample(x, c(x).permute(0, 2, 3, 1), align_corners=False)  # noqa: E731
        return Piece(read, width, conv(width, 2))
    if kind == "positions":
        mixed = lambda x, m: x + m(x.flatten(2)).reshape(x.shape)  # noqa: E731
        return Piece(mixed, width, nn.Linear(IMAGE[1] * IMAGE[2], IMAGE[1] * IMAGE[2]))
    kernels = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(rng.randrange(100)))

    def filtered(x: Tensor) -> Tensor:
        count = x.shape[1]
        return functional.conv2d(x, kernels.repeat(count, 1, 1, 1), padding=1, groups=count)

    return Piece(filtered, 2 * width)


class Own(nn.Module):
    """A convolution whose weight and bias are parameters that a function takes, transposed or not."""

    def __init__(self, width: int, out: int, transposed: bool) -> None:
        super().__init__()
        shape = (width, out) if transposed else (out, width)
        self.kernel, self.shift = nn.Parameter(torch.randn(*shape, 3, 3) / 8), nn.Parameter(torch.randn(out))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        convolve = functional.conv_transpose2d if self.transposed else functional.conv2d
        return convolve(x, self.kernel, self.shift, padding=1)


def transposed(rng: random.Random, width: int) -> Piece:
    kind, out = rng.choice(["plain", "strided", "depthwise", "own", "own transposed"]), rng.choice([6, 8, 10])
    if kind == "plain":
        return Piece(lambda x, c: functional.relu(c(x)), out, nn.ConvTranspose2d(width, out, 3, padding=1))
    if kind == "strided":
        up = nn.ConvTranspose2d(width, out, 2, stride=2, bias=False)
        return Piece(lambda x, c, n: n(c(functional.max_pool2d(x, 2))), out, up, nn.BatchNorm2d(out))
    if kind == "depthwise":
        return Piece(lambda x, c: c(x), width, nn.ConvTranspose2d(width, width, 3, padding=1, groups=width))
    return Piece(lambda x, c: c(x), out, Own(width, out, kind == "own transposed"))


def special(rng: random.Random, width: int) -> Piece:
    kind = rng.choice(["standardised", "grouped", "attention", "product"])
    if kind == "standardised":
        return Piece(lambda x, c: c(x), 6, Standardised(width, 6, 3))
    if kind == "grouped":
        return Piece(lambda x, c: c(x), 12, conv(width, 12, groups=2))
    if kind == "attention":

        def attend(x: Tensor, m: nn.Module) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return m(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)

        return Piece(attend, width, nn.MultiheadAttention(width, 2, batch_first=True))

    def product(x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return x + (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)).reshape(x.shape)

    return Piece(product, width)


PIECES = (
    plain,
    residual,
    concat,
    repeats,
    depthwise,
    moves,
    split,
    written,
    partial,
    gate,
    channel_norm,
    own_norm,
    transposed,
    beside,
    weighed,
    special,
)


def piece(rng: random.Random, width: int, depth: int = 0) -> Piece:
    """Return a random piece for images of `width` channels; pieces inside a piece are small."""
    small = [kind for kind in PIECES if not depth or kind not in (residual, concat)]
    return rng.choice(small)(rng, width)


class RandomNet(nn.Module):
    """A stem, some pieces with convolutions between them, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        width = rng.choice([8, 12])
        self.stem = nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        body: list[nn.Module] = []
        for _ in range(rng.randint(1, 4)):
            body.append(piece(rng, width))
            out = rng.choice([8, 10, 12])
            body.append(conv(body[-1].out, out, 1))
            width = out
        self.body = nn.Sequential(*body)
        self.head = rng.choice(["mean", "flatten", "both"])
        positions = {"mean": 1, "flatten": 4, "both": 5}[self.head]
        self.fc = nn.Sequential(nn.Linear(width * positions, 9), nn.ReLU(), nn.Linear(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        mean, maps = x.mean((2, 3)), functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.fc({"mean": mean, "flatten": maps}.get(self.head, torch.cat([mean, maps], 1)))
