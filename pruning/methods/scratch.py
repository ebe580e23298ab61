"""Train the narrow network from random weights: the baseline of all methods that inherit the dense weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from pruning.base import Context, Goal, Method, PruningError, Rates, Snapshot
from pruning.methods.common_steps import wanted_widths
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from spaces.space import SearchSpace
from spaces.widths import Widths
from spaces.zoo import models as zoo


@dataclass(frozen=True)
class FromScratch(Method):
    """Train a network of these widths from random weights, for as many epochs as a trial of any other method.

    Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270 (ICLR 2019), find that such a network often
    reaches the accuracy of a pruned and fine-tuned one if it trains for as long as the dense network did. Here it
    trains for the epochs of a trial: raise them to those of the dense network for the paper's comparison.

    Every module draws its weights at its narrow size by its own `reset_parameters`, from the trial's seed. Modules
    without this method get the parameters of a newly built network (`SearchSpace.spec`), cut to its first channels.
    From budgets alone the method takes uniform widths, because it uses nothing of the dense network to tell layers
    apart.
    """

    learning_rate_scale: float = setting(
        1.0, low=0.25, high=4.0, log=True, help="peak learning rate, relative to that of the dense network's training"
    )

    name: ClassVar[str] = "scratch"
    paper: ClassVar[str] = "Liu et al., Rethinking the Value of Network Pruning, arXiv 1810.05270"
    needs: ClassVar[str] = "labelled training images, and epochs to train in"
    pausable: ClassVar[bool] = False  # its peak learning rate is that of the dense net, over one whole schedule
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 < self.learning_rate_scale < float("inf"):
            raise PruningError(f"setting learning_rate_scale={self.learning_rate_scale} of scratch must be above 0")

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the net after every epoch; if there are no epochs, yield the untrained net.

        Raises:
            BudgetError: the smallest network of the space does not meet a budget.
            PruningError: a module has parameters but cannot draw them anew.
        """
        widths = wanted_widths(space, goal)
        narrow = random_net(net, space, widths, context.seed).to(context.device)
        peak = self.learning_rate_scale * context.dense_learning_rate
        note = {"learning_rate": peak}
        if not context.epochs:
            yield Snapshot(narrow.eval(), widths, 0, note)
        for epoch in context.fit(narrow, context.epochs, rates=Rates(peak=peak)):
            yield Snapshot(narrow, widths, epoch, note)


def random_net(net: nn.Module, space: SearchSpace, widths: Widths, seed: int) -> nn.Module:
    """Return a network of these widths with random weights, independent of those of `net`, on the CPU.

    Raises:
        PruningError: a module with parameters has no `reset_parameters`, and the space has no spec to build from.
    """
    equal_scores = {group.name: torch.zeros(group.width) for group in space.variable}  # keep the first channels
    first = select_channels(space, equal_scores, widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = net if space.spec is None else zoo.build(space.spec)
        if space.spec is None:
            _check_drawable(net)
        narrow = slice_channels(wide, space, first).cpu()
        for module in reversed(list(narrow.modules())):  # children first: a module may overwrite their values
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
