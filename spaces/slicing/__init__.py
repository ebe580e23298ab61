"""A network that keeps some channels of another one, tensor by tensor, and the layers around these tensors."""

from spaces.slicing.layers import fit_attributes
from spaces.slicing.slicer import KeptIds, Slicer, assign_tensors, rebuilt, sliced

__all__ = ["KeptIds", "Slicer", "assign_tensors", "fit_attributes", "rebuilt", "sliced"]
