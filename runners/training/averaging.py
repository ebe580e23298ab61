"""Exponential moving average (EMA) of the weights of a network while it trains."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """The moving average of the weights and BatchNorm statistics of a network, beside the network.

    At step n the decay is the smaller of `decay` and (1 + n) / (10 + n), so that the average of a short training does
    not hold on to the weights before it (timm's `use_warmup`).

    Args:
        net: the network in training.
        decay: share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        def update(averaged: Tensors, current: Tensors, step: Tensor | int) -> None:
            if averaged[0].is_floating_point():
                get_ema_multi_avg_fn(min(decay, (1 + int(step)) / (10 + int(step))))(averaged, current, step)
            else:  # counters and indices have no mean
                for tensor, value in zip(averaged, current, strict=True):
                    tensor.copy_(value)

        self._net = net
        self._average = AveragedModel(net, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take in the weights after a step of the optimiser."""
        self._average.update_parameters(self._net)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of steps."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the average of another process."""
        self._average.load_state_dict(state)

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the network the averaged weights and keep its own; a second call gives them back."""
        for own, other in zip(_tensors(self._net), _tensors(self._average.module), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(net.parameters(), net.buffers())
