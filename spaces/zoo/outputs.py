"""One output of a network that gives several, such as a dict of maps or a tuple with auxiliary logits."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spaces.errors import ModelError


class OneOutput:
    """A forward hook that lets a network give one tensor; `taken` says which, once it was chosen among several.

    Args:
        choice: name or index of the output; empty takes the first tensor.
    """

    def __init__(self, choice: str) -> None:
        self.choice = choice
        self.taken = ""

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        """Return the chosen output; a single tensor is returned as it is.

        Raises:
            ModelError: there is no such output, or it is no tensor.
        """
        if isinstance(output, Tensor):
            return output
        named = _named(output)
        chosen = self._choose(output, named)
        if not isinstance(chosen, Tensor):
            raise ModelError(
                f"--output {self.choice!r} of the network is a {type(chosen).__name__}; its outputs are "
                f"{', '.join(named) or f'one {type(output).__name__}'}, give the name or index of a tensor"
            )
        name = next((name for name, value in named.items() if value is chosen), "the first tensor")
        self.taken = f"output {name} of {', '.join(named)}" if named else name
        return chosen

    def _choose(self, output: Any, named: Mapping[str, Any]) -> Any:
        if not self.choice:
            return next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if self.choice in named:
            return named[self.choice]
        values = list(named.values())
        index = int(self.choice) if self.choice.removeprefix("-").isdigit() else len(values)
        return values[index] if -len(values) <= index < len(values) else None


def _named(output: Any) -> dict[str, Any]:
    """Return the outputs by name, or by index where they have none."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "_fields"):
        return {name: getattr(output, name) for name in output._fields}
    if isinstance(output, Sequence):
        return {str(index): value for index, value in enumerate(output)}
    return {name: value for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)}


def take_output(net: nn.Module, choice: str) -> nn.Module:
    """Let a network, in place, give one of its outputs; return it."""
    net.register_forward_hook(OneOutput(choice))
    return net


def taken_output(net: nn.Module) -> str:
    """Return which output was taken of several in the last forward pass; empty for a network that gives one tensor."""
    return next((hook.taken for hook in net._forward_hooks.values() if isinstance(hook, OneOutput)), "")
