"""A forward pass with a recorder watching, who is told which layer runs."""

from typing import Any

from torch import Tensor, nn

from spaces.tracing.labels import ChannelLabels
from spaces.tracing.recording import Recorder


def record(model: nn.Module, image: Tensor, labels: ChannelLabels) -> Recorder:
    """Run one forward pass of a meta-device network and return what was observed.

    Args:
        model: in eval mode, on the meta device.
        image: shape (1, C, H, W), on the meta device.
    """
    return recording(Recorder(model, labels), model, image)


def recording(recorder: Recorder, model: nn.Module, image: Tensor) -> Recorder:
    """Run one forward pass under a recorder of the network, see `record`; image of shape (N, C, H, W)."""
    stack: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)
            recorder.layer = name

        def after(_module: nn.Module, _args: Any, _out: Any) -> None:
            stack.pop()
            recorder.layer = stack[-1] if stack else ""

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        recorder.enter(image, "input image")
        with recorder:
            recorder.leave(model(image), "network output")
    finally:
        for handle in handles:
            handle.remove()
    return recorder
