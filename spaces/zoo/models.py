"""Networks at full width: torchvision's CNNs and timm's by name, networks for small images, and factories of the user.

Torch and torchvision are imported when a network is built or torchvision's names are needed.
"""

import inspect
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import ModelError, WeightsError
from spaces.registry import USER_ERRORS, import_code, unknown_name
from spaces.space import ModelSpec
from spaces.zoo import timm_nets

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

CIFAR_NAMES = ("cifar_resnet18", "cifar_vgg16_bn", "densenet40", "lenet5", "resnet20", "resnet56", "resnet110")
WIDEST = 64  # largest factor of all widths
_NO_CNN = ("vit_", "swin_", "maxvit_")
# Auxiliary heads run in training only, so a trace in eval mode would miss them. The original initialisation draws
# truncated normals, which is slow; BatchNorm makes the default initialisation as good.
_WITHOUT_HEADS = {"aux_logits": False, "init_weights": False}
_EXTRA_ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_HEADS, "inception_v3": _WITHOUT_HEADS}
# First layers of the networks that were trained on images with mean 0.5 and deviation 0.5 in every colour.
_STEMS = {"googlenet": "conv1", "inception_v3": "Conv2d_1a_3x3"}


def model_names() -> list[str]:
    """List all names that `build` takes besides factories and timm's, sorted. Imports torchvision."""
    return sorted([*CIFAR_NAMES, *_torchvision_names()])


def is_foreign(name: str) -> bool:
    """Return whether a network is built by code that is neither this project's nor torchvision's."""
    return ":" in name or name.startswith(timm_nets.PREFIX)


def default_input_shape(name: str) -> tuple[int, int, int]:
    """Return the (channels, height, width) of one image that a network is made for.

    For a factory this is the default of its argument `input_shape` where it has one, else 3x32x32.

    Raises:
        UnknownNameError: the name is not known; the message lists the nearest.
    """
    if ":" in name:
        default = _parameters(_factory(name)).get("input_shape")
        shape = default.default if default is not None else None
        return (shape[0], shape[1], shape[2]) if isinstance(shape, tuple) and len(shape) == 3 else (3, 32, 32)
    if name.startswith(timm_nets.PREFIX):
        return timm_nets.default_input_shape(name)
    if name in CIFAR_NAMES:
        return (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    _check_name(name)
    from torchvision.models import get_model_weights

    weights = getattr(get_model_weights(name), "DEFAULT", None)
    side = 224 if weights is None else weights.transforms.keywords["crop_size"]
    return (3, side, side)


def build(spec: ModelSpec) -> "nn.Module":
    """Build a network at full width, times `spec.widen`, with fresh weights, in training mode.

    A torchvision network for images that do not have 3 channels gets a fresh first convolution.

    Raises:
        UnknownNameError: the name is not known; the message lists the nearest.
        ModelError: the network does not take the arguments or cannot be widened, or a factory cannot be imported or
            gives no network.
    """
    _check_arguments(spec)
    if ":" in spec.name:
        return _call_factory(spec)
    if spec.output:
        raise ModelError(f"--output {spec.output!r} chooses among several, and {spec.name!r} has one; leave it away")
    if spec.name.startswith(timm_nets.PREFIX):
        return timm_nets.build(spec)
    if spec.name in CIFAR_NAMES:
        from spaces.zoo.cifar import build_cifar

        return build_cifar(spec.name, spec.num_classes, spec.input_shape, spec.widen)
    _check_name(spec.name)
    from torchvision.models import get_model

    net: nn.Module = get_model(
        spec.name, weights=None, num_classes=spec.num_classes, **_EXTRA_ARGUMENTS.get(spec.name, {})
    )
    if spec.input_shape[0] != 3:
        _refit_stem(net, spec.input_shape[0])
    if spec.widen != 1:
        from spaces.zoo.widening import widen

        net = widen(net, spec.widen, spec.num_classes, spec.input_shape, spec.name)
    return net


def pretrained(spec: ModelSpec, weights: str = "DEFAULT") -> "nn.Module":
    """Build a network of torchvision or timm with published weights.

    If the number of classes is not 1000, the classifier is a fresh one. If the number of input channels is not 3, every
    channel gets the mean of the colour filters of the first convolution. All networks take images normalised with
    ImageNet's mean and deviation (in googlenet, the outermost pixels see a slightly different padding). The weights
    come from torchvision's cache (TORCH_HOME), or from the hub's for timm (HF_HOME), or are downloaded into it.

    Args:
        weights: a name such as IMAGENET1K_V1; DEFAULT is the best of torchvision, and the only one of timm, whose
            names of networks have the tag of the weights.

    Raises:
        UnknownNameError, ModelError: as in `build`.
        WeightsError: the network has no such weights, or they are not cached and cannot be downloaded.
    """
    from spaces.zoo.normalisation import fold_normalisation

    _check_published(spec)
    if spec.widen != 1:
        raise WeightsError(
            f"published weights are of {spec.name} at its own width, --widen {spec.widen:g} is another; leave one away"
        )
    if spec.name.startswith(timm_nets.PREFIX):
        return timm_nets.pretrained(spec, weights)
    net = build(spec)
    state = net.state_dict()
    for name, tensor in _published_state(spec.name, weights).items():
        if name in state:
            fitted = _average_colours(tensor, state[name].shape)
            state[name] = fitted if fitted.shape == state[name].shape else state[name]
    net.load_state_dict(state)
    if spec.name in _STEMS and spec.input_shape[0] == 3:
        stem = net.get_submodule(_STEMS[spec.name])
        fold_normalisation(stem.get_submodule("conv"), stem.get_submodule("bn"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return net


def published_file(spec: ModelSpec, weights: str = "DEFAULT") -> Path:
    """Return the file in which torchvision or timm keeps these weights after the download.

    Raises:
        WeightsError: the network has no such weights.
    """
    import torch

    _check_published(spec)
    if spec.name.startswith(timm_nets.PREFIX):
        return timm_nets.published_file(spec, weights)
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_published(spec.name, weights).url).name


def _check_published(spec: ModelSpec) -> None:
    if ":" in spec.name or spec.name in CIFAR_NAMES:
        raise WeightsError(f"{spec.name!r} has no published weights; give a file, or none to train it here")


def _published(name: str, chosen: str) -> Any:
    from torchvision.models import get_model_weights

    published = get_model_weights(name)
    weights = getattr(published, chosen, None)
    if weights is None:
        known = f"no weights {chosen} of {name!r}, but {', '.join(published.__members__)}"
        has = known if len(published) else f"no weights for {name!r}"
        raise WeightsError(f"torchvision has {has}; give a file, or none to train it here")
    return weights


def _published_state(name: str, chosen: str) -> dict[str, Any]:
    import torch
    from torchvision.models import get_model

    weights = _published(name, chosen)
    heads = {"aux_logits"} if name in _EXTRA_ARGUMENTS else set()  # the published networks have auxiliary heads
    arguments = {key: value for key, value in _EXTRA_ARGUMENTS.get(name, {}).items() if key not in heads}
    try:
        return get_model(name, weights=weights, **arguments).state_dict()  # type: ignore[no-any-return]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # the last three: a damaged file
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"weights of {name!r} cannot be had from {weights.url} ({reason}); "
            f"put a sound file into {torch.hub.get_dir()}/checkpoints, or give one of your own"
        ) from error


def _average_colours(tensor: "Tensor", shape: "Size") -> "Tensor":
    """Fit the weight of a first convolution over 3 colours to the channels of `shape`; other tensors stay unchanged."""
    if tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.shape[0] != shape[0]:
        return tensor
    return tensor if shape[1] == 3 else tensor.sum(1, keepdim=True).expand(-1, shape[1], -1, -1) / shape[1]


def _torchvision_names() -> list[str]:
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(_NO_CNN)]


def _check_name(name: str) -> None:
    if name.startswith(_NO_CNN):
        raise ModelError(f"{name!r} is a transformer, no CNN; choose a CNN such as convnext_tiny or resnet50")
    if name not in _torchvision_names():
        raise unknown_name("model", name, model_names())


def _check_arguments(spec: ModelSpec) -> None:
    if spec.num_classes < 1:
        raise ModelError(f"{spec.num_classes} classes for {spec.name!r}; give at least 1")
    if len(spec.input_shape) != 3 or min(spec.input_shape) < 1:
        raise ModelError(f"input shape {spec.input_shape} is not (channels, height, width) of at least 1 each")
    if not 0 < spec.widen <= WIDEST:
        raise ModelError(f"--widen {spec.widen:g} of {spec.name!r} must be a factor over 0, at most {WIDEST}")


def _refit_stem(net: "nn.Module", channels: int) -> None:
    from torch import nn

    stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    stem.in_channels = channels
    stem.weight = nn.Parameter(stem.weight.new_empty(len(stem.weight), channels, *stem.weight.shape[2:]))
    stem.reset_parameters()


def _factory(text: str) -> Any:
    try:
        factory = import_code(text)
    except ImportError as error:
        raise ModelError(f"model {text!r}: {error}; write package.module:factory, importable from here") from error
    if not callable(factory):
        raise ModelError(f"model {text!r} is a {type(factory).__name__}; a function that returns a network is needed")
    return factory


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _call_factory(spec: ModelSpec) -> "nn.Module":
    from torch import nn

    factory = _factory(spec.name)
    parameters = _parameters(factory)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    arguments: dict[str, Any] = {"num_classes": spec.num_classes, "input_shape": spec.input_shape}
    if spec.widen != 1:
        if not takes_any and "widen" not in parameters:
            raise ModelError(
                f"model {spec.name!r} takes no argument widen, and --widen scales networks of the zoo alone; give the "
                "factory such an argument, or leave --widen away"
            )
        arguments["widen"] = spec.widen
    given = {key: value for key, value in arguments.items() if takes_any or key in parameters}
    try:
        net = factory(**given)
    except USER_ERRORS as error:
        raise ModelError(f"model {spec.name!r} raised {error!r} when called with {given}; mend the factory") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"model {spec.name!r} returned a {type(net).__name__}; a torch.nn.Module is needed")
    from spaces.zoo.outputs import take_output

    return take_output(net, spec.output)
