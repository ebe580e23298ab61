"""Recording of one forward pass: the flow of the channels, every operation that fvcore counts, and all tensors.

The pass runs on a copy of the network; how channels pass through a function is told in `spaces.tracing.following`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves
from typing_extensions import override

from spaces.counting import TensorLives
from spaces.errors import TraceError
from spaces.tracing.following import ChannelFollower
from spaces.tracing.labels import ChannelLabels, Ids
from spaces.tracing.operations import VALUES, Flow, RecordedTensor, Step
from spaces.tracing.sizes import remembered_sizes

MOST_STEPS = 200_000  # a deeper network is taken for one that never ends


class Recorder(ChannelFollower, TorchFunctionMode):
    """Follows channels through every torch function of a forward pass, and lists these functions.

    Args:
        model: every dimension of its parameters and buffers is an axis.
        labels: gives the channel ids and takes their relations.
    """

    def __init__(self, model: nn.Module, labels: ChannelLabels) -> None:
        ChannelFollower.__init__(self, model, labels)
        TorchFunctionMode.__init__(self)
        self.steps: list[Step] = []
        self.values: list[str] = []  # layers that read Python values from tensors
        self.layer_inputs: dict[str, list[Ids]] = {}  # layer -> channel ids of the activations that enter it
        self.lives: TensorLives | None = None  # of the tensors of the counted pass
        self.channels_of: dict[int, Ids] = {}  # number in `lives` -> channel ids of a tensor

    def enter_layer(self, name: str, inputs: Any) -> None:
        """Note that a layer begins, and the activations that enter it."""
        self._layers.append(name)
        flows = [flow for leaf in tree_leaves(inputs) if (flow := self._flow(leaf)) is not None]
        self.layer_inputs.setdefault(name, []).extend(flow.ids for flow in flows)

    def leave_layer(self) -> None:
        """Note that the innermost layer has ended."""
        self._layers.pop()

    def enter(self, tensor: Tensor, reason: str) -> None:
        """Give an input image channels that can never be cut."""
        ids = self.labels.fresh(tensor.shape[1])
        self.labels.fix(ids, reason)
        self._set(tensor, Flow(1, ids))

    def leave(self, output: Any, reason: str) -> None:
        """Fix the channels of the network's outputs."""
        for tensor in tree_leaves(output):
            flow = self._flow(tensor)
            if flow is not None:
                self.labels.fix(flow.ids, reason)

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        flows = [flow for leaf in tree_leaves([args, kwargs]) if (flow := self._flow(leaf)) is not None]
        entering = [flow.ids for flow in flows]
        made = len(self.lives.sizes) if self.lives is not None else 0
        out = func(*args, **kwargs)
        if name in VALUES:
            self.values.append(self.layer)
        if is_step(name, out):
            self._reads, self._normalises, self._text = None, False, name
            self._follow(func, name, args, kwargs, out)
            self._note_step(name, entering, out)
            self._note_tensors(made, flows, out)
        return out

    def _note_tensors(self, first: int, entering: list[Flow], out: Any) -> None:
        """Note the channels of the tensors that a function has made, `first` and later ones.

        Tensors inside the function have no flow; one that is as long as an activation along its axis of channels is
        taken to have these channels, which the proof checks.
        """
        if not self.counting or self.lives is None:
            return
        leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        leaving = [(leaf, flow) for leaf in leaves if (flow := self._flow(leaf)) is not None]
        for leaf, flow in leaving:
            number = self.lives.number(leaf)
            if number is not None and leaf.numel() * leaf.element_size() == self.lives.sizes[number]:
                self.channels_of.setdefault(number, flow.ids)
        for number in range(first, len(self.lives.sizes)):
            shape = self.lives.shapes[number]
            for flow in (*(flow for _, flow in leaving), *entering):
                if number not in self.channels_of and shape[flow.axis : flow.axis + 1] == (len(flow.ids),):
                    self.channels_of[number] = flow.ids

    def _note_step(self, name: str, entering: list[Ids], out: Any) -> None:
        if not self.counting:
            return
        if len(self.steps) >= MOST_STEPS:
            raise TraceError(
                f"the forward pass has not ended after {MOST_STEPS:,} operations; it stood in {self.layer or 'the net'}"
            )
        leaves, structure = tree_flatten(out)
        if all(leaf in self._origins for leaf in leaves if isinstance(leaf, Tensor)):
            entering = []  # no activation
        recorded = tuple(
            RecordedTensor(tuple(leaf.shape), leaf.dtype, self._flow(leaf)) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        step = Step(name, self._text, self.layer, tuple(entering), recorded, structure, self._reads, self._normalises)
        self.steps.append(step)


def is_step(name: str, out: Any) -> bool:
    """Return whether a torch function is a step of a forward pass: whether it gives tensors, or changes one."""
    return name == "__setitem__" or any(isinstance(leaf, Tensor) for leaf in tree_leaves(out))


@contextmanager
def following_layers(
    model: nn.Module, enter: Callable[[str, Any], None], leave: Callable[[], object]
) -> Iterator[None]:
    """Call `enter(name, inputs)` and `leave()` around the forward pass of every module of a network."""
    handles = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            enter(name, (args, kwargs))

        def after(_module: nn.Module, _args: Any, _out: Any) -> None:
            leave()

        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Give the attributes of all modules back what they held, so that nothing that a pass has cached stays behind."""
    held = [(module, {name: _copied(value) for name, value in _own(module).items()}) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in held:
            for name in _own(module):
                del vars(module)[name]
            vars(module).update(attributes)


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that torch does not manage."""
    return {name: value for name, value in vars(module).items() if name not in _MANAGED}


def _copied(value: Any) -> Any:
    return type(value)(value) if type(value) in (dict, list, set) else value


_MANAGED = set(vars(nn.Module()))


def record_forward(recorder: Recorder, model: nn.Module, image: Tensor) -> Recorder:
    """Run one forward pass under a recorder of the same network, and return the recorder.

    Args:
        model: the network whose channels the recorder follows, in eval mode unless its training is recorded.
        image: shape (N, C, H, W).
    """
    lives = TensorLives(image) if recorder.counting else None
    recorder.lives = lives or recorder.lives
    layers = following_layers(model, recorder.enter_layer, recorder.leave_layer)
    with layers, kept_attributes(model), remembered_sizes(model), lives or nullcontext():
        recorder.enter(image, "input image")
        with recorder:
            output = model(image)
            recorder.leave(output, "network output")
    if lives is not None:
        lives.end(output)
    return recorder
