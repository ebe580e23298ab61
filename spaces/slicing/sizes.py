"""Sizes that modules hold in attributes beside their tensors, such as the width of the parts of a split.

A module that was cut names those of its sizes that were set, so that a checkpoint can hold them.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from spaces.space import SizeName

_MARK = "_sizes_of_the_cut"  # attribute of a module: (attribute, place) of the sizes that were set


def set_sizes(net: nn.Module, sizes: Mapping[SizeName, int]) -> None:
    """Set, in place, sizes in the attributes of modules.

    Raises:
        ValueError: a module has no whole number there, or a size is none above 0.
    """
    for name, size in sizes.items():
        module = net.get_submodule(name.module)
        held: Any = vars(module).get(name.attribute)
        numbers = list(held) if type(held) in (tuple, list) else [held]
        place = name.place or 0
        listed = name.place is not None and not isinstance(held, int)
        fits = listed or name.place is None
        if not fits or place >= len(numbers) or type(numbers[place]) is not int or type(size) is not int or size < 1:
            raise ValueError(f"{name.module}.{name.attribute} is {held!r} and cannot hold {size!r} channels")
        numbers[place] = size
        value = type(held)(numbers) if listed else size
        setattr(module, name.attribute, value)
        setattr(module, _MARK, tuple(dict.fromkeys((*getattr(module, _MARK, ()), (name.attribute, name.place)))))


def sizes_of(net: nn.Module) -> dict[SizeName, int]:
    """Return the sizes that cuts have set in a network."""
    sizes: dict[SizeName, int] = {}
    for path, module in net.named_modules():
        for attribute, place in getattr(module, _MARK, ()):
            held = getattr(module, attribute)
            sizes[SizeName(path, attribute, place)] = held if place is None else held[place]
    return sizes
