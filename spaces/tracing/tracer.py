"""Tracing: makes the SearchSpace of a network from an example image, and proves it.

A forward pass is recorded (`recording`), the groups and the cost model follow from it (`channels`), and narrow networks
are then run beside the dense one (`proof`): channels for which the claim does not hold are fixed, with the reason.
"""

import copy
import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spaces.counting import count_by_layer
from spaces.errors import SlimfrontError, TraceError
from spaces.space import ModelSpec, SearchSpace, SpaceConfig
from spaces.tracing.channels import Channels
from spaces.tracing.labels import ChannelLabels
from spaces.tracing.proof import Fault, activations_agree, faults_of, with_distinct_channels
from spaces.tracing.recording import Recorder, kept_attributes, record_forward
from spaces.zoo.outputs import taken_output

MOST_ROUNDS = 50  # of fixing what the proof found; each finds all faults up to the first that stops the network

_log = logging.getLogger(__name__)


def trace(
    model: nn.Module,
    example_input: Tensor,
    config: SpaceConfig | None = None,
    spec: ModelSpec | None = None,
    alignment: int = 1,
) -> SearchSpace:
    """Find the channel groups of a network, and its cost as a function of their widths.

    The result is proved before it is returned: at random widths the sliced network gives what the dense one gives with
    the removed channels masked, costs what the cost model says and takes a training step, and another one does so after
    it was put together again from its tensors. Groups for which this does not hold are fixed, with the reason.

    Args:
        model: any convolutional network; it is not changed.
        example_input: images, shape (N, C, H, W), of which only the shape of one matters.
        config: bounds of the space; None takes the defaults.
        spec: builds the network again; stored in the space.
        alignment: see `SearchSpace.restrict`.

    Raises:
        TraceError: the network cannot be followed, or nothing may vary; the message names the layer.
        SpaceError: a setting of `config` is not legal.
    """
    _check_tensors(model)
    with _explained("a copy of it"):
        twin = copy.deepcopy(model).cpu().float().eval()
    image = torch.randn(1, *example_input.shape[1:], generator=torch.Generator().manual_seed(0))
    recorder = _recorded(twin, image)
    space = _proved(recorder, twin, image, spec).restrict(config or SpaceConfig(), alignment)
    return dataclasses.replace(space, output=taken_output(twin))


def _check_tensors(model: nn.Module) -> None:
    """Refuse weights that have no values yet, or that are computed before every forward pass."""
    for name, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
            raise TraceError(f"layer {name!r} is lazy and has no weights yet; run one image through the network first")
        if parametrize.is_parametrized(module):
            raise TraceError(
                f"layer {name!r} computes its weight from others (a parametrization); fold it with "
                "torch.nn.utils.parametrize.remove_parametrizations before the search"
            )
        hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
        for hook in ("WeightNorm", "SpectralNorm"):
            if hook in hooks:
                raise TraceError(
                    f"layer {name!r} computes its weight from others ({hook}); fold it with "
                    f"torch.nn.utils.remove_{'weight' if hook == 'WeightNorm' else 'spectral'}_norm before the search"
                )


def _recorded(twin: nn.Module, image: Tensor) -> Recorder:
    """Record the forward pass, and that of training too where some layers run in training only."""
    recorder = Recorder(twin, ChannelLabels())
    entered = recorder.layer_inputs
    with torch.no_grad(), _explained("forward pass of one image"):
        record_forward(recorder, twin, image)
    if recorder.values:
        _log.warning(
            "%s reads values of tensors in Python; channels are followed along the path that one image took",
            recorder.values[0] or "the network",
        )
    unused = [name for name, module in twin.named_modules() if name not in entered and list(module.parameters())]
    if unused:
        recorder.counting = False
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                record_forward(recorder, twin.train(), torch.cat([image, image.flip(0)]))
        except Exception as error:  # a network for evaluation alone
            _log.info("the forward pass in training mode failed: %s", error)
        twin.eval()
    return recorder


@contextmanager
def _explained(step: str) -> Iterator[None]:
    try:
        yield
    except SlimfrontError:
        raise
    except Exception as error:  # the network may raise anything; the message must name the place
        text = " ".join(str(error).split())[:300]
        raise TraceError(f"the network cannot be traced: {step} failed with {type(error).__name__}: {text}") from error


def _counted(net: nn.Module, image: Tensor) -> dict[str, int]:
    with _explained("fvcore's count"), kept_attributes(net):
        return count_by_layer(net, (int(image.shape[1]), int(image.shape[2]), int(image.shape[3])))


def _space(
    recorder: Recorder, image: Tensor, spec: ModelSpec | None, counts: dict[str, int]
) -> tuple[SearchSpace, Channels]:
    """Return the space that follows from a recording and what has been fixed so far, and the channels of its ids."""
    channels = Channels(recorder, recorder.labels)
    groups = channels.groups()
    axes, sizes = channels.axes(), channels.sizes()
    cost_model = channels.cost_model(groups, counts[""])
    space = SearchSpace(
        groups=tuple(groups),
        layers_fixed=tuple(channels.fixed_layers(groups)),
        cost_model=cost_model.fix({group.name: group.width for group in groups if group.fixed}),
        axes=axes,
        input_shape=(int(image.shape[1]), int(image.shape[2]), int(image.shape[3])),
        spec=spec,
        grouped={layer.name: layer.groups for layer in recorder.grouped if layer.name in axes},
        sizes={name: ids for name, ids in sizes.items() if (ids >= 0).any()},
        layers=channels.layers(),
    )
    return space, channels


def _check_variable(space: SearchSpace) -> None:
    if not space.variable:
        reasons = "; ".join(sorted({f"{group.name}: {group.fixed}" for group in space.groups})[:3])
        raise TraceError(f"no layer of this network can be narrowed ({reasons}); see --model for networks that can")


def _proved(recorder: Recorder, twin: nn.Module, image: Tensor, spec: ModelSpec | None) -> SearchSpace:
    """Return the space in which every claim holds; what does not hold is fixed, one round after another."""
    counts = _counted(twin, image)
    space, channels = _space(recorder, image, spec, counts)
    _check_variable(space)
    net = twin if recorder.values else with_distinct_channels(twin, space.axes)
    for seed in range(MOST_ROUNDS):
        faults = faults_of(space, recorder, net, counts, seed)
        if not faults and not activations_agree(space, net, seed):
            _log.info("the peak of the activations does not follow from the widths, so no budget can limit it")
            return dataclasses.replace(space, cost_model=space.cost_model.without("activations"))
        if not faults:
            return space
        for fault in faults:
            _fix(recorder, channels, space, fault)
        space, channels = _space(recorder, image, spec, counts)
        _check_variable(space)
    raise TraceError(
        f"narrow networks still differ from the dense one after {MOST_ROUNDS} rounds of fixing layers; "
        f"the proof stood at: {faults[0].reason}"
    )


def _fix(recorder: Recorder, channels: Channels, space: SearchSpace, fault: Fault) -> None:
    """Fix the first channels under suspicion that may still vary.

    Raises:
        TraceError: there are none.
    """
    for ids in fault.suspects:
        if channels.vary(ids, space):
            recorder.labels.fix(ids, fault.reason)
            return
    raise TraceError(f"the network cannot be narrowed: {fault.reason}")
