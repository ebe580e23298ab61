"""What all workers of a search need, sent once to every node: a pickle, and large tensors that Ray shares."""

import io
import pickle
import warnings
from typing import Any, NamedTuple

import ray
import torch
from typing_extensions import override

from runners.base import RunnerError

SHARED_BYTES = 1 << 20  # of a tensor that the workers of a node share
_NUMPY = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


class Shared(NamedTuple):
    """What all workers need, as a pickle and the arrays of its tensors: the workers of a node share these arrays."""

    pickled: bytes
    arrays: list[Any]


def pickled(content: Any) -> Shared:
    """Return what all workers need in a form that Ray can share; raise a RunnerError where it cannot be sent."""
    arrays: list[Any] = []
    buffer = io.BytesIO()
    try:
        _TensorPickler(buffer, arrays).dump(content)  # type: ignore[no-untyped-call]
    except (TypeError, pickle.PicklingError, AttributeError) as error:
        raise RunnerError(
            f"the images or the network cannot be sent to workers ({error}); take --runner local, or open "
            "files when an image is read"
        ) from error
    return Shared(buffer.getvalue(), arrays)


class _TensorPickler(ray.cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles large tensors of a processor beside the pickle, as arrays that Ray maps into every worker of a node."""

    def __init__(self, file: io.BytesIO, arrays: list[Any]) -> None:
        super().__init__(file, protocol=5)  # type: ignore[no-untyped-call]
        self._arrays = arrays

    @override
    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.nbytes < SHARED_BYTES:
            return None
        if obj.requires_grad or not obj.is_contiguous() or obj.layout is not torch.strided or obj.dtype not in _NUMPY:
            return None
        self._arrays.append(obj.numpy())
        return len(self._arrays) - 1


def unpickled(shared: Shared) -> Any:
    """Return what `pickled` took; its large tensors are read-only."""

    class Unpickler(pickle.Unpickler):
        @override
        def persistent_load(self, pid: int) -> torch.Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the array cannot be written to, and nothing writes to images
                return torch.from_numpy(shared.arrays[pid])

    return Unpickler(io.BytesIO(shared.pickled)).load()
