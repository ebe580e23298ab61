"""Networks of half the widths, with ranks of their filters."""

import tiny_nets
import torch

from pruning.quantization.precision import filter_ranks
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.tracing.tracer import trace


def halved(net):
    """Return a net of half the widths, its space and widths, and ranks of its filters: those of their channels."""
    space = trace(net, torch.zeros(1, *tiny_nets.IMAGE))
    ranks = {group.name: torch.arange(group.width, dtype=torch.float64) for group in space.variable}
    halves = {group.name: max(group.lowest, group.width // 2) for group in space.variable}
    widths = {name: width - width % space.by_name[name].divisor for name, width in halves.items()}
    selection = select_channels(space, ranks, widths)
    narrow = slice_channels(net, space, selection)
    return narrow, space, widths, filter_ranks(narrow, space, selection, ranks)
