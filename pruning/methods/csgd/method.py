"""Centripetal SGD. Ding, Ding, Guo & Han, arXiv 1904.03837 (CVPR 2019); journal version arXiv 2107.14444.

Where this differs from the authors' code: k-means looks at all layers that are tied together, not at the first alone,
and is seeded; the strength is raised until filters become equal in the epochs at hand (theirs is fixed and not
checked); it is the same for kernels, BatchNorm and biases as in the paper (their PyTorch code takes a tenth for the
latter, and twice the learning rate for biases, an option of training here); merging takes cluster means, not the first
member; nothing is called collapsed that was not measured so; and once collapsed, training goes on in the narrow net.
Weight decay is that of the training at hand. Most of these are settings.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruning.base import Context, Goal, PruningError, Snapshot, TrainingPlan
from pruning.methods.common_steps import wanted_widths
from pruning.methods.csgd.clustering import KINDS, ROWS, cluster_channels
from pruning.methods.csgd.collapse import COLLAPSED, Pull, budget_pull, fixed_pull
from pruning.methods.csgd.gradient_hook import (
    BIAS,
    KERNEL,
    SCALE,
    CentripetalHook,
    RescalingHook,
    clustered_tensors,
    deviations,
    worst,
)
from pruning.rewriting.index_maps import Clusters, NetworkClusters
from pruning.rewriting.surgery import merge_channels
from pruning.settings import setting
from spaces.space import SearchSpace
from spaces.widths import Widths

logger = logging.getLogger(__name__)
LOSSLESS = 1e-5  # largest difference of logits, as a share of the largest, that float32 and merging may make
COMPARED_IMAGES = 32
STRENGTHS = ("budget", "fixed")


@dataclass(frozen=True)
class CentripetalSGD:
    """Train the filters of every cluster to be equal, then merge them without a loss.

    Works at the widths it is given; from budgets alone it takes uniform widths. Every snapshot is a merged copy. Where
    filters are not equal yet, BatchNorm is re-estimated after merging and the note says `collapsed: false`. It is
    re-estimated too where the steps at hand were so few that deviations were removed directly: merging then is
    lossless all the same, but the running statistics are those of a net some steps back, which was another one
    (`cifar_resnet18` on digits, 15% of its FLOPs, one epoch: 21.5% of the validation images with them, 93.8% without).
    """

    epsilon: float = setting(
        0.003,
        low=0.0003,
        high=0.3,
        log=True,
        searched=False,
        help="centripetal strength; with strength='budget' at least",
    )
    strength: str = setting(
        "budget",
        choices=STRENGTHS,
        searched=False,
        help="raise epsilon until filters are equal in time, or take it fixed",
    )
    deadline: float = setting(
        0.5, low=0.05, high=0.95, help="share of the steps after which strength='budget' has filters equal"
    )
    scale_strength: float = setting(1.0, low=0.01, high=1.0, log=True, searched=False, help="of BatchNorm weights")
    bias_strength: float = setting(1.0, low=0.01, high=1.0, log=True, searched=False, help="of biases")
    clusters: str = setting("kmeans", choices=KINDS, searched=False, help="how channels are partitioned")
    rows: str = setting("all", choices=ROWS, searched=False, help="k-means on all tied layers or on one alone")
    early_trim: bool = setting(
        True, choices=(True, False), searched=False, help="train on in the narrow net, rescaled, once collapsed"
    )

    name: ClassVar[str] = "csgd"
    paper: ClassVar[str] = "Ding et al., Centripetal SGD, arXiv 1904.03837"
    needs: ClassVar[str] = "labelled training images, and epochs in which filters become equal"
    finds_widths: ClassVar[bool] = False
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that are out of range."""
        for name, known in (("strength", STRENGTHS), ("clusters", KINDS), ("rows", ROWS)):
            if getattr(self, name) not in known:
                raise PruningError(f"setting {name}={getattr(self, name)!r} of csgd must be one of {', '.join(known)}")
        for name in ("epsilon", "deadline", "scale_strength", "bias_strength"):
            highest = 1.0 if name == "deadline" else float("inf")
            if not 0 < getattr(self, name) <= highest:
                raise PruningError(f"setting {name}={getattr(self, name)} of csgd must be above 0, at most {highest}")

    def prepare(self, net: nn.Module, space: SearchSpace, context: Context) -> Any:
        """Need nothing."""
        return None

    def wide_epochs(self, epochs: int) -> int:
        """Return after how many epochs the net is narrow, when all goes by plan."""
        trimmed = self.early_trim and self.strength == "budget"
        return math.ceil(self.deadline * epochs) if trimmed else epochs

    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield a merged copy after every epoch; without epochs, one of the net as it is.

        Raises:
            SpaceError: a width that its group may not have.
            BudgetError: budgets that no widths meet.
            PruningError: filters that are not finite.
        """
        widths = wanted_widths(space, goal)
        clusters = cluster_channels(net, space, widths, self.clusters, self.rows, context.seed)
        wide = copy.deepcopy(net).to(context.device)
        training = _Training(self, wide, space, clusters, context)
        if not context.epochs:
            yield training.snapshot(widths, 0)
        for epoch in context.fit(wide, context.epochs, training.step, reshape=training.reshape):
            yield training.snapshot(widths, epoch)


class _Training:
    """A run of centripetal SGD: on the wide net until it has collapsed, then on the narrow one."""

    def __init__(
        self, method: CentripetalSGD, wide: nn.Module, space: SearchSpace, clusters: Clusters, context: Context
    ) -> None:
        self._method, self._space, self._clusters, self._context = method, space, clusters, context
        self._net = wide
        self._network_clusters = NetworkClusters(space, clusters)
        self._clustered = clustered_tensors(wide, space, self._network_clusters)
        plan = context.plan(context.epochs)
        factors = {KERNEL: 1.0, SCALE: method.scale_strength, BIAS: method.bias_strength}
        self._pull = Pull(0.0, 0.0, 0, 1.0)
        if plan.rates:
            strengths = list((factors | {BIAS: method.bias_strength * plan.bias_lr_mult}).values())
            self._pull = (
                fixed_pull(plan, method.epsilon, strengths)
                if method.strength == "fixed"
                else budget_pull(plan, method.epsilon, strengths, method.deadline)
            )
            _log_plan(self._pull, plan)
        self._hook: CentripetalHook | RescalingHook = CentripetalHook(self._clustered, self._pull, factors, plan)
        self._trimmed_after = 0
        self._epochs = 0
        self._error = math.inf  # of the merged net's logits; not measured while deviations are large
        self._measure()

    def step(self, net: nn.Module, step: int) -> None:
        """Change the gradients of a step; a `StepHook`."""
        self._hook(net, step)

    def reshape(self, net: nn.Module, momentum: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]] | None:
        """Measure the collapse after an epoch; once complete, hand back the merged net and momentum."""
        self._epochs += 1
        if self._trimmed_after:
            return None
        self._measure()
        if not self._method.early_trim or not self.collapsed:
            return None
        self._trimmed_after = self._epochs
        self._net = merge_channels(net, self._space, self._clusters)
        merged = _merged_momentum(net, momentum, self._space, self._clusters)
        self._hook = RescalingHook(self._net, self._network_clusters)
        return self._net, merged

    @property
    def collapsed(self) -> bool:
        """Whether merging was last measured to be lossless.

        Members of all clusters are equal, in parameters and in running statistics, and the merged net's logits are the
        wide net's: layers that normalise over channels may change them nevertheless.
        """
        return worst(self._deviation)[0] <= COLLAPSED and self._error <= LOSSLESS

    def _measure(self) -> None:
        self._deviation = deviations(self._clustered)
        logger.debug("deviations after epoch %d: %s", self._epochs, self._deviation)
        if worst(self._deviation)[0] <= COLLAPSED:
            merged = merge_channels(self._net, self._space, self._clusters)
            self._error = _difference(self._net, merged, self._context)

    def snapshot(self, widths: Widths, epoch: int) -> Snapshot:
        """Return the narrow net as it is after an epoch."""
        if self._trimmed_after:
            narrow = copy.deepcopy(self._net) if self._pull.direct else self._net
        else:
            narrow = merge_channels(self._net, self._space, self._clusters)
        if not self.collapsed or self._pull.direct:
            self._context.reestimate_batchnorm(narrow)
        return Snapshot(narrow, widths, epoch, self._note())

    def _note(self) -> dict[str, float | int | str | bool]:
        deviation, tensor = worst(self._deviation)
        note: dict[str, float | int | str | bool] = {
            "collapsed": self.collapsed,
            "deviation": deviation,
            "deviation_of": tensor,
            "clusters": self._method.clusters,
            "pull": "direct" if self._pull.direct else "gradient",
            "collapse_planned_after_steps": self._pull.steps,
            "deviation_planned": self._pull.left,
        }
        note |= {"direct_share": self._pull.direct} if self._pull.direct else {"epsilon": self._pull.epsilon}
        for kind, largest in _by_kind(self._deviation).items():
            note[f"deviation_{kind}"] = largest
        if math.isfinite(self._error):
            note["merge_error"] = self._error
        if self._trimmed_after:
            note["trimmed_after_epoch"] = self._trimmed_after
        return note


def _log_plan(pull: Pull, plan: TrainingPlan) -> None:
    how = f"{pull.direct:.3g} of every deviation a step" if pull.direct else f"epsilon {pull.epsilon:.3g}"
    leaves = f"{pull.left:.2g} of the deviations after {pull.steps} of {len(plan.rates)} steps"
    logger.info("csgd: %s leaves %s", how, leaves)


@torch.no_grad()
def _difference(wide: nn.Module, narrow: nn.Module, context: Context) -> float:
    """Return the largest difference of logits in evaluation mode, as a share of the largest logit; 0 without images."""
    wide, narrow = copy.deepcopy(wide).eval(), narrow.eval()
    largest = apart = 0.0
    for images, _ in context.calibration_batches(COMPARED_IMAGES):
        expected = wide(images)
        largest = max(largest, float(expected.abs().max()))
        apart = max(apart, float((narrow(images) - expected).abs().max()))
    return apart / largest if largest else 0.0


def _by_kind(deviation: Mapping[str, float]) -> Mapping[str, float]:
    """Return the largest deviation among tensors of the same last name: weight, bias, running_mean, ..."""
    largest: dict[str, float] = {}
    for name, value in deviation.items():
        kind = name.rpartition(".")[2]
        largest[kind] = max(largest.get(kind, 0.0), value)
    return largest


def _merged_momentum(
    net: nn.Module, momentum: Mapping[str, Tensor], space: SearchSpace, clusters: Clusters
) -> Mapping[str, Tensor]:
    """Merge momentum as the weights are merged: it is a change of them, and merging is linear."""
    changes = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in changes.named_parameters():
            parameter.copy_(momentum[name]) if name in momentum else parameter.zero_()
    merged = merge_channels(changes, space, clusters)
    return {name: parameter.detach() for name, parameter in merged.named_parameters() if name in momentum}
