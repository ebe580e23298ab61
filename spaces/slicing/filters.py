"""The filters of a weight, wherever its tensor has them.

A convolution and a linear layer hold (outputs, inputs, ...), a transposed convolution (inputs, outputs, ...). Whatever
reads or changes channels of a weight does so through `as_filters`, and then dimension 0 are the outputs and dimension 1
the inputs, as in `SearchSpace.axes`.
"""

from torch import Tensor

from spaces.space import SearchSpace


def as_filters(space: SearchSpace, name: str, tensor: Tensor) -> Tensor:
    """Return a view of the tensor of that name, or of its gradient, with the outputs of its layer first."""
    return tensor.transpose(0, 1) if name in space.transposed else tensor


def as_stored(space: SearchSpace, name: str, filters: Tensor) -> Tensor:
    """Return filters as the tensor of that name holds them; the reverse of `as_filters`."""
    return filters.transpose(0, 1).contiguous() if name in space.transposed else filters
