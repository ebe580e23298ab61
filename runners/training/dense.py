"""The dense network, with given weights, or trained once and cached by a hash of everything that determines it."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from runners.cache import digest_of, is_cached, write_cached
from runners.config import TrainConfig
from runners.data.loading import ImageData
from runners.learning_curve import LearningCurve, read_curve, write_curve
from runners.training.compute_format import ComputeFormat
from runners.training.devices import pick_device
from runners.training.loop import fit
from runners.training.run import TrainingRun
from runners.training.scoring import score
from spaces.errors import WeightsError
from spaces.space import ModelSpec

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights in their checkpoints
PREFIX = "module."  # DataParallel puts it before every name
# Fields of TrainConfig that do not change the weights of the dense network.
NOT_DENSE = ("distill_weight", "distill_temperature", "model_ema_decay", "rescale_weights", "device", "precision")


@dataclass(frozen=True)
class DenseRecipe:
    """Everything that determines a trained dense network.

    Attributes:
        train: the options, of which the options for narrow networks alone do not count.
        seed: of the initial weights and the training.
        compute_format: precision and memory format of the training; None takes the declared precision.
    """

    spec: ModelSpec
    data: ImageData
    train: TrainConfig
    seed: int
    compute_format: ComputeFormat | None = None

    def key(self) -> str:
        """Return a hash of the recipe, the same in every process.

        It covers the precision that is computed in, not the setting from which it follows: "auto" and its choice give
        one network.
        """
        settings = {name: value for name, value in asdict(self.train.for_dense()).items() if name not in NOT_DENSE}
        described = [asdict(self.spec), self.data.fingerprint, settings, self.seed, torch.__version__]
        described.append(self.train.precision if self.compute_format is None else str(self.compute_format.autocast))
        return digest_of(described)


def cached_file(recipe: DenseRecipe, cache_dir: Path) -> Path:
    """Return the file in which the network of this recipe is kept once it is trained."""
    return cache_dir / "dense" / f"{recipe.key()}.safetensors"


def cached_curve(recipe: DenseRecipe, cache_dir: Path) -> LearningCurve | None:
    """Return the learning curve of the cached network of this recipe; None where there is none."""
    return read_curve(_curve_file(cached_file(recipe, cache_dir)))


def given_net(spec: ModelSpec, weights: str) -> nn.Module:
    """Return the dense network with given weights, in evaluation mode on the CPU.

    Args:
        weights: "DEFAULT" or "IMAGENET1K_..." for weights of torchvision or timm, or a safetensors or state_dict file.

    Raises:
        WeightsError: the weights cannot be loaded, or belong to another network.
    """
    from spaces.zoo import models as zoo

    if is_published(weights):
        return zoo.pretrained(spec, weights).eval()
    net = zoo.build(spec)
    load_weights(net, Path(weights).expanduser())
    return net.eval()


def is_published(weights: str) -> bool:
    """Return whether the text names weights that torchvision publishes, not a file."""
    return weights == "DEFAULT" or weights.startswith("IMAGENET1K_")


def trained_net(
    recipe: DenseRecipe,
    cache_dir: Path,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Return the dense network in evaluation mode on the CPU: loaded from the cache, or trained and cached.

    Its learning curve is cached with it (`cached_curve`).

    Args:
        cache_dir: the cache folder; see `cached_file`.
        on_epoch: called after every epoch of training with the number of finished epochs and the validation score.
    """
    from spaces.zoo import models as zoo

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = zoo.build(recipe.spec)
    file = cached_file(recipe, cache_dir)
    if is_cached(file):
        try:
            load_weights(net, file)
            logger.info("dense %s from %s", recipe.spec.name, file)
            return net.eval()
        except WeightsError as error:
            logger.warning("%s; training anew", error)
    device = pick_device(recipe.train.device)
    config = recipe.train.for_dense()
    training_run = TrainingRun(config.epochs, config.lr, recipe.seed, device, compute_format=recipe.compute_format)
    val: list[float] = []
    for epoch in fit(net, recipe.data.train, config, training_run):
        val.append(score(net, recipe.data.val, config, compute_format=recipe.compute_format))
        if on_epoch is not None:
            on_epoch(epoch, val[-1])
    on_train = score(net, recipe.data.probe, config, compute_format=recipe.compute_format)
    write_curve(LearningCurve(tuple(val), on_train, len(recipe.data.val)), _curve_file(file))
    net.cpu()
    write_cached(file, save({name: tensor.contiguous() for name, tensor in net.state_dict().items()}))
    return net.eval()


def _curve_file(weights: Path) -> Path:
    return weights.with_suffix(".json")


def load_weights(net: nn.Module, path: Path) -> None:
    """Copy the weights of a safetensors file, or of a state_dict that torch.save wrote, into `net`.

    A dictionary {"state_dict": ...} or {"model": ...} around the weights and "module." before every name are removed.
    No code in the file is run.

    Raises:
        WeightsError: the file is missing or damaged, or a tensor is missing, surplus or of another shape; names the
            first such tensor.
    """
    found = _named_tensors(path)
    wanted = net.state_dict()
    # Older files lack num_batches_tracked, which only BatchNorm without momentum uses.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    surplus = [name for name in found if name not in wanted]
    way_out = "take the file of this network and number of classes, or leave the weights out to train it"
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network needs {tuple(wanted[name].shape)}; "
                f"{way_out}"
            )
    if missing:
        raise WeightsError(
            f"{path}: {missing[0]} of shape {tuple(wanted[missing[0]].shape)} is missing "
            f"({len(missing)} of {len(wanted)} tensors are); {way_out}"
        )
    if surplus:
        raise WeightsError(
            f"{path}: {surplus[0]} of shape {tuple(found[surplus[0]].shape)} belongs to no layer of the network; "
            f"{way_out}"
        )
    net.load_state_dict(dict(found), strict=False)


def weights_digest(net: nn.Module) -> str:
    """Return a hash of every weight and buffer, which is equal for bit-equal networks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named_tensors(path: Path) -> Mapping[str, Tensor]:
    """Read name -> tensor from a file without running any code in it."""
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; give a safetensors or state_dict file, or DEFAULT")
    content: Any
    try:
        path.open("rb").close()  # safetensors says of a file which may not be read that there is none
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}; let this user read it") from error
    except Exception as error:  # damaged files raise errors of many kinds
        # The rest of torch's message advises loading without weights_only, which would run code in the file.
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}); save them with "
            "torch.save(net.state_dict(), file) or as safetensors"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise WeightsError(f"{path} holds no state_dict; save it with torch.save(net.state_dict(), file)")
    if all(name.startswith(PREFIX) for name in content):
        return {name.removeprefix(PREFIX): tensor for name, tensor in content.items()}
    return dict(content)
