"""Networks of timm (pytorch-image-models) by `timm/NAME`, an optional package (the extra [timm]).

A name may have the tag of its weights, as in `timm/resnet50.a1_in1k`.
"""

import difflib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import ModelError, UnknownNameError, WeightsError
from spaces.space import ModelSpec

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm/"
_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository on the hub, the first that is there
_ANSWER_SECONDS = 10.0  # within which the hub must answer

_log = logging.getLogger(__name__)


def default_input_shape(name: str) -> tuple[int, int, int]:
    """Return the (channels, height, width) of the images that timm's configuration of a network names.

    Raises:
        ModelError: timm is not installed.
        UnknownNameError: timm has no such network.
    """
    config = _published_config(name)
    channels, height, width = (3, 224, 224) if config is None else config.input_size
    return channels, height, width


def build(spec: ModelSpec) -> "nn.Module":
    """Build a network of timm with fresh weights, in training mode.

    Raises:
        ModelError: timm is not installed, the network does not take the arguments, or it should be widened.
        UnknownNameError: timm has no such network; the message gives the nearest names.
    """
    if spec.widen != 1:
        raise ModelError(
            f"--widen {spec.widen:g} scales networks of this project and of torchvision, and {spec.name!r} is timm's; "
            "leave it away"
        )
    return _created(spec, weighted=False)


def pretrained(spec: ModelSpec, weights: str) -> "nn.Module":
    """Build a network of timm with the weights that timm publishes, downloaded or from the cache of the hub.

    timm fits the first convolution to other channels than 3, and gives other numbers of classes a fresh classifier.
    The network takes images standardised with ImageNet's mean and deviation.

    Args:
        weights: DEFAULT, which takes those that the tag of the name says, or timm's best.

    Raises:
        ModelError, UnknownNameError: as in `build`.
        WeightsError: there are no such weights, or they are neither cached nor to be had from the network.
    """
    file = published_file(spec, weights)
    config = _published_config(spec.name)
    if not file.exists() and config.hf_hub_id:
        _check_reachable(spec.name, config.hf_hub_id)
    try:
        net = _created(spec, weighted=True)
    except OSError as error:
        raise _unreachable(spec.name, config.hf_hub_id or config.url, error) from error
    if spec.input_shape[0] == 3:
        _take_imagenet_images(net, config, spec.name)
    return net


def published_file(spec: ModelSpec, weights: str) -> Path:
    """Return the file in which the weights of a network are cached, or the one that will be downloaded.

    Raises:
        WeightsError: timm publishes no such weights.
    """
    import torch

    config = _published_config(spec.name)
    if weights != "DEFAULT":
        raise WeightsError(f"timm has no weights {weights}; give DEFAULT, and the tag with the name: timm/NAME.TAG")
    if config is None or not (config.hf_hub_id or config.url):
        raise WeightsError(f"timm has no weights of {spec.name!r}; give a file, or none to train it here")
    if not config.hf_hub_id:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
    from huggingface_hub import constants, try_to_load_from_cache

    names = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
    cached = (try_to_load_from_cache(config.hf_hub_id, name) for name in names)
    found = next((path for path in cached if isinstance(path, str)), None)
    return (
        Path(found)
        if found
        else Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}" / names[0]
    )


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"model {name!r} needs timm, not installed here; pip install 'slimfront[timm]'") from error
    return timm


def _own_name(name: str) -> str:
    """Return timm's name of a network; raises as `build` does."""
    timm, own = _timm(name), name.removeprefix(PREFIX)
    known = timm.list_models()
    arch, _, tag = own.partition(".")
    if arch in known and tag:
        known = timm.list_pretrained(f"{arch}.*")
    if own not in known:
        near = difflib.get_close_matches(own.lower(), known, n=4, cutoff=0.5)
        names = ", ".join(PREFIX + each for each in near)
        hint = f"did you mean {names}?" if near else "timm.list_models() gives its names"
        raise UnknownNameError(f"unknown model {name!r}; {hint}")
    return own


def _published_config(name: str) -> Any:
    return _timm(name).get_pretrained_cfg(_own_name(name))


def _created(spec: ModelSpec, *, weighted: bool) -> "nn.Module":
    own, config = _own_name(spec.name), _published_config(spec.name)
    channels, height, width = spec.input_shape
    # Networks with parameters of every position are built for one size of images; others take any.
    sized = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
    try:
        net: nn.Module = _timm(spec.name).create_model(
            own, pretrained=weighted, num_classes=spec.num_classes, in_chans=channels, **sized
        )
    except OSError:
        raise
    except Exception as error:  # of whatever kind the constructors of timm raise
        text = " ".join(str(error).split())[:200]
        raise ModelError(
            f"timm cannot build {spec.name!r} for {spec.num_classes} classes and images of {spec.input_shape} "
            f"({type(error).__name__}: {text}); take another network or image size"
        ) from error
    return net.train()


def _check_reachable(name: str, repository: str) -> None:
    """Ask the hub once; timm itself would try again for a minute before it says that there is no network."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(repository, _FILES[0]), timeout=_ANSWER_SECONDS)
    except EntryNotFoundError:  # the repository has another file
        return
    except Exception as error:  # of its HTTP library, which it may change
        raise _unreachable(name, repository, error) from error


def _unreachable(name: str, source: str, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:120]
    return WeightsError(
        f"weights of {name!r} cannot be had from {source} ({reason}); connect to the network, copy the cache of the "
        "hub (HF_HOME) from where they are, or give a file"
    )


def _take_imagenet_images(net: "nn.Module", config: Any, name: str) -> None:
    from spaces.zoo.normalisation import IMAGENET_MEAN, IMAGENET_STD, fold_normalisation

    if (tuple(config.mean), tuple(config.std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return
    modules = list(net.modules())
    conv = net.get_submodule(config.first_conv) if isinstance(config.first_conv, str) else net
    following = next(iter(modules[modules.index(conv) + 1 :]), None)
    if fold_normalisation(conv, following, config.mean, config.std):
        return
    _log.warning(
        "%s was trained on images standardised with mean %s and deviation %s, and gets ImageNet's here: it is less "
        "accurate until it is trained on",
        name,
        config.mean,
        config.std,
    )
