"""Energy moved from the channels that will go to those that will stay, while the network trains.

Ding et al., Auto-Balanced Filter Pruning, AAAI 2018; equation numbers are the paper's.
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
from spaces.space import SearchSpace

LEAST_RATIO = 1e-8  # of an importance to the threshold: a dead filter's factor stays under 19.5


def balance_factors(importance: Tensor, kept: Tensor, conv_groups: int = 1) -> Tensor:
    """Return lambda of every channel (equation 6): positive for those that go, negative for those that stay.

    1 + log(theta / M) for weak channels and -1 - log(M / theta) for strong ones, where theta is the least
    importance among the strong; so its magnitude is at least 1 and grows with the distance from the threshold.

    Args:
        importance: M >= 0, shape (channels,); no weak channel above a strong one of its block.
        kept: indices of the strong channels, at least one in every block.
        blocks: equal runs of channels that have a threshold each.
    """
    strong = torch.zeros(len(importance), dtype=torch.bool)
    strong[kept] = True
    strong, measured = strong.reshape(conv_groups, -1), importance.double().reshape(conv_groups, -1)
    measured = measured.clamp_min(torch.finfo(torch.float64).tiny)
    threshold = measured.where(strong, torch.inf).amin(dim=1, keepdim=True)
    distance = (measured / threshold).clamp(LEAST_RATIO, 1 / LEAST_RATIO).log()
    return torch.where(strong, -1 - distance, 1 - distance).flatten()


class AutoBalance:
    """The auto-balanced regulariser as a step hook: adds its gradient to the gradients of the task.

    Every tensor of a group has a term alpha * S(P) + tau * S(R) with S = sum of lambda_j ||F_j||^2 over its weak and
    over its strong filters, and tau = -alpha * S(P) / S(R) computed anew at every step (equations 12 and 13). It is a
    constant for the gradient: 2 alpha lambda_j F_j shrinks weak filters, 2 tau lambda_j F_j grows strong ones by as
    much. Filters that are all zero on the strong side leave nothing to grow: tau is then 0.

    Nothing is read back from the device. The net must stay on the device it is on when this is made.

    Args:
        net: what is trained.
        space: of `net`, as wide as it is now.
        factors: group name -> lambda of shape (group.width,); groups that are not named are left alone.
        alpha: strength of the pull on weak filters.
        scales: include the scales of normalisation layers, each a filter of one weight, and let the biases of weak
            channels decay; without it a BatchNorm undoes what its filter loses.
    """

    def __init__(
        self, net: nn.Module, space: SearchSpace, factors: Mapping[str, Tensor], alpha: float, scales: bool = True
    ) -> None:
        self.alpha = alpha
        self._kernels: list[nn.Parameter] = []
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
                values = values.clip(min=0)  # a bias decays; growing one would say nothing about its filter
            (self._kernels if kernel else self._vectors).append(parameter)
            rows[0 if kernel else 1].append(torch.stack([torch.as_tensor(values), torch.as_tensor(owners).double()]))
        self._place([*rows[0], *rows[1]], space)

    def _place(self, rows: list[Tensor], space: SearchSpace) -> None:
        """Lay out all filters in one row of numbers, and which of them have a balance together."""
        parameters = [*self._kernels, *self._vectors]
        self._lengths = [len(each) for each in parameters]
        if not parameters:
            return
        device, dtype = parameters[0].device, torch.promote_types(parameters[0].dtype, torch.float32)
        tensor_of = torch.repeat_interleave(torch.arange(len(parameters)), torch.tensor(self._lengths))
        factors, owners = torch.cat(rows, dim=1)
        terms, self._term = torch.unique(tensor_of * (len(space.groups) + 1) + owners.long(), return_inverse=True)
        order, counts = torch.argsort(self._term, stable=True), torch.bincount(self._term)
        # Shape (terms, widest): sums over padded rows are one operation, in the same order at every call.
        members = torch.full((len(terms), int(counts.max())), len(factors))
        members[torch.arange(members.shape[1]) < counts[:, None]] = order
        self._members, self._term = members.to(device), self._term.to(device)
        self._factors = factors.to(device, dtype)
        self._weak = (self._factors > 0).to(dtype)
        self._shapes = [(-1,) + (1,) * (each.ndim - 1) for each in self._kernels]

    def __call__(self, net: nn.Module, step: int) -> None:
        """Add the regulariser's gradient to every gradient there is."""
        if not self._lengths:
            return
        with torch.no_grad():
            energies = self._energies()
            pieces = self._coefficients(energies).split(self._lengths)
            kernels = len(self._kernels)
            views = [each.view(shape) for each, shape in zip(pieces[:kernels], self._shapes, strict=True)]
            triples = [
                (each.grad, each, coefficient)
                for each, coefficient in zip([*self._kernels, *self._vectors], [*views, *pieces[kernels:]], strict=True)
                if each.grad is not None
            ]
            if triples:
                gradients, weights, coefficients = (list(each) for each in zip(*triples, strict=True))
                torch._foreach_addcmul_(gradients, weights, coefficients)

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return alpha S(P) and tau S(R) of every tensor of every group, each of shape (terms,)."""
        with torch.no_grad():
            pull, push, tau = self._sums(self._energies())
            return self.alpha * pull, tau * push

    def weak_share(self) -> float:
        """Return the share of the energy (squared norm) that weak channels hold: a mean over terms, 0 without any."""
        if not self._lengths:
            return 0.0
        with torch.no_grad():
            energies = self._energies()
            weak, total = self._summed(energies * self._weak), self._summed(energies)
            balanced = self._summed(self._factors.clamp_max(0)) < 0  # biases have no strong side
            divided = balanced & (self._summed(self._weak) > 0)
            shares = (weak / total.clamp_min(torch.finfo(total.dtype).tiny))[divided]
            return float(shares.mean()) if len(shares) else 0.0

    def _energies(self) -> Tensor:
        """Return the squared norm of every filter, scale and bias, shape (rows,), at least float32."""
        dtype = self._factors.dtype
        norms = [torch.linalg.vector_norm(each, dim=tuple(range(1, each.ndim)), dtype=dtype) for each in self._kernels]
        return torch.cat([*norms, *(each.to(dtype) for each in self._vectors)]).square()

    def _summed(self, values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(1)])[self._members].sum(dim=1)

    def _sums(self, energies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return S(P), S(R) and tau of every term."""
        weighted = torch.cat([energies * self._factors, energies.new_zeros(1)])[self._members]
        pull, push = weighted.clamp_min(0).sum(dim=1), weighted.clamp_max(0).sum(dim=1)
        tau = torch.where(push < 0, self.alpha * pull / -push, 0.0)
        return pull, push, tau

    def _coefficients(self, energies: Tensor) -> Tensor:
        """Return what each filter is multiplied by to give its gradient, shape (rows,)."""
        _, _, tau = self._sums(energies)
        strength = torch.where(self._factors > 0, self.alpha, tau[self._term])
        coefficients: Tensor = self._factors * (2 * strength)
        return coefficients


def _tables(space: SearchSpace, factors: Mapping[str, Tensor]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return channel id -> index of its group, and its factor; the last entry answers for -1 (no group, 0)."""
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
    """Name the convolutions whose output a BatchNorm takes: the size of their filters does not change what it gives.

    Two blank images are run through the net, in eval mode, to see it.
    """
    outputs: list[tuple[Tensor, str]] = []  # kept, so that no other tensor takes the place of one
    found: list[str] = []

    def remember(module: nn.Module, name: str, output: Any) -> None:
        if isinstance(module, _ConvNd):
            outputs.append((output, name))

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm):
            found.extend(name for output, name in outputs if output is inputs[0])

    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(look))
        handles.append(module.register_forward_hook(lambda m, _, output, name=name: remember(m, name, output)))
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
def restore_norms(net: nn.Module, before: nn.Module, layers: Iterable[str]) -> None:
    """Give every filter of these layers, in place, the norm that it has in `before`, a net of equal shapes.

    The balance has strong filters take over the energy of weak ones. Behind a BatchNorm that changes nothing but how
    fast they turn, by the square of their norm; this puts it back. Statistics of BatchNorm must be re-estimated.
    """
    for name in layers:
        weight, old = net.get_submodule(name).weight, before.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert isinstance(old, Tensor)
        norms, wanted = weight.flatten(1).norm(dim=1), old.flatten(1).norm(dim=1)
        factors = torch.where((norms > 0) & (wanted > 0), wanted / norms, 1.0)
        weight.mul_(factors.view(-1, *[1] * (weight.ndim - 1)))
