"""Drop-path, or stochastic depth: training leaves out residual branches at random. Huang et al., arXiv 1603.09382."""

from torch import nn
from torchvision.ops import StochasticDepth

RATES = {"StochasticDepth": "p", "DropPath": "drop_prob"}  # class, of torchvision and of timm -> its rate
PLACE = "drop_path"  # begins the name under which timm has a DropPath, and an Identity in networks of rate 0


def has_drop_path(net: nn.Module) -> bool:
    """Tell whether a network has places at which branches can be left out."""
    return any(type(module).__name__ in RATES or _empty_places(module) for module in net.modules())


def set_drop_path(net: nn.Module, rate: float) -> None:
    """Set the rates of a network, in place: they rise linearly with the depth, from 0 at the first branch to `rate`.

    Args:
        rate: in [0, 1); 0 leaves the network's own rates.
    """
    if not rate:
        return
    for module in list(net.modules()):
        for name in _empty_places(module):
            setattr(module, name, StochasticDepth(0.0, "row"))
    layers = [module for module in net.modules() if type(module).__name__ in RATES]
    for number, layer in enumerate(layers):
        setattr(layer, RATES[type(layer).__name__], rate * (number / (len(layers) - 1) if len(layers) > 1 else 1.0))


def _empty_places(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if name.startswith(PLACE) and type(child) is nn.Identity]
