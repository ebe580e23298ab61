"""Kernel Sparsity and Entropy. Li, Lin, Zhang, Liu, Doermann, Wu, Huang & Ji, CVPR 2019, arXiv 1812.04368.

An indicator of the kernels that read an input channel sets how many distinct 2-D kernels the channel keeps. The kernels
of a channel are clustered, and the centroids are trained on. In evaluation, a channel is convolved once per centroid,
and the outputs only add the resulting maps.

Differences from the authors' code:
- The entropy is over the kernels of one input channel, as the paper defines it.
- The indicator is not stretched over [0, 1] a second time, because only then the published savings come out.
- k-means is seeded and clusters many channels at once.
- The bias of a layer is kept.
- Layers with under 6 kernels, equal kernels, zero kernels or one channel work.

Additions of this project: one multiplier on all indicators meets the budgets, and their rest is filled channel by
channel; the shift rises where the budget asks for it; at least one channel of every layer is read; channels that no
layer reads any more are cut from the layers that write them, as far as widths stay legal. Linear and depthwise layers,
layers that read the image and the classifier are not changed.

The cost is that of the paper's form, of which fvcore counts the multiplications and not the additions between maps.
Where every map must be written and read that form is slow, so a layer runs in the fastest of several forms that compute
the same (`kernel_sharing`): most often a plain convolution whose kernels repeat, which multiplies more than is counted.
The note of a network has both, `flops_ratio` and the `plain_flops_ratio` of plain convolutions, and measured latency.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from pruning.allocation import usage
from pruning.base import Context, Goal, Method, PruningError, Snapshot
from pruning.inference import for_inference
from pruning.methods.common_steps import finetune
from pruning.methods.kse.kernel_indicator import LevelRule, channel_kernels, entropy, indicator, sparsity
from pruning.methods.kse.kernel_levels import KernelSpace, LevelAssignment
from pruning.methods.kse.kernel_sharing import KMeansSettings, SharedKernelConv2d, share_kernels
from pruning.methods.kse.shareable_convs import ShareableConv, find_shareable_convs
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import setting
from pruning.steps import counted
from spaces.budget import Budget
from spaces.counting import count_cost, peak_activations
from spaces.errors import BudgetError
from spaces.space import SearchSpace

# The shift rises while the multiplier is smaller than this, at most SHIFT_RAISES times. Too small a multiplier leaves
# most channels unread; too large a shift leaves kernels that are all alike. On cluttered_digits, ResNet-20 did best in
# between.
SMALLEST_MULTIPLIER = 0.5
SHIFT_RAISES = 2
LARGEST_SHIFT = 16  # leaves one kernel of 65,536


@dataclass(frozen=True)
class DenseKernels:
    """The kernels of the dense network, as all trials of a search share them.

    Attributes:
        neighbours: the setting that the entropies were computed with.
        convs: convolutions whose kernels may be shared.
        parts: name of a convolution -> sparsity and entropy of its input channels.
    """

    neighbours: int
    convs: tuple[ShareableConv, ...]
    parts: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class KernelSparsityEntropy(Method):
    """Let the outputs of a convolution share a few kernels per input channel, within budgets; widths cannot be given.

    Without a budget on FLOPs or parameters, or with `fitted=False`, G and T alone give the levels, as in the paper.
    Budgets are then limits that this network must be within.
    """

    levels: int = setting(4, low=2, high=8, help="levels of a channel, from not read to all its kernels (G)")
    shift: int = setting(
        0,
        low=0,
        high=3,
        help="powers of 2 by which the levels between keep fewer kernels (T); rises if the budget needs it",
    )
    alpha: float = setting(1.0, low=0.0, high=10.0, searched=False, help="weight of entropy against sparsity")
    neighbours: int = setting(5, low=1, high=50, searched=False, help="nearest kernels that the entropy looks at")
    fitted: bool = setting(
        True,
        choices=(True, False),
        searched=False,
        help="meet the budgets by one multiplier on all indicators; false: levels and shift decide alone, as published",
    )
    second_minmax: bool = setting(
        False,
        choices=(True, False),
        searched=False,
        help="stretch the indicator a second time, as the released code does",
    )
    restarts: int = setting(4, low=1, high=50, searched=False, help="restarts of k-means, the best of which is kept")
    iterations: int = setting(
        30, low=1, high=1000, searched=False, help="largest number of iterations per restart of k-means"
    )

    name: ClassVar[str] = "kse"
    paper: ClassVar[str] = "Li et al., Kernel Sparsity and Entropy, arXiv 1812.04368"
    needs: ClassVar[str] = "the weights alone; epochs afterwards are fine-tuning"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
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

    @override
    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> DenseKernels:
        """Find the convolutions whose kernels may be shared, and compute sparsity and entropy; no image is read.

        Raises:
            PruningError: there is no such convolution.
        """
        convs = find_shareable_convs(net, space)
        if not convs:
            raise PruningError("this net has no convolution whose kernels kse could share; take another method")
        parts = {}
        for conv in counted(convs):
            kernels = channel_kernels(net.get_parameter(f"{conv.name}.weight"), conv.groups)
            parts[conv.name] = sparsity(kernels), entropy(kernels, self.neighbours)
        return DenseKernels(self.neighbours, convs, parts)

    def wide_epochs(self, epochs: int) -> int:
        """Return all epochs: a training step with shared kernels takes as long as the dense network's."""
        return epochs

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield the net with shared kernels, before training and after every epoch.

        Raises:
            PruningError: widths are given, or no kernels can be shared.
            BudgetError: no levels meet the budgets.
        """
        if goal.widths is not None:
            raise PruningError("kse shares kernels within budgets and cannot be given widths; give budgets alone")
        shared = context.prepared
        usable = isinstance(shared, DenseKernels) and shared.neighbours == self.neighbours
        dense: DenseKernels = shared if usable else self.prepare(net, space, context)
        kernel_space = KernelSpace(net, space, dense.convs, self.indicators(dense))
        budgets = [budget.resolve(space.dense_cost) for budget in goal.budgets]
        rule, assignment, multiplier = self.chosen(kernel_space, budgets)
        narrow = self.built(net, kernel_space, assignment, context.seed)
        cost = dataclasses.replace(assignment.cost, activations=peak_activations(narrow, space.input_shape))
        note = self._note(narrow, assignment, rule) | {"multiplier": multiplier}
        note["flops_ratio"] = assignment.cost.flops / space.dense_cost.flops
        note["plain_flops_ratio"] = count_cost(for_inference(narrow), space.input_shape).flops / space.dense_cost.flops
        for snapshot in finetune(narrow, assignment.widths, context, note):
            if snapshot.epoch >= context.epochs:
                note["latency_ratio"] = context.latency_ratio(narrow, net)
            yield dataclasses.replace(snapshot, cost=cost, note=dict(note))

    def indicators(self, dense: DenseKernels) -> Mapping[str, NDArray[np.float64]]:
        """Return name of a convolution -> indicators of its input channels, in [0, 1], shape (in_channels,)."""
        return {
            name: indicator(mass, spread, self.alpha, self.second_minmax)
            for name, (mass, spread) in dense.parts.items()
        }

    def chosen(self, kernel_space: KernelSpace, budgets: Sequence[Budget]) -> tuple[LevelRule, LevelAssignment, float]:
        """Return a rule, its largest assignment within absolute budgets, and the multiplier of the indicators.

        The shift of the rule rises while the budgets cannot be met, and at most `SHIFT_RAISES` times more while they
        need a multiplier under `SMALLEST_MULTIPLIER`. Nothing is adjusted with `fitted=False`.

        Raises:
            BudgetError: no levels meet the budgets; the message gives the smallest cost.
        """
        # Activations and size follow from no levels: the finished network is held to such budgets.
        budgets = [budget for budget in budgets if budget.quantity in ("flops", "params")]
        rule = LevelRule(self.levels, self.shift)
        if not budgets or not self.fitted:
            return rule, self._published(kernel_space, rule, budgets), 1.0
        met = 0
        while True:
            try:
                assignment, multiplier = kernel_space.fit(rule, budgets)
                met += 1
                if multiplier >= SMALLEST_MULTIPLIER or met > SHIFT_RAISES or rule.shift == LARGEST_SHIFT:
                    return rule, assignment, multiplier
            except BudgetError:
                if rule.shift == LARGEST_SHIFT:
                    raise
            rule = LevelRule(rule.count, rule.shift + 1)

    def _published(self, kernel_space: KernelSpace, rule: LevelRule, budgets: Sequence[Budget]) -> LevelAssignment:
        assignment = kernel_space.assign(rule, kernel_space.levels(rule, 1.0))
        if usage(assignment.cost, budgets) > 1:
            cost = f"{assignment.cost.flops:,} flops and {assignment.cost.params:,} params"
            raise BudgetError(
                f"levels={self.levels} and shift={self.shift} alone give {cost}, over the budget of "
                f"{' and '.join(map(str, budgets))}; raise it, or leave kse.fitted at true"
            )
        return assignment

    def built(self, net: nn.Module, kernel_space: KernelSpace, assignment: LevelAssignment, seed: int) -> nn.Module:
        """Return a new net with the kernels of an assignment; `net` is not changed."""
        space = kernel_space.space
        selection = select_channels(space, kernel_space.scores(assignment.levels), assignment.widths)
        narrow = slice_channels(net, space, selection)
        k_means = KMeansSettings(self.restarts, self.iterations, seed)
        for conv, kept in kernel_space.kept_kernels(assignment, selection):
            plain = narrow.get_submodule(conv.name)
            if isinstance(plain, nn.Conv2d) and (kept < plain.out_channels // plain.groups).any():
                narrow.set_submodule(conv.name, share_kernels(plain, kept, k_means))
        return narrow

    def _note(
        self, narrow: nn.Module, assignment: LevelAssignment, rule: LevelRule
    ) -> dict[str, float | int | str | bool]:
        layers = [module for module in narrow.modules() if isinstance(module, SharedKernelConv2d)]
        stored = sum(tensor.numel() * tensor.element_size() for tensor in narrow.state_dict().values())
        return {
            "levels": rule.count,
            "shift": rule.shift,
            "channels_unread": float((assignment.levels == 0).mean()),
            "channels_with_all_kernels": float((assignment.levels == rule.count).mean()),
            "index_bits": sum(layer.index_bits for layer in layers),
            "size_mb": stored / 1e6,
        }
