"""Occurrences: where the channels of an axis stand that holds some of them several times.

A channel occurs several times where maps were flattened, where activations were concatenated with copies of themselves,
and behind depthwise layers with several filters per channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Occurrences:
    """The indices of an axis at which every channel occurs.

    Attributes:
        channels: the channels, in the order of their first index; shape (channels,).
        index: the n-th index of every channel; shape (channels, most). A channel that occurs less often than others
            begins again with its first index.
        counted: whether the entry of `index` is no such repetition; shape (channels, most).
    """

    channels: Tensor
    index: Tensor
    counted: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> "Occurrences":
        """Find the occurrences of every channel id; shape (length,), of which negative ones are no channels."""
        places: dict[int, list[int]] = {}
        for place, channel in enumerate(ids.tolist()):
            if channel >= 0:
                places.setdefault(channel, []).append(place)
        most = max((len(indices) for indices in places.values()), default=0)
        index = [[indices[n % len(indices)] for n in range(most)] for indices in places.values()]
        counted = [[n < len(indices) for n in range(most)] for indices in places.values()]
        shape = (len(places), most)
        return cls(
            torch.tensor(list(places), dtype=torch.int64),
            torch.tensor(index, dtype=torch.int64).reshape(shape),
            torch.tensor(counted, dtype=torch.bool).reshape(shape),
        )

    @property
    def in_order(self) -> bool:
        """Whether the occurrences of every channel follow one another, and cover the axis from its start on."""
        return bool((self.index.flatten() == torch.arange(self.index.numel())).all())

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the tensor with (channels, most) dimensions in the place of `dim`."""
        if not (self.in_order and self.index.numel() == tensor.shape[dim]):
            tensor = tensor.index_select(dim, self.index.flatten().to(tensor.device))
        return tensor.reshape(*tensor.shape[:dim], *self.index.shape, *tensor.shape[dim + 1 :])
