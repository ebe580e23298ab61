"""Centripetal SGD. Ding, Ding, Guo & Han, arXiv 1904.03837 (CVPR 2019); journal version arXiv 2107.14444.

Differences from the authors' code, most of which are settings:
- k-means compares the filters of all layers that are tied together, not of the pacesetter alone, and is seeded. It
  starts ten times and takes the best, as theirs did, but only once from 128 clusters on, where that is as good.
- All widths are reached in one training, as in the paper. Their code goes on from one width to the next in rounds, each
  from the net of the last.
- The strength is raised until filters become equal in the epochs of the trial; theirs is fixed and not checked.
- The strength is the same for kernels, BatchNorm and biases, as in the paper. Their PyTorch code takes a tenth of it
  for BatchNorm and biases, and twice the learning rate for biases, which is an option of training here.
- Merging takes cluster means, not the first member.
- A net counts as collapsed only if this was measured; once collapsed, training continues in the narrow net.
- Weight decay is that of the trial's training.
"""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Action, Context, Goal, Method, PruningError, Snapshot, TrainingPlan, TrainingState
from pruning.methods.common_steps import wanted_widths
from pruning.methods.csgd.clustering import KINDS, ROWS, cluster_channels
from pruning.methods.csgd.collapse import COLLAPSED, CollapsePlan, plan_to_deadline, plan_with_fixed_epsilon
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
LOSSLESS = 1e-5  # largest difference of logits that merging may make in float32, as a share of the largest logit
COMPARED_IMAGES = 32  # on which logits are compared
STRENGTHS = ("budget", "fixed")


@dataclass(frozen=True)
class CentripetalSGD(Method):
    """Train the filters of every cluster to be equal, then merge them without a loss.

    The method works at given widths; from budgets alone it takes uniform widths. Every snapshot is a merged copy. If
    filters are not equal yet, BatchNorm is re-estimated after merging and the note says `collapsed: false`. BatchNorm
    is also re-estimated if deviations were removed directly, for want of steps: merging is lossless then too, but the
    running statistics are those of the different net of some steps before (`cifar_resnet18` on digits, 15% of its
    FLOPs, one epoch: 21.5% of the validation images are right with these statistics, 93.8% with new ones).
    """

    epsilon: float = setting(
        0.003,
        low=0.0003,
        high=0.3,
        log=True,
        searched=False,
        help="centripetal strength; with strength='budget', the smallest one",
    )
    strength: str = setting(
        "budget",
        choices=STRENGTHS,
        searched=False,
        help="raise epsilon until filters are equal in time, or keep it fixed",
    )
    deadline: float = setting(
        0.5, low=0.05, high=0.95, help="share of the steps after which strength='budget' has filters equal"
    )
    scale_strength: float = setting(
        1.0, low=0.01, high=1.0, log=True, searched=False, help="share of epsilon for BatchNorm weights"
    )
    bias_strength: float = setting(
        1.0, low=0.01, high=1.0, log=True, searched=False, help="share of epsilon for biases"
    )
    clusters: str = setting("kmeans", choices=KINDS, searched=False, help="how channels are partitioned")
    rows: str = setting("all", choices=ROWS, searched=False, help="k-means on all tied layers or on one alone")
    early_trim: bool = setting(
        True,
        choices=(True, False),
        searched=False,
        help="train on in the narrow net, rescaled, once collapsed",
    )

    name: ClassVar[str] = "csgd"
    paper: ClassVar[str] = "Ding et al., Centripetal SGD, arXiv 1904.03837"
    follows_sgd: ClassVar[bool] = True
    needs: ClassVar[str] = "labelled training images, and epochs in which filters become equal"
    finds_widths: ClassVar[bool] = False
    takes_widths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, known in (("strength", STRENGTHS), ("clusters", KINDS), ("rows", ROWS)):
            if getattr(self, name) not in known:
                raise PruningError(f"setting {name}={getattr(self, name)!r} of csgd must be one of {', '.join(known)}")
        for name in ("epsilon", "deadline", "scale_strength", "bias_strength"):
            highest = 1.0 if name == "deadline" else float("inf")
            if not 0 < getattr(self, name) <= highest:
                raise PruningError(f"setting {name}={getattr(self, name)} of csgd must be above 0, at most {highest}")

    def wide_epochs(self, epochs: int) -> int:
        """Return after how many epochs the net is narrow by plan."""
        trimmed = self.early_trim and self.strength == "budget"
        return math.ceil(self.deadline * epochs) if trimmed else epochs

    @override
    def run(self, net: nn.Module, space: SearchSpace, goal: Goal, context: Context) -> Iterator[Snapshot]:
        """Yield a merged copy after every epoch; if there are no epochs, yield one of the dense net.

        Raises:
            SpaceError: a width is not legal.
            BudgetError: no widths meet the budgets.
            PruningError: filters are not finite.
        """
        widths = wanted_widths(space, goal)
        clusters = cluster_channels(net, space, widths, self.clusters, self.rows, context.seed)
        wide = copy.deepcopy(net).to(context.device)
        training = _Training(self, wide, space, clusters, context)
        if not context.epochs:
            yield training.snapshot(widths, 0)
        for epoch in context.fit(wide, context.epochs, Action(training.step, training.reshape, training)):
            yield training.snapshot(widths, epoch)


class _Training(TrainingState):
    """The training of a trial: of the wide net until it has collapsed, then of the narrow one."""

    def __init__(
        self, method: CentripetalSGD, wide: nn.Module, space: SearchSpace, clusters: Clusters, context: Context
    ) -> None:
        self._method, self._space, self._clusters, self._context = method, space, clusters, context
        self._net = wide
        self._network_clusters = NetworkClusters(space, clusters)
        self._clustered = clustered_tensors(wide, space, self._network_clusters)
        plan = context.plan(context.epochs)
        factors = {KERNEL: 1.0, SCALE: method.scale_strength, BIAS: method.bias_strength}
        self._collapse = CollapsePlan(epsilon=0.0, direct_share=0.0, steps=0, residual=1.0)
        if plan.rates:
            strengths = list((factors | {BIAS: method.bias_strength * plan.bias_lr_mult}).values())
            self._collapse = (
                plan_with_fixed_epsilon(plan, method.epsilon, strengths)
                if method.strength == "fixed"
                else plan_to_deadline(plan, method.epsilon, strengths, method.deadline)
            )
            _log_plan(self._collapse, plan)
        self._hook: CentripetalHook | RescalingHook = CentripetalHook(self._clustered, self._collapse, factors, plan)
        self._trimmed_after = 0
        self._epochs = 0
        self._error = math.inf  # of the merged net's logits; measured only where deviations are small
        self._measure()

    def step(self, net: nn.Module, step: int) -> None:
        """Change the gradients of a step; a `StepHook`."""
        self._hook(net, step)

    def reshape(self, net: nn.Module, momentum: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]] | None:
        """Measure the deviations after an epoch; once the net has collapsed, return the merged net and momentum."""
        self._epochs += 1
        if self._trimmed_after:
            return None
        self._measure()
        if not self._method.early_trim or not self.collapsed:
            return None
        self._trimmed_after = self._epochs
        merged = _merged_momentum(net, momentum, self._space, self._clusters)
        return self._merge(net), merged

    def _merge(self, wide: nn.Module) -> nn.Module:
        """Merge the net and train that on; return it."""
        self._net = merge_channels(wide, self._space, self._clusters)
        self._hook = RescalingHook(self._net, self._space, self._network_clusters)
        return self._net

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self._epochs,
            "trimmed_after": self._trimmed_after,
            "deviation": dict(self._deviation),
            "error": self._error,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> nn.Module | None:
        self._epochs, self._trimmed_after = state["epochs"], state["trimmed_after"]
        self._deviation, self._error = state["deviation"], state["error"]
        return self._merge(self._net) if self._trimmed_after else None

    @property
    def collapsed(self) -> bool:
        """Whether the last measurement found merging lossless.

        It is lossless if the members of all clusters are equal, in parameters and running statistics, and the merged
        net has the logits of the wide net, which layers that normalise over channels may change.
        """
        return worst(self._deviation)[0] <= COLLAPSED and self._error <= LOSSLESS

    def _measure(self) -> None:
        self._deviation = deviations(self._clustered)
        logger.debug("deviations after epoch %d: %s", self._epochs, self._deviation)
        if worst(self._deviation)[0] <= COLLAPSED:
            merged = merge_channels(self._net, self._space, self._clusters)
            self._error = _difference(self._net, merged, self._context)

    def snapshot(self, widths: Widths, epoch: int) -> Snapshot:
        """Return the narrow net after an epoch."""
        if self._trimmed_after:
            narrow = copy.deepcopy(self._net) if self._collapse.direct_share else self._net
        else:
            narrow = merge_channels(self._net, self._space, self._clusters)
        if not self.collapsed or self._collapse.direct_share:
            self._context.reestimate_batchnorm(narrow)
        return Snapshot(narrow, widths, epoch, self._note())

    def _note(self) -> dict[str, float | int | str | bool]:
        deviation, tensor = worst(self._deviation)
        collapse = self._collapse
        note: dict[str, float | int | str | bool] = {
            "collapsed": self.collapsed,
            "deviation": deviation,
            "deviation_of": tensor,
            "clusters": self._method.clusters,
            "pull": "direct" if collapse.direct_share else "gradient",
            "collapse_planned_after_steps": collapse.steps,
            "deviation_planned": collapse.residual,
        }
        note |= {"direct_share": collapse.direct_share} if collapse.direct_share else {"epsilon": collapse.epsilon}
        for kind, largest in _by_kind(self._deviation).items():
            note[f"deviation_{kind}"] = largest
        if math.isfinite(self._error):
            note["merge_error"] = self._error
        if self._trimmed_after:
            note["trimmed_after_epoch"] = self._trimmed_after
        return note


def _log_plan(collapse: CollapsePlan, plan: TrainingPlan) -> None:
    share, epsilon = collapse.direct_share, collapse.epsilon
    how = f"{share:.3g} of every deviation a step" if share else f"epsilon {epsilon:.3g}"
    leaves = f"{collapse.residual:.2g} of the deviations after {collapse.steps} of {len(plan.rates)} steps"
    logger.info("csgd: %s leaves %s", how, leaves)


@torch.no_grad()
def _difference(wide: nn.Module, narrow: nn.Module, context: Context) -> float:
    """Return the largest difference of logits in evaluation mode, as a share of the largest logit; 0 without images."""
    wide, narrow = copy.deepcopy(wide).eval(), narrow.eval()
    largest = difference = 0.0
    with _whole_float32():
        for images, _ in context.calibration_batches(COMPARED_IMAGES):
            expected = wide(images)
            largest = max(largest, float(expected.abs().max()))
            difference = max(difference, float((narrow(images) - expected).abs().max()))
    return difference / largest if largest else 0.0


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Compute without TF32 inside the block: its ten bits of mantissa err by more than `LOSSLESS` allows."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _by_kind(deviation: Mapping[str, float]) -> Mapping[str, float]:
    """Return the largest deviation per kind of tensor: weight, bias, running_mean, ..."""
    largest: dict[str, float] = {}
    for name, value in deviation.items():
        kind = name.rpartition(".")[2]
        largest[kind] = max(largest.get(kind, 0.0), value)
    return largest


def _merged_momentum(
    net: nn.Module, momentum: Mapping[str, Tensor], space: SearchSpace, clusters: Clusters
) -> Mapping[str, Tensor]:
    """Merge momentum like the weights: momentum is a change of weights, and merging is linear."""
    changes = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in changes.named_parameters():
            parameter.copy_(momentum[name]) if name in momentum else parameter.zero_()
    merged = merge_channels(changes, space, clusters)
    return {name: parameter.detach() for name, parameter in merged.named_parameters() if name in momentum}
