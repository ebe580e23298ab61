"""The training loop."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import Reshape, Stateless
from runners.config import TrainConfig
from runners.data.splits import Split
from runners.training.averaging import WeightAverage
from runners.training.compute_format import ComputeFormat, autocast_dtype
from runners.training.drop_path import set_drop_path
from runners.training.run import TrainingError, TrainingRun
from runners.training.schedule import count_steps, schedule_epochs, schedule_factor, schedule_progress
from runners.training.scoring import evaluating
from runners.training.task import task_of
from runners.trial import derive_seed

STEPS_BETWEEN_CHECKS = 20  # of the loss on accelerators, where reading it synchronises the device


def fit(net: nn.Module, split: Split, config: TrainConfig, training_run: TrainingRun) -> Iterator[int]:
    """Train `net` in place; yield the number of finished epochs after each one.

    The same seed gives bit-equal weights on one machine with the same number of threads. The network is moved to the
    device of the training run. Whenever an epoch is yielded, it is in training mode and its weights are contiguous;
    with `config.model_ema_decay` they are the averaged weights, while training goes on from the others.

    Args:
        split: training images; an incomplete last batch of an epoch is left out.
        config: names the task among others.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    yield from Training(net.to(training_run.device), split, config, training_run).run()


class Training:
    """A training of `fit`, whose state can be saved between two steps: network, optimiser, scaler, averaged weights.

    Args:
        net: on the device of the training run.

    Attributes:
        epochs: number of epochs, the last of which may be a fraction of one.
        finished: number of epochs so far.
    """

    def __init__(self, net: nn.Module, split: Split, config: TrainConfig, training_run: TrainingRun) -> None:
        self._net, self._split, self._config, self._training_run = net, split, config, training_run
        self._state = training_run.action.state or Stateless()
        set_drop_path(net, config.drop_path)
        self._per_epoch = max(1, len(split) // config.batch_size)
        self._total = count_steps(training_run.epochs, self._per_epoch)
        self.epochs = math.ceil(self._total / self._per_epoch)
        self._compute_format = (
            ComputeFormat(autocast_dtype(config.precision, net, training_run.device))
            if training_run.compute_format is None
            else training_run.compute_format
        )
        self._task = task_of(config)
        self._optimiser = _optimiser(net, config)
        self._scaler = torch.amp.GradScaler(
            training_run.device.type, enabled=self._compute_format.autocast == torch.float16
        )
        self._teacher = training_run.teacher if config.distill_weight > 0 else None
        self._average = _weight_average(net, config, training_run)
        self.finished = 0
        self._steps = 0  # of the epoch that is going on
        self._restored: Sequence[Tensor] = ()  # states of the random generators within the epoch to go on with

    def run(self, after_step: Callable[[], None] | None = None) -> Iterator[int]:
        """Train to the end; yield the number of finished epochs after each one, and once after a restored state.

        Args:
            after_step: called after every step, where `state` may be asked for.
        """
        if self.finished:
            yield self.finished
        while self.finished < self.epochs:
            self._run_epoch(self.finished, after_step)
            self._steps = 0
            self.finished += 1
            yield self.finished

    def state(self, *, ended: bool = False) -> bytes:
        """Return the state after the steps so far, from which the same training goes on in another process.

        Args:
            ended: whether there are no more steps, and so nothing in the state that only these need.
        """
        parts = {"finished": self.finished, "net": self._net.state_dict(), "own": self._state.state_dict()}
        if not ended:
            parts |= {"optimiser": self._optimiser.state_dict(), "scaler": self._scaler.state_dict()}
            parts |= {"steps": self._steps, "generators": _generator_states(self._training_run.device)}
            parts["average"] = None if self._average is None else self._average.state_dict()
        buffer = io.BytesIO()
        torch.save(parts, buffer)
        return buffer.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from the state of the same training, whose network has the same layers at first.

        Every epoch draws its order and its randomness from the seed of the training, and goes on within it with the
        batches that are left and the random generators as they were, so the weights in the end are those of a training
        in one process.
        """
        parts = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        self.finished = parts["finished"]
        if (exchanged := self._state.load_state_dict(parts["own"])) is not None:
            self._net, self._optimiser = exchanged, _optimiser(exchanged, self._config)
        self._net.load_state_dict(parts["net"])
        self._net.train()
        if "optimiser" not in parts:  # of a training that had ended
            return
        self._optimiser.load_state_dict(parts["optimiser"])
        self._scaler.load_state_dict(parts["scaler"])
        if self._average is not None:
            self._average.load_state_dict(parts["average"])
        self._steps = parts["steps"]
        self._restored = parts["generators"] if self._steps else ()

    def _run_epoch(self, epoch: int, after_step: Callable[[], None] | None) -> None:
        """Train on all images once, or on those that are left, then let `reshape` exchange the network."""
        device, first = self._training_run.device, epoch * self._per_epoch
        if self._average is not None and epoch and not self._steps:
            self._average.exchange()  # the epoch before ended with the averaged weights
        shuffle_seed = derive_seed(self._training_run.seed, f"epoch {epoch}")
        batches = self._split.batches(
            self._config.batch_size,
            device=device,
            shuffle_seed=shuffle_seed,
            augment=True,
            limit=min(self._per_epoch, self._total - first) * self._config.batch_size,
            skip=self._steps,
        )
        first += self._steps
        step = first - 1
        losses: list[Tensor] = []
        with _seeded(shuffle_seed, device), self._compute_format.applied_to(self._net):
            _restore_generators(self._restored, device)
            self._restored = ()
            self._net.train()
            for step, (images, targets) in enumerate(batches, start=first):
                losses.append(self._step(step, images, targets))
                self._steps += 1
                if device.type == "cpu" or len(losses) >= STEPS_BETWEEN_CHECKS:
                    _check_finite(losses, epoch, step, self._rate(step))
                if after_step is not None:
                    after_step()
            _check_finite(losses, epoch, step, self._rate(step))
        if self._average is not None:
            self._average.exchange()
        reshape = self._training_run.action.reshape
        if reshape is not None:
            self._net, self._optimiser = _reshaped(self._net, self._optimiser, self._config, reshape)

    def _rate(self, step: int) -> float:
        span = self._training_run.span
        progress, epochs = schedule_progress(span, step / self._total), schedule_epochs(self._training_run.epochs, span)
        factor = schedule_factor(self._config, progress, epochs)
        return self._training_run.learning_rate * factor

    def _step(self, step: int, images: Tensor, targets: Tensor) -> Tensor:
        """Take a step on a batch, in parts where gradients are accumulated; return its loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(step) * group["rate_factor"]
        self._optimiser.zero_grad()
        loss = torch.zeros((), device=images.device)
        parts = zip(images.chunk(self._config.accumulate), targets.chunk(self._config.accumulate), strict=True)
        for own_images, own_targets in parts:
            share = len(own_images) / len(images)
            own = share * self._loss(self._compute_format.convert(own_images), own_targets)
            self._scaler.scale(own).backward()  # type: ignore[no-untyped-call]
            loss += own.detach()
        self._scaler.unscale_(self._optimiser)
        if self._config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self._net.parameters(), self._config.clip_grad_norm)
        if self._training_run.action.hook is not None:
            self._training_run.action.hook(self._net, step)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update()
        return loss

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, with mixup and distillation where the options have them."""
        config, device = self._config, self._training_run.device
        share = 1.0  # weight of an image in its mixture with the one at the other end of the batch
        if config.mixup:
            share = float(torch.distributions.Beta(config.mixup, config.mixup).sample())  # type: ignore[no-untyped-call]
            images = share * images + (1 - share) * images.flip(0)
        with self._compute_format.autocasting(device):
            outputs = self._net(images)
        loss = self._task.loss(outputs.float(), targets)
        if config.mixup:
            loss = share * loss + (1 - share) * self._task.loss(outputs.float(), targets.flip(0))
        if self._teacher is not None:
            with torch.no_grad(), evaluating(self._teacher), self._compute_format.autocasting(device):
                target = self._teacher(images)
            distance = divergence(outputs.float(), target.float(), config.distill_temperature)
            loss = (1 - config.distill_weight) * loss + config.distill_weight * distance
        return loss


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(target || logits) as the mean over images, both softened by temperature T (Hinton et al., 2015).

    Args:
        logits, target: of shape (B, classes).
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(target / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _optimiser(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    groups = _weight_groups(net, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)


def _weight_average(net: nn.Module, config: TrainConfig, training_run: TrainingRun) -> WeightAverage | None:
    """Return the average of the weights; None without one, or where a method acts on the weights in training."""
    return None if training_run.action or not config.model_ema_decay else WeightAverage(net, config.model_ema_decay)


def _reshaped(
    net: nn.Module, optimiser: torch.optim.Optimizer, config: TrainConfig, reshape: Reshape
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the network and optimiser with which training continues; others where `reshape` exchanges the network."""
    buffers = {name: optimiser.state[tensor].get("momentum_buffer") for name, tensor in net.named_parameters()}
    changed = reshape(net, {name: buffer for name, buffer in buffers.items() if buffer is not None})
    if changed is None:
        return net, optimiser
    net, momentum = changed
    optimiser = _optimiser(net, config)
    for name, parameter in net.named_parameters():
        if name in momentum:
            optimiser.state[parameter]["momentum_buffer"] = momentum[name]
    return net, optimiser


def _weight_groups(net: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Group the parameters: weight decay of biases and BatchNorm would only rescale or bias the network."""
    trained = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    biases = {name for name, tensor in trained if tensor.ndim <= 1 and name.rpartition(".")[2] == "bias"}
    if config.bias_lr_mult == 1:
        biases = set()  # with the other vectors: one group less per step
    matrices = [tensor for _, tensor in trained if tensor.ndim > 1]
    vectors = [tensor for name, tensor in trained if tensor.ndim <= 1 and name not in biases]
    bias_tensors = [tensor for name, tensor in trained if name in biases]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
        {"params": bias_tensors, "weight_decay": 0.0, "rate_factor": config.bias_lr_mult},
    ]
    return groups if biases else groups[:2]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which dropout draws from, inside the block; restore them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        yield


def _generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of the global generators that `_seeded` seeds."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore_generators(states: Sequence[Tensor], device: torch.device) -> None:
    """Set the global generators to states of `_generator_states`; none leaves them as they are."""
    for number, state in enumerate(states):
        if number:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def _check_finite(losses: list[Tensor], epoch: int, step: int, rate: float) -> None:
    """Raise a TrainingError for the first loss that is not finite, and clear the list; the last loss is of `step`."""
    if not losses:
        return
    not_finite = (~torch.isfinite(torch.stack(losses))).nonzero().flatten().tolist()
    first = step - len(losses) + 1 + (not_finite[0] if not_finite else 0)
    losses.clear()
    if not_finite:
        raise TrainingError(
            f"the loss is not finite in epoch {epoch + 1}, step {first} (learning rate {rate:.4g}); "
            "lower the learning rate"
        )
