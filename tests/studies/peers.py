"""Cuts by other libraries: torch-pruning, and FastNAS of nvidia-modelopt where that is installed.

Every cut takes the dense network, and returns a narrow one whose FLOPs, counted by fvcore, are as near below a limit as
the library's own setting can bring them. `python -m pip install nvidia-modelopt torchprofile==0.0.4` installs FastNAS
(later versions of torchprofile lack what modelopt 0.47 reads).
"""

import contextlib
import copy
import functools
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from filelock import FileLock
from torch import nn
from torch.nn import functional
from torch_pruning import importance as scores

from runners.data.loading import ImageData
from runners.training.scoring import accuracy
from spaces.counting import count_cost

CPU = torch.device("cpu")
FASTNAS = "FastNAS"
BISECTIONS = 12
# Of the limit by modelopt's count, over the limit by fvcore's: it takes nearly two FLOPs for a multiply-add.
FASTNAS_BISECTIONS, FASTNAS_FLOPS = 5, (1.6, 2.4)
PRUNING_STEPS = 8  # a single step may ask for all channels of a layer, which torch-pruning then leaves whole
MAX_PRUNING_RATIO = 0.95  # of a layer
GRADIENT_IMAGES = 512


@dataclass(frozen=True)
class Peer:
    """An importance of torch-pruning; `ranks_all` compares channels over all layers, else layers keep equal shares."""

    importance: Callable[[], Any]
    ranks_all: bool


TORCH_PRUNING = {
    "torch-pruning, L2, uniform": Peer(lambda: scores.GroupMagnitudeImportance(p=2, group_reduction="first"), False),
    "torch-pruning, L2, global": Peer(lambda: scores.GroupMagnitudeImportance(p=2, group_reduction="first"), True),
    "torch-pruning, Taylor": Peer(scores.GroupTaylorImportance, True),
    "torch-pruning, BN scale": Peer(scores.BNScaleImportance, True),
    "torch-pruning, group norm": Peer(lambda: scores.GroupMagnitudeImportance(p=2, group_reduction="mean"), True),
}


class NoCutError(Exception):
    """A library finds no network inside the limit."""


def names() -> tuple[str, ...]:
    """Return the names of the peers that are installed."""
    return (*TORCH_PRUNING, *([FASTNAS] if importlib.util.find_spec("modelopt") else []))


def cut(name: str, net: nn.Module, data: ImageData, limit: int, checkpoint: Path) -> nn.Module:
    """Return a narrow copy of `net` by the peer called `name`.

    Args:
        limit: FLOPs of one image.
        checkpoint: file in which FastNAS keeps how sensitive the layers of this network are.

    Raises:
        NoCutError: the peer finds no network inside the limit.
    """
    if name == FASTNAS:
        return _by_fastnas(net, data, limit, checkpoint)
    peer = TORCH_PRUNING[name]
    scored = copy.deepcopy(net).eval()
    if isinstance(peer.importance(), scores.GroupTaylorImportance):
        for images, labels in data.calibration.batches(128, device=CPU, limit=GRADIENT_IMAGES):
            functional.cross_entropy(scored(images), labels, reduction="sum").backward()
    makes = functools.partial(_by_torch_pruning, scored, peer, data)
    return _trainable(_largest_within(makes, data, limit, (0.0, 1.0), BISECTIONS))


def _largest_within(
    make: Callable[[float], nn.Module], data: ImageData, limit: int, interval: tuple[float, float], steps: int
) -> nn.Module:
    """Return the network of the most FLOPs inside the limit that bisection of the argument of `make` meets."""
    low, high = interval
    best: tuple[int, nn.Module] | None = None
    for _ in range(steps):
        middle = (low + high) / 2
        net = make(middle)
        flops = count_cost(net, data.input_shape).flops
        low, high = (middle, high) if flops <= limit else (low, middle)
        if flops <= limit and (best is None or flops > best[0]):
            best = flops, net
    if best is None:
        raise NoCutError(f"no network within {limit:,} flops between the settings {interval[0]:g} and {interval[1]:g}")
    return best[1]


def _by_torch_pruning(scored: nn.Module, peer: Peer, data: ImageData, kept: float) -> nn.Module:
    """Cut a copy of a network, whose gradients are set where the importance reads them, to a share of its channels."""
    net = copy.deepcopy(scored)
    for copied, original in zip(net.parameters(), scored.parameters(), strict=True):
        copied.grad = None if original.grad is None else original.grad.clone()
    pruner = torch_pruning.pruner.BasePruner(
        net,
        torch.zeros(1, *data.input_shape),
        peer.importance(),
        global_pruning=peer.ranks_all,
        pruning_ratio=1 - kept,
        max_pruning_ratio=MAX_PRUNING_RATIO,
        iterative_steps=PRUNING_STEPS,
        ignored_layers=[module for module in net.modules() if isinstance(module, nn.Linear)],
        # Its defaults are dictionaries that all pruners of a process would share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    for _ in range(PRUNING_STEPS):
        pruner.step()
    return net


def _by_fastnas(net: nn.Module, data: ImageData, limit: int, checkpoint: Path) -> nn.Module:
    from modelopt.torch import prune
    from modelopt.torch.prune.fastnas import FastNASConfig

    rules = FastNASConfig().model_dump()
    for rule in _rules(rules):
        rule.update({name: 1 for name in rule if name.endswith("_divisor")})  # 32 by default, for wide networks
    config = {
        "data_loader": list(data.calibration.batches(128, device=CPU, limit=GRADIENT_IMAGES)),
        "collect_func": lambda batch: batch[0],
        "score_func": lambda narrow: accuracy(narrow, data.val, device=CPU),
        "checkpoint": str(checkpoint),
        "verbose": False,
    }

    def pruned(flops: float) -> nn.Module:
        image = torch.zeros(1, *data.input_shape)
        found, _ = prune.prune(
            copy.deepcopy(net),
            mode=[("fastnas", rules)],
            constraints={"flops": flops},
            dummy_input=image,
            config=config,
        )
        return found

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    silence, interval = io.StringIO(), (FASTNAS_FLOPS[0] * limit, FASTNAS_FLOPS[1] * limit)
    with FileLock(f"{checkpoint}.lock"), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        return _trainable(_largest_within(pruned, data, limit, interval, FASTNAS_BISECTIONS))


def _rules(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every rule of a configuration of modelopt: kind of layer -> pattern of its name -> rule."""
    for by_pattern in config.values():
        yield from (rule for rule in by_pattern.values() if rule is not None)


def _trainable(net: nn.Module) -> nn.Module:
    """Return the network with parameters that train and have no gradients."""
    net.zero_grad(set_to_none=True)
    return net.requires_grad_(True)
