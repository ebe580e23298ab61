"""A space without a network, for searches by formula; free of torch, so that a child process starts at once."""

from spaces.cost import CostModel, Form, PolynomialBuilder
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace


def chain(groups: int = 3, width: int = 32, floor: int = 2) -> SearchSpace:
    """A chain of layers: params = sum of width[i] * width[i + 1], flops = 16 times as many."""
    names = [f"layer{i}" for i in range(groups)]
    flops, params = PolynomialBuilder(groups), PolynomialBuilder(groups)
    axes = [Form(3), *[Form(0, ((i, 1),)) for i in range(groups)], Form(10)]
    for left, right in zip(axes, axes[1:], strict=False):
        params.add(1, left, right)
        flops.add(16, left, right)
    model = CostModel(names, [width] * groups, {"flops": flops.build(), "params": params.build()})
    members = tuple(ChannelGroup(name, width, floor, width) for name in names)
    return SearchSpace(members, (), model, {}, (3, 8, 8))
