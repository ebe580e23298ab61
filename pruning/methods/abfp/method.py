"""Auto-balanced filter pruning. Ding et al., AAAI 2018.

From the paper: the factors of weak and strong filters, the balance of every layer's two terms at every step, all layers
narrowed at the same time, and training after the cut.

Differences from the paper:
- Coupled layers share the index sets of their joint importance, not those of one layer alone.
- Normalisation scales are balanced like filters, because a BatchNorm compensates for a small filter.
- The regulariser is off after a cut. Filters before a BatchNorm then get back the norms that they had before the
  balance, because the larger norms of strong filters make them learn more slowly (a setting).
- The strength is raised if the trial's epochs would not suffice.
- A cut comes early once weak filters hold little energy.
The paper's strength and number of iterations are not known; the defaults are those of this project.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from pruning.base import NO_ACTION, Action, Context, Goal, Method, PruningError, Rates, Snapshot, Stateless
from pruning.criteria.weights import norm_scores
from pruning.methods.abfp.balancing import AutoBalance, balance_factors, normalised_layers, restore_norms
from pruning.methods.common_steps import wanted_widths
from pruning.rewriting.narrowing import narrow_space, stages
from pruning.rewriting.surgery import slice_channels
from pruning.selection import Selection, select_channels
from pruning.settings import declared_settings, setting
from spaces.space import SearchSpace
from spaces.widths import Widths

logger = logging.getLogger(__name__)

# With fewer epochs, neither the balance nor the training after a cut has enough time: ResNet-20 on cluttered digits,
# cut to 8% of its FLOPs in 4 epochs, reached 86.3% of 1000 test images after one cut and 81.7% after two (one seed).
EPOCHS_PER_ITERATION = 4


@dataclass(frozen=True)
class AutoBalanced(Method):
    """Train until strong filters hold the energy of weak ones, cut the weak ones and train on; several times.

    The method works at given widths; from budgets alone it takes uniform widths. Snapshots before the last cut are
    copies that are cut to the final widths.
    """

    alpha: float = setting(
        5e-4, low=1e-4, high=1e-1, log=True, help="strength for weak filters, per unit of learning rate"
    )
    iterations: int = setting(3, low=1, high=5, help="cuts, at widths that shrink geometrically; fewer in short trials")
    balancing: float = setting(0.25, low=0.1, high=0.9, help="share of an iteration's epochs before its cut")
    weak_share: float = setting(
        0.01, low=1e-4, high=0.5, log=True, searched=False, help="share of energy at which weak filters are cut"
    )
    reach: bool = setting(
        True, choices=(True, False), searched=False, help="raise alpha where the epochs would not reach weak_share"
    )
    scales: bool = setting(
        True, choices=(True, False), searched=False, help="balance BatchNorm scales too and let weak biases decay"
    )
    restore: bool = setting(
        True,
        choices=(True, False),
        searched=False,
        help="give filters before a BatchNorm, after a cut, the norms that they had before the balance",
    )
    importance: str = setting(
        "group",
        choices=("group", "pacesetter"),
        searched=False,
        help="L1 norms of all layers that write the channels, or of the pacesetter: the stem or a stage's projection",
    )

    name: ClassVar[str] = "abfp"
    paper: ClassVar[str] = "Ding et al., Auto-Balanced Filter Pruning, AAAI 2018"
    follows_sgd: ClassVar[bool] = True
    needs: ClassVar[str] = "labelled training images, and epochs in which energy moves before the cut"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        rules = (
            ("alpha", 0 < self.alpha < math.inf, "above 0, as 0.0005 is"),
            ("iterations", self.iterations >= 1, "at least 1"),
            ("balancing", 0 < self.balancing < 1, "in (0, 1), as 0.25 is"),
            ("weak_share", 0 < self.weak_share < 1, "in (0, 1), as 0.01 is"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise PruningError(f"setting {name}={getattr(self, name)} of abfp must be {rule}")
        for declared in declared_settings(self):
            value = getattr(self, declared.name)
            if declared.choices and value not in declared.choices:
                known = ", ".join(map(str, declared.choices))
                raise PruningError(f"setting {declared.name}={value!r} of abfp is not known; choose one of {known}")

    def wide_epochs(self, epochs: int) -> float:
        """Return the epochs before the latest possible cut if there is only one."""
        return self.balancing * epochs

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield a net after every whole epoch.

        Raises:
            SpaceError: a width is not legal.
            BudgetError: no widths meet the budgets.
        """
        widths = wanted_widths(space, goal)
        space.check(widths)
        iterations = max(1, min(self.iterations, context.epochs // EPOCHS_PER_ITERATION))
        epochs = context.epochs / iterations
        training = _Training(self, space, widths, context, copy.deepcopy(net).to(context.device))
        for target in stages(space, widths, iterations):
            training.choose(target)
            yield from training.balance(self.balancing * epochs)
            training.cut()
            if target != widths:
                yield from training.train((1 - self.balancing) * epochs)
        yield from training.finish()


class _Training:
    """The network of one trial, which becomes narrower, and the epochs that it was trained for.

    Attributes:
        selection: the strong channels, which `choose` selects at the beginning of an iteration.
    """

    selection: Selection

    def __init__(
        self, method: AutoBalanced, space: SearchSpace, widths: Widths, context: Context, net: nn.Module
    ) -> None:
        self._method, self._context = method, context
        self._space, self._widths, self._net = space, widths, net
        self._epochs, self._reported = 0.0, 0
        self._note: dict[str, float | int | bool] = {"cuts": 0}

    def choose(self, target: Mapping[str, int]) -> None:
        """Select the strong channels of a cut to the widths `target`, and compute the factors of all channels."""
        importance = self._importance()
        self._before = copy.deepcopy(self._net)
        self.selection = select_channels(self._space, importance, target)
        self._factors = {
            name: balance_factors(importance[name], kept, self._space.by_name[name].conv_groups)
            for name, kept in self.selection.items()
        }

    def balance(self, epochs: float) -> Iterator[Snapshot]:
        """Train under the regulariser, for at most `epochs`, until weak channels hold little energy."""
        hook = AutoBalance(self._net, self._space, self._factors, self._method.alpha, self._method.scales)
        share = hook.weak_share()
        if self._method.reach and epochs > 0:
            hook.raise_alpha(self._needed(share, epochs))
        self._note |= {"alpha": hook.alpha, "weak_share": share}
        if share <= self._method.weak_share:
            return
        start = self._epochs
        for finished in self._fit(epochs, Action(hook, state=Stateless())):
            self._epochs = start + min(finished, epochs)
            self._note["weak_share"] = share = hook.weak_share()
            yield from self._cut_copy()
            if share <= self._method.weak_share:
                logger.debug("weak channels hold %.2g of the energy after %.3g epochs", share, self._epochs)
                return

    def _needed(self, share: float, epochs: float) -> float:
        """Return the strength at which the weak channels' share of the energy falls from `share` to the wanted one."""
        # With a factor of 1, energy falls by exp(-4 * alpha * integrated learning rate). The bound keeps the filter of
        # the largest factor from changing its sign in one step, after which it would oscillate.
        integrated = self._context.integrated_learning_rate(epochs, self._span(epochs))
        needed = math.log(max(1.0, share / self._method.weak_share)) / (4 * integrated)
        largest = max((float(factors.max()) for factors in self._factors.values()), default=1.0)
        rate = self._context.learning_rate * max(1.0, self._context.plan(0).bias_lr_mult)
        return min(needed, 1 / (2 * rate * max(largest, 1.0)))

    def cut(self) -> None:
        """Remove the weak channels."""
        if all(len(kept) == self._space.by_name[name].width for name, kept in self.selection.items()):
            return
        self._net = slice_channels(self._net, self._space, self.selection)
        if self._method.restore:
            before = slice_channels(self._before, self._space, self.selection)
            restore_norms(self._net, before, self._space, normalised_layers(self._net, self._space))
        self._space = narrow_space(self._space, self.selection)
        self._context.reestimate_batchnorm(self._net)
        self._note["cuts"] = int(self._note["cuts"]) + 1

    def train(self, epochs: float) -> Iterator[Snapshot]:
        """Train without the regulariser."""
        start = self._epochs
        for finished in self._fit(epochs):
            self._epochs = start + min(finished, epochs)
            yield from self._cut_copy()

    def finish(self) -> Iterator[Snapshot]:
        """Train the final network for the rest of the epochs."""
        start, left = self._epochs, self._context.epochs - self._epochs
        if self._reported == 0 or self._reported < self._whole_epochs():
            yield self._snapshot(self._net)
        for finished in self._fit(left):
            self._epochs = min(start + finished, self._context.epochs)
            yield self._snapshot(self._net)

    def _fit(self, epochs: float, action: Action = NO_ACTION) -> Iterator[int]:
        return self._context.fit(self._net, epochs, action, rates=Rates(self._span(epochs)))

    def _span(self, epochs: float) -> tuple[float, float]:
        """Return the part of the trial's learning-rate schedule that the next `epochs` take."""
        whole = max(self._context.epochs, 1)
        return self._epochs / whole, (self._epochs + epochs) / whole

    def _cut_copy(self) -> Iterator[Snapshot]:
        """Yield a copy at the final widths if another whole epoch is over."""
        if self._whole_epochs() == self._reported:
            return
        self._reported = self._whole_epochs()
        narrow = slice_channels(self._net, self._space, select_channels(self._space, self._importance(), self._widths))
        self._context.reestimate_batchnorm(narrow)
        yield self._snapshot(narrow)

    def _snapshot(self, net: nn.Module) -> Snapshot:
        return Snapshot(net, self._widths, self._whole_epochs(), dict(self._note))

    def _whole_epochs(self) -> int:
        return math.floor(self._epochs + 1e-6)

    def _importance(self) -> dict[str, Tensor]:
        return norm_scores(self._net, self._space, order=1, paced=self._method.importance == "pacesetter")
