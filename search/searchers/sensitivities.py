"""How the dense network takes the narrowing of each group alone: measured once, and kept for every later search."""

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
from pruning.sensitivity import MEASURED_RATIOS, Divergence, sensitivity
from runners.cache import write_cached
from runners.evaluation.evaluate import TrialContext
from runners.training.dense import weights_digest
from search.environment import Environment
from search.searchers.initial_design import SENSITIVE_FROM
from search.searchers.samplers import STRUCTURED
from spaces.space import SearchSpace

_log = logging.getLogger(__name__)

MOST_IMAGES = 512
LEAST_IMAGES = 8  # on fewer, the divergence says next to nothing
STEP_PASSES = 3  # forward passes that a training step costs
VERSION = 1  # of what is measured; another one does not read the files of this


@dataclass(frozen=True)
class Sensitivities:
    """What each group's narrowing to half costs the dense network.

    Attributes:
        by_group: group -> KL divergence of the outputs in nats, positive.
        cached: whether an earlier search had measured it.
    """

    by_group: Mapping[str, float]
    cached: bool


def sensing_images(environment: Environment) -> int:
    """Return on how many training images the groups' sensitivities are measured; 0 where nothing would use them."""
    config, space = environment.config, environment.problem.space
    searched = config.sampler in STRUCTURED and config.allocation != "method" and len(space.variable) > 1
    return images_for(space, len(environment.data.train)) if searched and config.trials >= SENSITIVE_FROM else 0


def images_for(space: SearchSpace, images: int) -> int:
    """Return on how many of the training images groups can be compared within the time of an epoch; 0 for too few."""
    affordable = STEP_PASSES * images // (len(MEASURED_RATIOS) * max(1, len(space.variable)))
    return 0 if affordable < LEAST_IMAGES else min(affordable, MOST_IMAGES)


def measured_sensitivities(
    net: nn.Module, space: SearchSpace, context: TrialContext, images: int, cache_dir: Path
) -> Sensitivities:
    """Cut every group alone, by L2 norm, and compare the outputs with the dense network's on training images.

    Args:
        net: the dense network; it is not changed.
        images: see `images_for`.
        cache_dir: holds a file per dense network, space and number of images.
    """
    bounds = [[group.name, group.lowest, group.ceiling, group.divisor] for group in space.variable]
    described = json.dumps([VERSION, weights_digest(net), bounds, images, context.seed])
    file = cache_dir / "sensitivities" / f"{hashlib.sha256(described.encode()).hexdigest()}.json"
    if (known := _read(file, space)) is not None:
        return Sensitivities(known, cached=True)
    wide = copy.deepcopy(net).to(context.device).eval()
    scores = CRITERIA["l2"]().scores(wide, space, context)
    divergence = Divergence(wide, context, images)

    def harm(widths: Mapping[str, int]) -> float:
        return divergence(slice_channels(wide, space, select_channels(space, scores, widths)))

    curves = sensitivity(space, harm)
    found = {group.name: max(float(curves[group.name][group.width // 2]), 1e-6) for group in space.variable}
    write_cached(file, json.dumps(found).encode())
    return Sensitivities(found, cached=False)


def _read(file: Path, space: SearchSpace) -> dict[str, float] | None:
    """Return what an earlier search measured; None where there is nothing that can be read."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        return {group.name: float(found[group.name]) for group in space.variable}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be read (%s); measuring anew", file, error)
        return None
