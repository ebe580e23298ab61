"""The auto-balanced regulariser: it moves energy from the channels to be cut to the others while the network trains.

Ding et al., Auto-Balanced Filter Pruning, AAAI 2018; equation numbers as a third party's code quotes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from pruning.criteria.weights import NORMS
from spaces.slicing.filters import as_filters, as_stored
from spaces.space import SearchSpace

LEAST_RATIO = 1e-8  # of importance to threshold; keeps the factor of a dead filter under 19.5


def balance_factors(importance: Tensor, kept: Tensor, conv_groups: int = 1) -> Tensor:
    """Return lambda of every channel, shape (channels,): positive for weak channels, negative for strong ones.

    Equation 6: lambda is 1 + log(theta / M) for weak channels and -1 - log(M / theta) for strong ones, with theta the
    smallest importance among the strong channels. Its magnitude is at least 1 and grows with the distance from theta.

    Args:
        importance: M >= 0, shape (channels,); in a conv group, no weak channel is above a strong one.
        kept: indices of the strong channels, at least one in every conv group.
        conv_groups: number of equally large parts of the channels, each of which has its own theta.
    """
    strong = torch.zeros(len(importance), dtype=torch.bool)
    strong[kept] = True
    strong, measured = strong.reshape(conv_groups, -1), importance.double().reshape(conv_groups, -1)
    measured = measured.clamp_min(torch.finfo(torch.float64).tiny)
    threshold = measured.where(strong, torch.inf).amin(dim=1, keepdim=True)
    distance = (measured / threshold).clamp(LEAST_RATIO, 1 / LEAST_RATIO).log()
    return torch.where(strong, -1 - distance, 1 - distance).flatten()


class AutoBalance:
    """The auto-balanced regulariser as a `StepHook`: it adds its gradient to the gradients of the task.

    Every tensor of a group has a term alpha * S(P) + tau * S(R), where S is the sum of lambda_j ||F_j||^2 over its weak
    filters P or its strong filters R, and tau = -alpha * S(P) / S(R) is computed anew at every step (equations 12 and
    13). The gradient treats tau as a constant: 2 alpha lambda_j F_j shrinks weak filters, and 2 tau lambda_j F_j grows
    strong filters by the same energy. If all strong filters are zero, tau is 0.

    The host never waits for the device. The net must stay on the device that it was on at construction.

    Args:
        net: the network that is trained.
        space: of `net` at its current widths.
        factors: group name -> lambda of shape (group.width,); other groups are not balanced.
        alpha: strength of the regulariser for weak filters.
        scales: include the scales of normalisation layers, as filters of one weight each, and let the biases of weak
            channels decay; without it, a BatchNorm compensates for the energy that its filter loses.
    """

    def __init__(
        self, net: nn.Module, space: SearchSpace, factors: Mapping[str, Tensor], alpha: float, scales: bool = True
    ) -> None:
        self.alpha = alpha
        self._space = space
        self._kernels: dict[str, nn.Parameter] = {}
        self._vectors: list[nn.Parameter] = []
        rows: tuple[list[Tensor], list[Tensor]] = [], []
        owner, table = _tables(space, factors)
        for name, parameter in _balanced(net, space, scales):
            ids = space.axes[name][0]
            values, owners = table[ids], owner[ids]
            if not values.any():
                continue
            kernel = parameter.ndim > 1
            if not kernel and not _is_scale(net, name):
                values = values.clip(min=0)  # a bias only decays: a larger one would not strengthen its filter
            if kernel:
                self._kernels[name] = parameter
            else:
                self._vectors.append(parameter)
            rows[0 if kernel else 1].append(torch.stack([torch.as_tensor(values), torch.as_tensor(owners).double()]))
        self._arrange([*rows[0], *rows[1]])

    def _arrange(self, rows: list[Tensor]) -> None:
        """Arrange the filters of all tensors in one row, and number the terms that they belong to."""
        parameters = [*self._kernels.values(), *self._vectors]
        self._lengths = [row.shape[1] for row in rows]
        if not parameters:
            return
        device, dtype = parameters[0].device, torch.promote_types(parameters[0].dtype, torch.float32)
        tensor_of = torch.repeat_interleave(torch.arange(len(parameters)), torch.tensor(self._lengths))
        factors, owners = torch.cat(rows, dim=1)
        terms, self._term = torch.unique(tensor_of * (len(self._space.groups) + 1) + owners.long(), return_inverse=True)
        order, counts = torch.argsort(self._term, stable=True), torch.bincount(self._term)
        # Shape (terms, filters of the largest term): sums of padded rows are one operation, always in the same order.
        members = torch.full((len(terms), int(counts.max())), len(factors))
        members[torch.arange(members.shape[1]) < counts[:, None]] = order
        self._members, self._term = members.to(device), self._term.to(device)
        self._factors = factors.to(device, dtype)
        self._weak = (self._factors > 0).to(dtype)
        lengths = zip(self._kernels.items(), self._lengths, strict=False)
        ones = {name: torch.ones(length, *[1] * (kernel.ndim - 1)) for (name, kernel), length in lengths}
        self._shapes = [as_stored(self._space, name, one).shape for name, one in ones.items()]

    def __call__(self, _net: nn.Module, _step: int) -> None:
        """Add the regulariser's gradient to every gradient that is set."""
        if not self._lengths:
            return
        with torch.no_grad():
            energies = self._energies()
            pieces = self._coefficients(energies).split(self._lengths)
            kernels = len(self._kernels)
            views = [piece.view(shape) for piece, shape in zip(pieces[:kernels], self._shapes, strict=True)]
            parameters, factors = [*self._kernels.values(), *self._vectors], [*views, *pieces[kernels:]]
            triples = [
                (parameter.grad, parameter, coefficient)
                for parameter, coefficient in zip(parameters, factors, strict=True)
                if parameter.grad is not None
            ]
            if triples:
                gradients, weights, coefficients = (list(column) for column in zip(*triples, strict=True))
                torch._foreach_addcmul_(gradients, weights, coefficients)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return alpha S(P) and tau S(R) of every tensor of every group, both of shape (terms,)."""
        with torch.no_grad():
            weak, strong, tau = self._sums(self._energies())
            return self.alpha * weak, tau * strong

    def raise_alpha(self, alpha: float) -> None:
        """Strengthen the regulariser to at least `alpha`."""
        self.alpha = max(self.alpha, alpha)

    def weak_share(self) -> float:
        """Return the share of the energy (squared norm) that weak channels hold, a mean over terms; 0 without terms."""
        if not self._lengths:
            return 0.0
        with torch.no_grad():
            energies = self._energies()
            weak, total = self._summed(energies * self._weak), self._summed(energies)
            balanced = self._summed(self._factors.clamp_max(0)) < 0  # not the terms of biases
            divided = balanced & (self._summed(self._weak) > 0)
            shares = (weak / total.clamp_min(torch.finfo(total.dtype).tiny))[divided]
            return float(shares.mean()) if len(shares) else 0.0

    def _energies(self) -> Tensor:
        """Return the squared norm of every filter, scale and bias, shape (rows,), at least float32."""
        dtype = self._factors.dtype
        filters = [as_filters(self._space, name, kernel) for name, kernel in self._kernels.items()]
        norms = [torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), dtype=dtype) for w in filters]
        return torch.cat([*norms, *(vector.to(dtype) for vector in self._vectors)]).square()

    def _summed(self, values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(1)])[self._members].sum(dim=1)

    def _sums(self, energies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return S(P), S(R) and tau of every term."""
        weighted = torch.cat([energies * self._factors, energies.new_zeros(1)])[self._members]
        weak, strong = weighted.clamp_min(0).sum(dim=1), weighted.clamp_max(0).sum(dim=1)
        tau = torch.where(strong < 0, self.alpha * weak / -strong, 0.0)
        return weak, strong, tau

    def _coefficients(self, energies: Tensor) -> Tensor:
        """Return the ratio of each filter's gradient to the filter itself, shape (rows,)."""
        _, _, tau = self._sums(energies)
        strength = torch.where(self._factors > 0, self.alpha, tau[self._term])
        coefficients: Tensor = self._factors * (2 * strength)
        return coefficients


def _tables(space: SearchSpace, factors: Mapping[str, Tensor]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return arrays from channel id to the index of its group and to its factor; the last entries belong to id -1."""
    last = space.groups[-1]
    owner = np.full(last.start + last.width + 1, len(space.groups), dtype=np.int64)
    table = np.zeros(len(owner), dtype=np.float64)
    for index, group in enumerate(space.groups):
        channels = slice(group.start, group.start + group.width)
        owner[channels] = index
        if group.name in factors:
            table[channels] = factors[group.name].cpu().double().numpy()
    return owner, table


def _balanced(net: nn.Module, space: SearchSpace, scales: bool) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and 0 in space.axes.get(name, {}) and (scales or parameter.ndim > 1):
            yield name, parameter


def _is_scale(net: nn.Module, name: str) -> bool:
    module, _, field = name.rpartition(".")
    return field == "weight" and isinstance(net.get_submodule(module), NORMS)


def normalised_layers(net: nn.Module, space: SearchSpace) -> list[str]:
    """Return the names of the convolutions whose output a BatchNorm reads.

    The norm of their filters does not change the output of the BatchNorm. Two blank images run through the net in eval
    mode, to find these layers.
    """
    outputs: list[tuple[Tensor, str]] = []  # holds the tensors, so that no other gets their memory
    found: list[str] = []

    def record_output(module: nn.Module, name: str, output: Any) -> None:
        if isinstance(module, _ConvNd):
            outputs.append((output, name))

    def match_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm):
            found.extend(name for output, name in outputs if output is inputs[0])

    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(match_input))
        handles.append(module.register_forward_hook(lambda m, _, output, name=name: record_output(m, name, output)))
    modes = [(module, module.training) for module in net.modules()]
    weight = next(net.parameters())
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(2, *space.input_shape, dtype=weight.dtype, device=weight.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


@torch.no_grad()
def restore_norms(net: nn.Module, before: nn.Module, space: SearchSpace, layers: Iterable[str]) -> None:
    """Give every filter of these layers, in place, the norm that it has in `before`, a net of equal shapes.

    Balancing moves energy from weak to strong filters. In front of a BatchNorm, a larger norm leaves the output as it
    is but slows the change of a filter's direction, by the square of the norm; the old norms restore the speed.
    BatchNorm statistics must be re-estimated afterwards.

    Args:
        space: of the network, or of a wider one that it was cut from.
    """
    for name in (space.layers[layer].weight for layer in layers):
        filters, old = (as_filters(space, name, one.get_parameter(name)) for one in (net, before))
        norms, wanted = filters.flatten(1).norm(dim=1), old.flatten(1).norm(dim=1)
        factors = torch.where((norms > 0) & (wanted > 0), wanted / norms, 1.0)
        filters.mul_(factors.view(-1, *[1] * (filters.ndim - 1)))
