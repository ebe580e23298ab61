"""Train the narrow network from random weights: what a method that inherits weights has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pruning.base import Context, Goal, PruningError, Snapshot
from pruning.methods.common_steps import wanted_widths
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from spaces.space import SearchSpace
from spaces.widths import Widths
from spaces.zoo import models as zoo


@dataclass(frozen=True)
class FromScratch:
    """Train a network of these widths from random weights, for as many epochs as a trial of any other method.

    Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270 (ICLR 2019), find that it often reaches what
    pruning and fine-tuning reach when it may train for as long as the dense network did. Here it has a trial's epochs
    only: raise them to those of the dense net for the paper's comparison.

    The weights are what each module's own `reset_parameters` draws at its narrow size, from the trial's seed.
    Parameters of modules without one are those of a newly built network (`SearchSpace.spec`), cut to its first
    channels. From budgets alone it takes uniform widths, since nothing of the dense net may tell the layers apart.
    """

    learning_rate_scale: float = setting(
        1.0, low=0.25, high=4.0, log=True, help="peak learning rate, relative to that of the dense network's training"
    )

    name: ClassVar[str] = "scratch"
    paper: ClassVar[str] = "Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270"
    needs: ClassVar[str] = "labelled training images, and epochs to train in"
    pausable: ClassVar[bool] = False  # its rate is that of the dense net, over one schedule
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a rate that trains nothing."""
        if not 0 < self.learning_rate_scale < float("inf"):
            raise PruningError(f"setting learning_rate_scale={self.learning_rate_scale} of scratch must be above 0")

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Any:
        """Need nothing."""
        return None

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the net after every epoch; the untrained one only where there are no epochs.

        Raises:
            BudgetError: the smallest network of the space does not meet a budget.
            PruningError: parameters that nothing can draw anew.
        """
        widths = wanted_widths(space, goal)
        narrow = random_net(net, space, widths, context.seed).to(context.device)
        peak = self.learning_rate_scale * context.dense_learning_rate
        note = {"learning_rate": peak}
        if not context.epochs:
            yield Snapshot(narrow.eval(), widths, 0, note)
        for epoch in context.fit(narrow, context.epochs, peak=peak):
            yield Snapshot(narrow, widths, epoch, note)


def random_net(net: nn.Module, space: SearchSpace, widths: Widths, seed: int) -> nn.Module:
    """Return a network of these widths with weights that owe nothing to those of `net`, on the processor.

    Raises:
        PruningError: parameters of a module without `reset_parameters`, and no spec to build the network again from.
    """
    level = {group.name: torch.zeros(group.width) for group in space.variable}  # of equals, the first are kept
    first = select_channels(space, level, widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = net if space.spec is None else zoo.build(space.spec)
        if space.spec is None:
            _check_drawable(net)
        narrow = slice_channels(wide, space, first).cpu()
        for module in reversed(list(narrow.modules())):  # what contains others has the last word on them
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return narrow


def _check_drawable(net: nn.Module) -> None:
    for name, _ in net.named_parameters():
        owner = net.get_submodule(name.rpartition(".")[0])
        if not callable(getattr(owner, "reset_parameters", None)):
            raise PruningError(
                f"{type(owner).__name__}, which holds the parameter {name!r}, has no method reset_parameters to draw "
                "it anew; give it one, or name the network by a factory, package.module:function"
            )
