"""Checkpoints: a narrow network as safetensors, with its widths and the spec of the dense network it was cut from.

No code is stored and no pickle is read. A checkpoint whose spec is "package.module:factory" names code, which `load`
imports and calls only with `trust=True`; without it, pass the dense network as `model`. A digest shows whether a file
is as it was written; what the header says is held against the tensors (`pruning.header_check`).
"""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pruning.base import LAYERS
from pruning.header_check import check_claims, check_header
from spaces.errors import SpaceError, UnknownNameError, WeightsError
from spaces.files import write_atomically
from spaces.slicing.layers import fit_attributes
from spaces.slicing.sizes import set_sizes, sizes_of
from spaces.slicing.slicer import assign_tensors
from spaces.space import ModelSpec, SizeName
from spaces.widths import Widths
from spaces.zoo import models as zoo

FORMAT = "slimfront-checkpoint-2"
_KEY = "slimfront"  # key of our JSON in the metadata of the safetensors file
_WAY_OUT = "give a model.safetensors that a search wrote"


@dataclass(frozen=True)
class Header:
    """What a checkpoint says about its network.

    Attributes:
        spec: spec of the dense network; None when it was given as a live module.
        widths: width per variable group.
        aliases: name of a tensor that is the same object as another one (tied weights) -> name of the other one.
        layers: module name -> kind and structure, for every layer that is not plain.
        sizes: numbers of channels that modules hold in attributes, where the cut has changed them.
    """

    spec: ModelSpec | None
    widths: Widths
    aliases: Mapping[str, str]
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: Mapping[SizeName, int] = field(default_factory=dict)


def to_bytes(net: nn.Module, spec: ModelSpec | None, widths: Mapping[str, int]) -> bytes:
    """Serialise a narrow network; without the spec of the dense network, `from_bytes` and `load` need `model`."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in _state(net).items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"state {name!r} is a {type(tensor).__name__}; only tensors can be stored")
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
            continue
        names[id(tensor)] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    header: dict[str, Any] = {"format": FORMAT, "spec": _stored(spec), "widths": dict(widths), "aliases": aliases}
    header["layers"] = {
        name: {"kind": module.kind, "structure": dict(module.structure())}
        for name, module in net.named_modules()
        if getattr(module, "kind", None) in LAYERS
    }
    if sizes := sizes_of(net):
        header["sizes"] = [[*name, size] for name, size in sizes.items()]
    header["digest"] = _digest(header, tensors)
    return safetensors.torch.save(tensors, metadata={_KEY: json.dumps(header)})


def _stored(spec: ModelSpec | None) -> list[Any] | None:
    if spec is None:
        return None
    wider = [] if spec.widen == 1 else [spec.widen]  # left away for readers of before there was a factor
    return [spec.name, spec.num_classes, list(spec.input_shape), spec.output, *wider]


def from_bytes(data: bytes, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """Rebuild a network from the bytes that `to_bytes` returned; see `load`."""
    return _rebuild(data, model, trust, "the checkpoint")


def save(path: Path | str, net: nn.Module, spec: ModelSpec | None, widths: Mapping[str, int]) -> None:
    """Write a checkpoint; an existing file is replaced as a whole or not at all.

    Raises:
        WeightsError: the file cannot be written.
    """
    write(path, to_bytes(net, spec, widths))


def write(path: Path | str, data: bytes) -> None:
    """Write the bytes that `to_bytes` returned, as `save` does.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); choose a writable folder") from error


def load(path: Path | str, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """Read a checkpoint as a narrow network on the CPU, in training mode.

    The dense network is built by the stored spec, or copied from `model`, which stays untouched.

    Args:
        trust: whether a "package.module:factory" that the file names may be imported and called.

    Raises:
        WeightsError: the file is missing, corrupt, no checkpoint, or of another network; it names code and is not
            trusted; or its header says what its tensors are not.
    """
    net = _rebuild(read(path), model, trust, str(path))
    if (header := read_header(path)).spec is not None:
        try:
            check_header(net, header.spec, header.widths)
        except WeightsError as error:
            raise WeightsError(f"{path} {error}; {_WAY_OUT}") from error
    return net


def header_of(data: bytes) -> Header:
    """Return the header in the bytes of a checkpoint; raises as `read_header` does."""
    return _header(data, "the checkpoint")


def read_header(path: Path | str) -> Header:
    """Read the header of a checkpoint without building the network.

    Raises:
        WeightsError: the file is missing, corrupt or no checkpoint.
    """
    return _header(read(path), str(path))


def read(path: Path | str) -> bytes:
    """Read the bytes of a file without checking them.

    Raises:
        WeightsError: the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {_WAY_OUT}") from error


def _metadata(data: bytes, source: str) -> dict[str, Any]:
    try:
        length = int.from_bytes(data[:8], "little")
        metadata: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        known = _KEY in metadata
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise WeightsError(f"{source} is corrupt or no safetensors file; {_WAY_OUT}") from error
    if not known:
        raise WeightsError(f"{source} holds weights but not the widths of a narrow network; {_WAY_OUT}")
    return metadata


def _header(data: bytes, source: str) -> Header:
    metadata = _metadata(data, source)
    try:
        header = json.loads(metadata[_KEY])
        if header["format"] != FORMAT:
            raise WeightsError(f"{source} has format {header['format']!r}, this version reads {FORMAT!r}")
        spec = header["spec"]
        built = None if spec is None else ModelSpec(str(spec[0]), int(spec[1]), _shape(spec[2]), *spec[3:])
        sizes = {SizeName(*name): size for *name, size in header.get("sizes", [])}
        return Header(built, Widths(header["widths"]), header["aliases"], header.get("layers", {}), sizes)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, SpaceError) as error:
        raise WeightsError(f"{source} has a damaged header; {_WAY_OUT}") from error


def _shape(sizes: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = sizes
    return int(channels), int(height), int(width)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of a header, without its own digest, and of the names, types, shapes and values of all tensors."""
    described = {name: value for name, value in header.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(data: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a checkpoint.

    Raises:
        WeightsError: they or the header are not as they were written.
    """
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise WeightsError(f"{source} is corrupt ({error}); {_WAY_OUT}") from error
    header = json.loads(_metadata(data, source)[_KEY])
    if header.get("digest") != _digest(header, tensors):
        raise WeightsError(f"{source} was changed or damaged after it was written (its digest differs); {_WAY_OUT}")
    if any(name in tensors or first not in tensors for name, first in header["aliases"].items()):
        raise WeightsError(f"{source} has a damaged header; {_WAY_OUT}")
    return tensors


def _rebuild(data: bytes, model: nn.Module | None, trust: bool, source: str) -> nn.Module:
    header = _header(data, source)
    tensors = _tensors(data, source)
    if model is not None:
        net = copy.deepcopy(model)
    elif header.spec is not None:
        if ":" in header.spec.name and not trust:
            raise WeightsError(
                f"{source} wants to import and call {header.spec.name!r}, code that the file names; pass trust=True "
                "(--trust-code) if you trust it, or the dense network as `model`"
            )
        check_claims(header.spec, tensors, source)
        net = _dense(header.spec)
    else:
        raise WeightsError(f"{source} was cut from a live module; pass that dense network as `model`")
    _restructure(net, header, source)
    _check_names(net, tensors, header, source)
    assign_tensors(net, tensors, header.aliases)
    fit_attributes(net)
    try:
        set_sizes(net, header.sizes)
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{source} holds a size that its network has not ({error}); {_WAY_OUT}") from error
    return net


def _dense(spec: ModelSpec) -> nn.Module:
    if not zoo.is_foreign(spec.name):  # tensors that code of others computes with would have no values
        try:
            with torch.device("meta"):  # weights are replaced anyway: allocate no memory, draw no numbers
                return zoo.build(spec)
        except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
            pass
    with torch.random.fork_rng(devices=[]):
        return zoo.build(spec)


def _restructure(net: nn.Module, header: Header, source: str) -> None:
    """Replace plain layers of the dense network by the checkpoint's layers of other kinds."""
    for name, layer in header.layers.items():
        try:
            built = LAYERS[layer["kind"]].rebuild(net.get_submodule(name), layer["structure"])
        except (AttributeError, KeyError, TypeError, ValueError, UnknownNameError) as error:
            raise WeightsError(f"{source} holds a layer {name!r} that cannot be built ({error}); {_WAY_OUT}") from error
        net.set_submodule(name, built)


def _check_names(net: nn.Module, tensors: Mapping[str, Tensor], header: Header, source: str) -> None:
    expected = {name: tensor.ndim for name, tensor in _state(net).items()}
    found = {name: tensor.ndim for name, tensor in tensors.items()}
    found |= {name: found[first] for name, first in header.aliases.items() if first in found}
    kept = net.state_dict(keep_vars=True).keys() | found.keys()  # older files lack the buffers that are not saved
    wrong = sorted(name for name in kept if expected.get(name) != found.get(name))
    if wrong:
        raise WeightsError(
            f"{source} does not belong to this network: {len(wrong)} tensors differ, the first is {wrong[0]!r}; "
            "build the network it was cut from"
        )


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Return everything that a network computes with: its state, and the buffers that `state_dict` leaves out."""
    return dict(net.named_buffers()) | net.state_dict(keep_vars=True)
