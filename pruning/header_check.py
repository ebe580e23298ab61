"""What the header of a checkpoint says about its network, held against the tensors of the file."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spaces.errors import WeightsError
from spaces.space import ModelSpec

LARGEST_SIDE = 65_536  # of an image, in pixels or channels
TRIED_ELEMENTS = 2**24  # of an image that is passed through a network for real


def check_claims(spec: ModelSpec, tensors: Mapping[str, Tensor], source: str) -> None:
    """Check, before a network is built, that the sizes which a header claims can be those of its tensors.

    Raises:
        WeightsError: more classes than the file has numbers, or images of impossible sides.
    """
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if not 1 <= spec.num_classes <= max(1, numbers):
        raise WeightsError(f"{source} claims {spec.num_classes} classes and holds {numbers} numbers; it was changed")
    if not all(1 <= side <= LARGEST_SIDE for side in spec.input_shape):
        raise WeightsError(f"{source} claims images of {spec.input_shape}, which cannot be; it was changed")


def check_header(net: nn.Module, spec: ModelSpec, widths: Mapping[str, int]) -> None:
    """Check that a network made of the tensors of a file is the one that its header describes.

    Raises:
        WeightsError: a group wider than the layer that it is named after, layers that do not fit each other or the
            images, or fewer outputs than classes. The message goes on after the name of the file.
    """
    layers = dict(net.named_modules())
    for group, width in widths.items():
        channels = _channels(layers.get(group))
        if channels is not None and width > channels:
            raise WeightsError(f"claims {width} channels of {group!r}, which has {channels}")
    outputs = _outputs(net, spec)
    if outputs is not None and outputs < spec.num_classes:
        raise WeightsError(f"claims {spec.num_classes} classes and gives {outputs} outputs")


def _channels(layer: nn.Module | None) -> int | None:
    """Return the output channels of a layer; None where its kind has no such number."""
    for name in ("out_channels", "out_features", "num_features"):
        if isinstance(size := getattr(layer, name, None), int):
            return size
    return None


def _outputs(net: nn.Module, spec: ModelSpec) -> int | None:
    """Return the outputs of a network for one image; None for one that cannot be told without much memory.

    Tensors without values take no memory; a network that computes with values gets an image of zeros.
    """
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            output = _output(net, spec)
    finally:
        net.train(was_training)
    return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim > 1 else None


def _output(net: nn.Module, spec: ModelSpec) -> object:
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    try:
        empty = {name: tensor.to("meta") for name, tensor in state.items()}
        return functional_call(net, empty, (torch.empty(1, *spec.input_shape, device="meta"),))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
        image = torch.empty(1, *spec.input_shape, device="meta")
        if image.numel() > TRIED_ELEMENTS:
            return None
    try:
        return net(torch.zeros(1, *spec.input_shape))
    except Exception as error:  # of whatever kind the layers of a user raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"holds layers that do not fit each other or images of {spec.input_shape} ({reason})"
        ) from error
