"""A convolution whose input channels keep a few 2-D kernels each, shared by the outputs. Li et al., arXiv 1812.04368.

Input channel c keeps q_c kernels, and an index says which of them each output uses; channels without kernels are not
read. In training, the weight is gathered from the kernels, so a kernel's gradient is the sum of the gradients of its
uses. For evaluation there are several forms of the same function:

- maps: every channel is convolved once with each of its kernels, and the outputs only add these maps. Channels that
  keep all their kernels are convolved as usual. This is the form of the paper, whose multiplications are counted.
- dense: a convolution with repeated kernels over the channels that are read.
- padded: the same over all channels, with zero kernels where a channel is not read.
- separable: see `kernel_forms.separable`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from pruning.methods.kse.kernel_clustering import cluster_kernels
from pruning.methods.kse.kernel_forms import (
    ReadChannels,
    SharedChannels,
    is_cheaper_separable,
    plain_conv,
    separable,
)
from pruning.methods.kse.kernel_indicator import channel_kernels
from pruning.quantization.packing import bits_for, pack, packed_bytes, unpack

MAPS, DENSE, PADDED, SEPARABLE = FORMS = ("maps", "dense", "padded", "separable")
CACHED_ELEMENTS = 2**20  # numbers in the maps that a CPU holds at a time: more are slow to allocate and leave its cache


@dataclass(frozen=True)
class KMeansSettings:
    """How kernels are clustered: restarts of k-means, the largest number of iterations of each, and the seed."""

    restarts: int = 4
    iterations: int = 30
    seed: int = 0


@dataclass(frozen=True)
class _Level:
    """Input channels that keep equally many kernels.

    Attributes:
        kernels: that each of the channels keeps.
        first, last: their rows of the codebook are first, ..., last - 1.
    """

    kernels: int
    channels: tuple[int, ...]
    first: int

    @property
    def last(self) -> int:
        return self.first + self.kernels * len(self.channels)


class SharedKernelConv2d(nn.Module):
    """A 2-D convolution with few kernels per input channel; all kernels and indices are 0 until they are set.

    Attributes:
        codebook: the kernels, shape (sum of the kernels kept, kh * kw), ordered by level and then by channel.
        packed: the indices as bytes; a channel that keeps one kernel or all of them needs none. Call `follow_tensors`
            after a change.
        plain_kernels: kernels of an input channel in the plain convolution.
        form, counting: see `pruning.base.LayerWithForms`. With gradients it computes as in training.

    Args:
        plain: a convolution with zero padding; gives the kernel size, stride, padding, dilation, groups and bias.
        channels: number of (input, output) channels.
        levels: pairs (kernels kept, input channels that keep so many). A channel stands in at most one pair; channels
            in none are not read.
    """

    kind: ClassVar[str] = "shared_kernels"

    def __init__(
        self, plain: nn.Conv2d, channels: tuple[int, int], levels: Sequence[tuple[int, Sequence[int]]]
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = channels
        self.kernel_size, self.stride, self.padding = plain.kernel_size, plain.stride, plain.padding
        self.dilation, self.groups = plain.dilation, plain.groups
        self.plain_kernels = self.out_channels // self.groups
        self.form: str | None = None
        self.counting = False
        self._frozen: list[tuple[object, nn.Module]] = []  # module of the form, and the tensors that it was made of
        self.levels: tuple[_Level, ...] = tuple(_placed(levels))
        size = self.kernel_size[0] * self.kernel_size[1]
        options: dict[str, Any] = {"dtype": plain.weight.dtype}
        self.codebook = nn.Parameter(torch.zeros(self.levels[-1].last, size, **options))
        self.bias = nn.Parameter(torch.zeros(self.out_channels, **options)) if plain.bias is not None else None
        stored = sum(packed_bytes(len(level.channels) * self.plain_kernels, self._bits(level)) for level in self.levels)
        self.register_buffer("packed", torch.zeros(stored, dtype=torch.uint8))
        self._unpack()

    packed: Tensor
    _inputs: Tensor  # channels that training reads, one conv group after the other
    _rows: Tensor  # codebook row of each use, or len(codebook) for none: shape (out_channels, channels read of a group)
    _by_level: Tensor  # channels that evaluation reads
    _maps: Tensor  # maps that evaluation adds up, one output after the other
    _offsets: Tensor  # where the maps of each output begin in _maps

    def _bits(self, level: _Level) -> int:
        return 0 if level.kernels == self.plain_kernels else bits_for(level.kernels)

    def _is_plain(self, level: _Level) -> bool:
        """Whether an ordinary convolution computes these channels."""
        return self.groups == 1 and level.kernels == self.plain_kernels

    def structure(self) -> Mapping[str, Any]:
        """Return the numbers of channels, the levels and a chosen form; the plain layer gives the rest."""
        levels = [[level.kernels, list(level.channels)] for level in self.levels]
        structure = {"channels": [self.in_channels, self.out_channels], "levels": levels}
        return structure if self.form is None else structure | {"form": self.form}

    @classmethod
    def rebuild(cls, plain: nn.Module, structure: Mapping[str, Any]) -> "SharedKernelConv2d":
        """Return a layer of this structure with the geometry of `plain`."""
        if not isinstance(plain, nn.Conv2d):
            raise TypeError(f"{type(plain).__name__} is in the place of a convolution")
        inputs, outputs = structure["channels"]
        layer = cls(plain, (int(inputs), int(outputs)), [(int(q), list(where)) for q, where in structure["levels"]])
        if (form := structure.get("form")) is not None and form not in layer.forms():
            raise ValueError(f"form {form!r} is none of {', '.join(layer.forms())}")
        layer.form = form
        return layer

    def follow_tensors(self) -> None:
        """Update the tensors derived from `packed`, after `packed` was replaced."""
        self._unpack()

    @override
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._unpack()

    def set_indices(self, indices: Sequence[Tensor]) -> None:
        """Store which kernel of an input channel each output uses.

        Args:
            indices: one tensor per level, shape (channels of the level, out_channels / groups).
        """
        pairs = [(index, self._bits(level)) for level, index in zip(self.levels, indices, strict=True)]
        parts = [pack(index.to(self.packed.device), bits) for index, bits in pairs if bits]
        self.packed = torch.cat([self.packed[:0], *parts])
        self._unpack()

    def indices(self) -> list[NDArray[np.int64]]:
        """Return the indices in the form that `set_indices` takes."""
        data, found, begin = self.packed.cpu(), [], 0
        for level in self.levels:
            count, bits = len(level.channels) * self.plain_kernels, self._bits(level)
            end = begin + packed_bytes(count, bits)
            index = unpack(data[begin:end], bits, count).reshape(-1, self.plain_kernels).long().numpy()
            found.append(index if level.kernels < self.plain_kernels else index + np.arange(self.plain_kernels))
            begin = end
        return found

    @property
    def index_bits(self) -> int:
        """The number of bits that the indices take."""
        return sum(len(level.channels) * self.plain_kernels * self._bits(level) for level in self.levels)

    def _unpack(self) -> None:
        """Build the index tensors that training and evaluation read."""
        rows: dict[int, NDArray[np.int64]] = {}  # channel -> codebook row of each use
        maps: dict[int, NDArray[np.int64]] = {}  # channel -> map that each use adds; without plain levels
        skipped = sum(level.last - level.first for level in self.levels if self._is_plain(level))
        for level, index in zip(self.levels, self.indices(), strict=True):
            first = level.first + np.arange(len(level.channels))[:, None] * level.kernels
            rows |= dict(zip(level.channels, index + first, strict=True))
            if not self._is_plain(level):
                maps |= dict(zip(level.channels, index + first - skipped, strict=True))
        size = self.in_channels // self.groups
        read = [[c for c in sorted(rows) if c // size == group] for group in range(self.groups)]
        longest = max(len(channels) for channels in read)
        unused = np.full(self.plain_kernels, self.levels[-1].last)
        padded = [channels + [i * size] * (longest - len(channels)) for i, channels in enumerate(read)]
        table = [[rows[c] for c in channels] + [unused] * (longest - len(channels)) for channels in read]
        added = [[maps[c] for c in channels if c in maps] for channels in read]
        bags = [np.stack(uses, axis=1) if uses else np.zeros((self.plain_kernels, 0), dtype=np.int64) for uses in added]
        counts = np.repeat([bag.shape[1] for bag in bags], self.plain_kernels)
        self._keep("_inputs", np.concatenate(padded).astype(np.int64))
        self._keep("_rows", np.concatenate([np.stack(uses, axis=1) for uses in table]))
        self._keep("_by_level", np.concatenate([level.channels for level in self.levels]))
        self._keep("_maps", np.concatenate([bag.ravel() for bag in bags]))
        self._keep("_offsets", np.cumsum(counts) - counts)
        self._frozen = []
        self._all_read = padded == [list(range(self.in_channels))]
        self._ragged = min(len(channels) for channels in read) < longest

    def _keep(self, name: str, values: NDArray[np.int64]) -> None:
        self.register_buffer(name, torch.from_numpy(values).to(self.packed.device), persistent=False)

    def dense_weight(self) -> Tensor:
        """Return the weight of the channels that are read, shape (out_channels, channels read of a group, kh, kw)."""
        book = functional.pad(self.codebook, (0, 0, 0, 1)) if self._ragged else self.codebook
        return functional.embedding(self._rows, book).reshape(self.out_channels, -1, *self.kernel_size)

    def forms(self) -> Sequence[str]:
        """Return the forms of this layer; the first is seldom slower than the dense network's layer."""
        area = self.codebook.shape[1]
        cheaper = [is_cheaper_separable(level.kernels, self.out_channels, area) for level in self.levels]
        separable_too = self.groups == 1 and any(cheaper)
        return (DENSE, *([] if self._all_read else [PADDED]), *([SEPARABLE] if separable_too else []), MAPS)

    def inference_module(self, form: str) -> nn.Module:
        """Return a module that computes what this layer computes in evaluation, with its weights of now."""
        if form == MAPS:
            layer = copy.deepcopy(self)
            layer.form = MAPS
            return layer
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if form == SEPARABLE:
            return separable(self._shared_channels(), self.bias, geometry)
        weight = self.dense_weight().detach()
        if form == PADDED:
            size = self.in_channels // self.groups
            place = (self._inputs % size).view(self.groups, 1, -1).expand(-1, self.plain_kernels, -1)
            place = place.reshape(self.out_channels, -1, 1, 1).expand_as(weight)
            padded = weight.new_zeros(self.out_channels, size, *self.kernel_size).scatter_add_(1, place, weight)
            return plain_conv(padded, self.bias, self.groups, geometry)
        conv = plain_conv(weight, self.bias, self.groups, geometry)
        return conv if self._all_read else ReadChannels(self._inputs.clone(), conv)

    def _shared_channels(self) -> list[SharedChannels]:
        device, found = self.codebook.device, []
        for level, index in zip(self.levels, self.indices(), strict=True):
            channels = torch.tensor(level.channels, device=device)
            kernels = self.codebook[level.first : level.last].detach()
            kernels = kernels.reshape(len(channels), level.kernels, *self.kernel_size)
            found.append(SharedChannels(channels, kernels, torch.from_numpy(index).to(device)))
        return found

    def _frozen_module(self) -> nn.Module:
        """Return the module of the form, made again after the kernels were changed or moved."""
        book = self.codebook
        made_of = (self.form, book.data_ptr(), book._version, book.dtype, book.device, id(self.bias))
        if not self._frozen or self._frozen[0][0] != made_of:
            self._frozen = [(made_of, self.inference_module(self.form or DENSE))]
        return self._frozen[0][1]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps of shape (B, in_channels, H, W)."""
        if not self.training and (self.counting or self.form == MAPS):
            if x.device.type != "cpu" or torch.compiler.is_compiling():
                return self._from_maps(x)
            at_once = max(1, CACHED_ELEMENTS // (len(self.codebook) * x.shape[2] * x.shape[3]))
            return self._from_maps(x) if len(x) <= at_once else torch.cat([*map(self._from_maps, x.split(at_once))])
        live = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if live or self.codebook.is_inference():  # a tensor of inference mode does not tell whether it was changed
            read = x if self._all_read else x.index_select(1, self._inputs)
            return self._convolve(read, self.dense_weight(), self.bias, self.groups)
        return self._frozen_module()(x)  # type: ignore[no-any-return]

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def _from_maps(self, x: Tensor) -> Tensor:
        """Convolve every channel once with each of its kernels, and add up the maps of each output."""
        maps, sums, bias, begin = [], [], self.bias, 0
        for level in self.levels:
            count = len(level.channels)
            read = x.index_select(1, self._by_level[begin : begin + count])
            kernels = self.codebook[level.first : level.last].unflatten(1, self.kernel_size)
            if self._is_plain(level):
                weight = kernels.unflatten(0, (count, self.plain_kernels)).transpose(0, 1)
                sums.append(self._convolve(read, weight, bias, 1))
                bias = None
            else:
                maps.append(self._convolve(read, kernels.unsqueeze(1), None, count))
            begin += count
        if maps:
            added = self._added(maps[0] if len(maps) == 1 else torch.cat(maps, 1))
            sums.append(added if bias is None else added + bias[:, None, None])
        return sums[0] if len(sums) == 1 else sums[0] + sums[1]

    def _added(self, maps: Tensor) -> Tensor:
        """Return the sum of the maps of each output, shape (B, out_channels, H, W).

        Args:
            maps: shape (B, maps, H, W).
        """
        batch, number, height, width = maps.shape
        image = torch.arange(batch, device=maps.device).unsqueeze(1)
        uses, starts = len(self._maps), len(self._offsets)
        bags = (self._maps + image * number).reshape(batch * uses)
        offsets = (self._offsets + image * uses).reshape(batch * starts)
        flat = maps.reshape(batch * number, height * width)
        return functional.embedding_bag(bags, flat, offsets, mode="sum").reshape(batch, starts, height, width)

    @override
    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, kernels={len(self.codebook)}"


def _placed(levels: Sequence[tuple[int, Sequence[int]]]) -> Iterator[_Level]:
    first = 0
    for kernels, channels in levels:
        level = _Level(kernels, tuple(channels), first)
        first = level.last
        yield level


def share_kernels(conv: nn.Conv2d, kept: NDArray[np.int64], k_means: KMeansSettings) -> SharedKernelConv2d:
    """Return a layer in which every input channel keeps the given number of kernels: the centroids of its clusters.

    Args:
        conv: a convolution with zero padding; it is not changed.
        kept: number of kernels that each input channel keeps, shape (in_channels,), at most out_channels / groups;
            not all 0.
        k_means: settings of the clustering of kernels.
    """
    counts = sorted({int(count) for count in kept if count}, reverse=True)
    levels = [(count, np.flatnonzero(kept == count).tolist()) for count in counts]
    layer = SharedKernelConv2d(conv, (conv.in_channels, conv.out_channels), levels).to(conv.weight.device)
    generator = torch.Generator().manual_seed(k_means.seed)
    kernels = channel_kernels(conv.weight, conv.groups)
    books, indices = [], []
    for count, channels in levels:
        own = kernels[torch.tensor(channels, device=kernels.device)]
        if count == layer.plain_kernels:
            centroids, index = own, torch.zeros(own.shape[:2], dtype=torch.int64)
        else:
            centroids, index = cluster_kernels(
                own, count, generator, restarts=k_means.restarts, iterations=k_means.iterations
            )
        books.append(centroids.flatten(0, 1))
        indices.append(index)
    with torch.no_grad():
        layer.codebook.copy_(torch.cat(books))
        if layer.bias is not None and conv.bias is not None:
            layer.bias.copy_(conv.bias)
    layer.set_indices(indices)
    return layer.train(conv.training)
