"""The one training loop, and what goes with it: accuracy, BatchNorm re-estimation, the fast way to compute."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.base import Reshape, StepHook
from runners.base import TrainConfig
from runners.fast import PLAIN, Fast, measure_fast
from runners.schedule import SCHEDULES, WHOLE, along, schedule_factor, steps_of
from runners.splits import Split
from runners.trial import derive_seed
from spaces.errors import SlimfrontError

__all__ = [
    "Fast",
    "TrainingError",
    "accuracy",
    "evaluating",
    "fit",
    "measure_fast",
    "pick_device",
    "reestimate_batchnorm",
]

LARGEST_GRADIENT = 5.0  # norm over all weights; nets without BatchNorm diverge at these rates without a bound
STEPS_BETWEEN_CHECKS = 20  # of the loss on accelerators, where reading it makes the device wait


class TrainingError(SlimfrontError):
    """Training that cannot start or has gone astray."""


def fit(
    net: nn.Module,
    split: Split,
    config: TrainConfig,
    *,
    epochs: float,
    learning_rate: float,
    seed: int,
    device: torch.device,
    teacher: nn.Module | None = None,
    hook: StepHook | None = None,
    reshape: Reshape | None = None,
    fast: Fast | None = None,
    span: tuple[float, float] = WHOLE,
) -> Iterator[int]:
    """Train `net` in place by SGD with Nesterov momentum; yield the number of finished epochs after each one.

    The same seed gives bit-equal weights on one machine with the same number of threads. The net is moved to
    `device`, and is in training mode and in ordinary memory format whenever an epoch is yielded.

    Args:
        net: what is trained.
        split: training images; an incomplete last batch of an epoch is left out.
        config: batch size, schedule, smoothing, distillation and the like.
        epochs: length of the schedule; what exceeds a whole number makes a last, shorter epoch.
        learning_rate: its peak.
        seed: determines order, augmentation and dropout.
        device: where to train.
        teacher: net whose logits are to be met, where `config.distill_weight` is above 0; on `device`.
        hook: called as hook(net, step) when the gradients are final, before the optimiser's step.
        reshape: called as reshape(net, momentum by parameter name) after every epoch; training goes on with the net and
            momentum that it returns, unless that is None.
        fast: number and memory format; None measures once per kind of net and process (see `measure_fast`).
        span: the part of the schedule to go through, for training that changes its net or terms on the way.

    Raises:
        TrainingError: a setting is out of range, or the loss is no longer finite.
    """
    check_settings(config, learning_rate)
    net.to(device)
    per_epoch = max(1, len(split) // config.batch_size)
    total = steps_of(epochs, per_epoch)
    if fast is None:
        fast = fast_for(net, split, config, device)
    optimiser = _optimiser(net, config)
    scaler = torch.amp.GradScaler(device.type, enabled=fast.autocast == torch.float16)
    teacher = teacher if config.distill_weight > 0 else None
    for epoch in range(math.ceil(total / per_epoch)):
        losses: list[Tensor] = []
        shuffle_seed = derive_seed(seed, f"epoch {epoch}")
        batches = split.batches(
            config.batch_size,
            device=device,
            shuffle_seed=shuffle_seed,
            augment=True,
            limit=min(per_epoch, total - epoch * per_epoch) * config.batch_size,
        )
        with _seeded(shuffle_seed, device), fast.format_of(net):
            net.train()
            for step, (images, labels) in enumerate(batches, start=epoch * per_epoch):
                rate = learning_rate * schedule_factor(config.schedule, along(span, step / total))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                images = fast.placed(images)
                with fast.precision(device):
                    logits = net(images)
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
                if teacher is not None:
                    with torch.no_grad(), evaluating(teacher), fast.precision(device):
                        target = teacher(images)
                    distance = divergence(logits.float(), target.float(), config.distill_temperature)
                    loss = (1 - config.distill_weight) * loss + config.distill_weight * distance
                losses.append(loss.detach())
                optimiser.zero_grad()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
                if hook is not None:
                    hook(net, step)
                scaler.step(optimiser)
                scaler.update()
                if device.type == "cpu" or len(losses) >= STEPS_BETWEEN_CHECKS:
                    _check_finite(losses, epoch, step, rate)
            _check_finite(losses, epoch, step, rate)
        if reshape is not None:
            net, optimiser = _reshaped(net, optimiser, config, reshape)
        yield epoch + 1


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(target || logits), the mean over images, both softened by T (Hinton et al., 2015)."""
    ours = functional.log_softmax(logits / temperature, dim=1)
    theirs = functional.log_softmax(target / temperature, dim=1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


@torch.no_grad()
def accuracy(
    net: nn.Module, split: Split, *, device: torch.device, batch_size: int = 256, limit: int | None = None
) -> float:
    """Return top-1 accuracy in [0, 1] on the first `limit` images, in float32; 0.0 where there are none."""
    right = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    net.to(device)
    with evaluating(net):
        for images, labels in split.batches(batch_size, device=device, limit=limit):
            right += (net(images).argmax(1) == labels).sum()
            seen += len(labels)
    return int(right) / seen if seen else 0.0


@torch.no_grad()
def reestimate_batchnorm(net: nn.Module, split: Split, *, device: torch.device, images: int = 512) -> None:
    """Replace the running statistics of every BatchNorm, in place, by the mean over un-augmented training batches.

    After a cut the old statistics describe sums over channels that are gone. Nothing else of the net changes.
    """
    layers = [each for each in net.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    if not layers:
        return
    net.to(device)
    momenta = [layer.momentum for layer in layers]
    with evaluating(net):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative mean
            layer.train()
        for batch, _ in split.batches(min(images, 128), device=device, limit=images):
            if len(batch) > 1:
                net(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and afterwards each back in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes CUDA, then MPS, then the processor.

    Raises:
        TrainingError: no such device here.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise TrainingError(f"device {name!r} is not available here; this machine has {', '.join(present)} (or auto)")
    return torch.device(name)


def fast_for(net: nn.Module, split: Split, config: TrainConfig, device: torch.device) -> Fast:
    """Return how to compute under `config.precision`: measured for "auto", as said otherwise."""
    if config.precision == "float32":
        return PLAIN
    images, _ = next(split.batches(2, device=device, limit=2))
    return measure_fast(net, tuple(images.shape[1:]), config.batch_size, device)


def check_settings(config: TrainConfig, learning_rate: float) -> None:
    """Raise a TrainingError for the first setting that is out of range."""
    rules = (
        ("batch_size", config.batch_size, config.batch_size >= 1, "at least 1"),
        ("learning_rate", learning_rate, 0 < learning_rate < math.inf, "above 0"),
        ("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)"),
        ("weight_decay", config.weight_decay, 0 <= config.weight_decay < math.inf, "at least 0"),
        ("label_smoothing", config.label_smoothing, 0 <= config.label_smoothing < 1, "in [0, 1)"),
        ("distill_weight", config.distill_weight, 0 <= config.distill_weight <= 1, "in [0, 1]"),
        ("distill_temperature", config.distill_temperature, 0 < config.distill_temperature < math.inf, "above 0"),
        ("schedule", config.schedule, config.schedule in SCHEDULES, " or ".join(SCHEDULES)),
        ("precision", config.precision, config.precision in ("auto", "float32"), "auto or float32"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise TrainingError(f"{name} is {value!r}; it must be {rule}")


def _optimiser(net: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    groups = _weight_groups(net, config.weight_decay)
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)


def _reshaped(
    net: nn.Module, optimiser: torch.optim.SGD, config: TrainConfig, reshape: Reshape
) -> tuple[nn.Module, torch.optim.SGD]:
    """Return what training goes on with: another net and momentum where `reshape` gives them."""
    buffers = {name: optimiser.state[each].get("momentum_buffer") for name, each in net.named_parameters()}
    changed = reshape(net, {name: buffer for name, buffer in buffers.items() if buffer is not None})
    if changed is None:
        return net, optimiser
    net, momentum = changed
    optimiser = _optimiser(net, config)
    for name, parameter in net.named_parameters():
        if name in momentum:
            optimiser.state[parameter]["momentum_buffer"] = momentum[name]
    return net, optimiser


def _weight_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the weights: BatchNorm's and biases are not decayed, which would only rescale or bias the net."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
    ]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what draws from the global generators, dropout above all, and leave them afterwards as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        yield


def _check_finite(losses: list[Tensor], epoch: int, step: int, rate: float) -> None:
    """Raise on the first loss that is not finite, then forget them; `step` is that of the last one."""
    if not losses:
        return
    bad = (~torch.isfinite(torch.stack(losses))).nonzero().flatten().tolist()
    first = step - len(losses) + 1 + (bad[0] if bad else 0)
    losses.clear()
    if bad:
        raise TrainingError(
            f"the loss is not finite in epoch {epoch + 1}, step {first} (learning rate {rate:.4g}); "
            "lower the learning rate"
        )
