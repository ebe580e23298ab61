"""Kernel Sparsity and Entropy. Li, Lin, Zhang, Liu, Doermann, Wu, Huang & Ji, CVPR 2019, arXiv 1812.04368.

How many distinct 2-D kernels read an input channel is set by an indicator of its kernels alone; the kernels of a
channel are clustered, the centroids trained on, and maps are convolved once per centroid and then only added.

Where this differs from the authors' code: the entropy is over the kernels of one input channel, as the paper defines
it; the indicator is not stretched over [0, 1] a second time, because only so do the published savings come out;
k-means is seeded and runs for many channels at once; the bias of a layer is kept; layers with under 6 kernels, with
equal kernels, zero kernels or one channel work. Ours, not the paper's: budgets, met by one multiplier on all
indicators and filled up channel by channel; the shift, raised where the budget asks for it; at least one channel of
every layer is read; channels that no layer reads any more are cut from the layers that write them, as far as widths
stay legal. Linear layers, depthwise ones, the layers that see the image and the classifier stay as they are.

fvcore does not count the additions, and a map per centroid has to be written and read: a net with fewer FLOPs need
not be faster. Its latency is measured, and reported beside the FLOPs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.base import Context, Goal, PruningError, Snapshot
from pruning.methods.common_steps import finetune
from pruning.methods.kse.kernel_consumers import Reader, find_readers
from pruning.methods.kse.kernel_indicator import Levels, channel_kernels, entropy, indicator, sparsity
from pruning.methods.kse.kernel_levels import KernelSpace, Outcome
from pruning.methods.kse.kernel_sharing import Clustering, SharedKernelConv2d, share_kernels
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace

# Multiplier under which the shift is raised. Too small a multiplier leaves most channels unread, too large a shift
# leaves the rest kernels that are all alike; on cluttered_digits, ResNet-20 did best in between.
GENTLEST = 0.5
GENTLE_RAISES = 2  # of the shift for that alone
LARGEST_SHIFT = 16  # at which one kernel is left of 65,536


@dataclass(frozen=True)
class Prepared:
    """What all trials share: the convolutions, and sparsity and entropy of their input channels."""

    neighbours: int
    readers: tuple[Reader, ...]
    parts: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class KernelSparsityEntropy:
    """Let the outputs of a convolution share a few kernels per input channel, within budgets; no widths are taken.

    With no budget on FLOPs or parameters the levels are those of the paper, without a multiplier.
    """

    levels: int = setting(4, low=2, high=8, help="levels of a channel, from not read to all its kernels (G)")
    shift: int = setting(
        0, low=0, high=3, help="powers of 2 by which the levels between keep fewer kernels (T); raised if need be"
    )
    alpha: float = setting(1.0, low=0.0, high=10.0, searched=False, help="weight of entropy against sparsity")
    neighbours: int = setting(5, low=1, high=50, searched=False, help="nearest kernels that the entropy looks at")
    second_minmax: bool = setting(
        False, choices=(True, False), searched=False, help="stretch the indicator again, as the released code does"
    )
    restarts: int = setting(4, low=1, high=50, searched=False, help="starts of k-means, the best of which is kept")
    iterations: int = setting(30, low=1, high=1000, searched=False, help="of each start of k-means, at most")

    name: ClassVar[str] = "kse"
    paper: ClassVar[str] = "Li et al., Kernel Sparsity and Entropy, arXiv 1812.04368"
    needs: ClassVar[str] = "the weights alone; epochs afterwards are fine-tuning"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        rules = (
            ("levels", self.levels >= 1, "at least 1"),
            ("shift", 0 <= self.shift <= LARGEST_SHIFT, f"in [0, {LARGEST_SHIFT}]"),
            ("alpha", 0 <= self.alpha < float("inf"), "at least 0"),
            ("neighbours", self.neighbours >= 1, "at least 1"),
            ("restarts", self.restarts >= 1, "at least 1"),
            ("iterations", self.iterations >= 1, "at least 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise PruningError(f"setting {name}={getattr(self, name)!r} of kse must be {rule}")

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Prepared:
        """Find the convolutions and judge their kernels; no image is looked at.

        Raises:
            PruningError: there is none whose kernels could be shared.
        """
        readers = find_readers(net, space)
        if not readers:
            raise PruningError("this net has no convolution whose kernels kse could share; take another method")
        parts = {}
        for each in readers:
            kernels = channel_kernels(net.get_parameter(f"{each.name}.weight"), each.groups)
            parts[each.name] = sparsity(kernels).cpu(), entropy(kernels, self.neighbours)
        return Prepared(self.neighbours, readers, parts)

    def wide_epochs(self, epochs: int) -> int:
        """Return all of them: what fvcore does not count of shared kernels takes the time that it saves."""
        return epochs

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the net with shared kernels before training and after every epoch.

        Raises:
            PruningError: widths are given; nothing can be shared.
            BudgetError: no levels meet the budgets.
        """
        if goal.widths is not None:
            raise PruningError("kse shares kernels within budgets and cannot be given widths; give budgets alone")
        given = context.statistics
        fits = isinstance(given, Prepared) and given.neighbours == self.neighbours
        prepared: Prepared = given if fits else self.prepare(net, space, context)
        kernel_space = KernelSpace(net, space, prepared.readers, self.indicators(prepared))
        rule, outcome, multiplier = self.chosen(kernel_space, [each.resolve(space.dense_cost) for each in goal.budgets])
        narrow = self.built(net, kernel_space, outcome, context.seed)
        note = self._note(narrow, outcome, rule) | {"multiplier": multiplier}
        note["flops_ratio"] = outcome.cost.flops / space.dense_cost.flops
        for snapshot in finetune(narrow, outcome.widths, context, note):
            if snapshot.epoch >= context.epochs:
                note["latency_ratio"] = context.latency_ratio(narrow, net)
            yield dataclasses.replace(snapshot, cost=outcome.cost, note=dict(note))

    def indicators(self, prepared: Prepared) -> Mapping[str, NDArray[np.float64]]:
        """Return convolution -> how much each of its input channels matters, in [0, 1]."""
        return {
            name: indicator(mass, spread, self.alpha, self.second_minmax)
            for name, (mass, spread) in prepared.parts.items()
        }

    def chosen(self, kernel_space: KernelSpace, budgets: Sequence[Budget]) -> tuple[Levels, Outcome, float]:
        """Return the rule of the levels, what it leads to within absolute budgets, and the multiplier.

        The shift is raised while the budgets cannot be met, and once or twice more while they need a
        multiplier under `GENTLEST`.

        Raises:
            BudgetError: no levels meet the budgets; the message gives the smallest cost.
        """
        budgets = [each for each in budgets if each.quantity != "latency"]
        rule = Levels(self.levels, self.shift)
        if not budgets:
            return rule, kernel_space.outcome(rule, kernel_space.levels(rule, 1.0)), 1.0
        met = 0
        while True:
            try:
                outcome, multiplier = kernel_space.fit(rule, budgets)
                met += 1
                if multiplier >= GENTLEST or met > GENTLE_RAISES or rule.shift == LARGEST_SHIFT:
                    return rule, outcome, multiplier
            except BudgetError:
                if rule.shift == LARGEST_SHIFT:
                    raise
            rule = Levels(rule.count, rule.shift + 1)

    def built(self, net: nn.Module, kernel_space: KernelSpace, outcome: Outcome, seed: int) -> nn.Module:
        """Return a new net with so many kernels; `net` is left as it is."""
        space = kernel_space.space
        selection = select_channels(space, kernel_space.scores(outcome.levels), outcome.widths)
        narrow = slice_channels(net, space, selection)
        clustering = Clustering(self.restarts, self.iterations, seed)
        for reader, kept in kernel_space.by_reader(outcome, selection):
            conv = narrow.get_submodule(reader.name)
            if isinstance(conv, nn.Conv2d) and (kept < conv.out_channels // conv.groups).any():
                narrow.set_submodule(reader.name, share_kernels(conv, kept, clustering))
        return narrow

    def _note(self, narrow: nn.Module, outcome: Outcome, rule: Levels) -> dict[str, float | int | str | bool]:
        shared = [each for each in narrow.modules() if isinstance(each, SharedKernelConv2d)]
        stored = sum(each.numel() * each.element_size() for each in narrow.state_dict().values())
        return {
            "levels": rule.count,
            "shift": rule.shift,
            "channels_unread": float((outcome.levels == 0).mean()),
            "channels_with_all_kernels": float((outcome.levels == rule.count).mean()),
            "index_bits": sum(each.index_bits for each in shared),
            "size_mb": stored / 1e6,
        }
