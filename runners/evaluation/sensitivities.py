"""Sensitivities: the loss from narrowing every group of the dense network alone, measured once and then cached."""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pruning.base import CRITERIA
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.sensitivity import Divergence, sensitivity
from runners.cache import is_cached, write_cached
from runners.evaluation.context import TrialContext
from runners.training.dense import weights_digest
from spaces.space import SearchSpace

_log = logging.getLogger(__name__)

MOST_IMAGES = 512
LEAST_IMAGES = 8  # on fewer images the divergence is mostly noise
RATIO = 0.5  # of a group's width, at which it is measured
STEP_PASSES = 3  # forward passes that take as long as a training step
EPOCH_PART = 3  # the measurement takes at most this part of the time of a training epoch: a third
VERSION = 2  # of the measurement; files of another version are not read


@dataclass(frozen=True)
class Sensitivities:
    """The loss of the dense network from narrowing every group alone to half.

    Attributes:
        by_group: group -> KL divergence of the outputs from those of the dense network, in nats, positive.
        cached: whether an earlier search has measured them.
    """

    by_group: Mapping[str, float]
    cached: bool


def affordable_images(space: SearchSpace, images: int) -> int:
    """Return on how many training images all groups can be measured within a third of an epoch; 0 for too few.

    Args:
        images: number of all training images.
    """
    affordable = STEP_PASSES * images // (EPOCH_PART * max(1, len(space.variable)))
    return 0 if affordable < LEAST_IMAGES else min(affordable, MOST_IMAGES)


def measure_sensitivities(
    net: nn.Module, space: SearchSpace, context: TrialContext, images: int, cache_dir: Path
) -> Sensitivities:
    """Narrow every group alone, by L2 norm, and compare the outputs on training images with those of the dense network.

    Args:
        net: the dense network; it is not changed.
        images: number of training images, see `affordable_images`.
        cache_dir: holds a file for every dense network, space, number of images and seed.
    """
    bounds = [[group.name, group.lowest, group.ceiling, group.divisor] for group in space.variable]
    described = json.dumps([VERSION, weights_digest(net), bounds, images, context.seed])
    file = cache_dir / "sensitivities" / f"{hashlib.sha256(described.encode()).hexdigest()}.json"
    if (known := _read(file, space)) is not None:
        return Sensitivities(known, cached=True)
    wide = copy.deepcopy(net).to(context.device).eval()
    scores = CRITERIA["l2"]().scores(wide, space, context)
    divergence = Divergence(wide, context, images)

    def loss(widths: Mapping[str, int]) -> float:
        return divergence(slice_channels(wide, space, select_channels(space, scores, widths)))

    curves = sensitivity(space, loss, (RATIO,))
    found = {group.name: max(float(curves[group.name][group.width // 2]), 1e-6) for group in space.variable}
    write_cached(file, json.dumps(found).encode())
    return Sensitivities(found, cached=False)


def _read(file: Path, space: SearchSpace) -> dict[str, float] | None:
    """Return the cached sensitivities; None without a file that can be read."""
    if not is_cached(file):
        return None
    try:
        found = json.loads(file.read_text())
        return {group.name: float(found[group.name]) for group in space.variable}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read (%s); measuring anew", file, error)
        return None
