"""Channels ranked by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pruning.base import Context, PruningError
from pruning.calibration.activation_moments import Recipe, Site, Statistics, gather
from pruning.calibration.information import RidgeInformation, ridge_for, ridge_inverse
from pruning.settings import declared_settings, setting
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace

EXACT_UP_TO = 1024  # channels
REMOVED_AT_ONCE = 1 / 256  # of more channels than that


@dataclass(frozen=True)
class Discriminant:
    """Score channels by what a ridge rule loses without them.

    The rule predicts the label, what the next layers compute from the channels (with their present weights), or both.
    Statistics are those of the dense net: found in the context when its recipe is the same, else gathered.
    """

    features: str = setting(
        "spatial", choices=("pooled", "spatial", "flatten"), searched=False, help="how feature maps become samples"
    )
    where: str = setting(
        "input", choices=("input", "output"), searched=False, help="observe what is read, or what convolutions write"
    )
    label_weight: float = setting(0.1, low=0.0, high=1.0, help="share of the labels in what the ridge rule predicts")
    even_outputs: bool = setting(
        False, choices=(True, False), searched=False, help="every output of a consumer counts the same"
    )
    score: str = setting(
        "greedy", choices=("greedy", "drop", "differential"), searched=False, help="one by one, at once, or by masks"
    )
    labels: str = setting("unit", choices=("unit", "onehot"), searched=False, help="scaling of the label codes")
    standardise: bool = setting(False, choices=(True, False), searched=False, help="scale channels to unit variance")
    combine: str = setting(
        "none", choices=("none", "consumers"), searched=False, help="multiply by what consumers make of a channel"
    )
    ridge: float = setting(0.1, low=1e-3, high=1.0, log=True, help="relative to the mean variance")
    images: int = setting(512, help="calibration images")
    positions: int = setting(64, help="positions of a map that become samples")

    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse settings that are unknown or do not go together."""
        for each in declared_settings(self):
            value = getattr(self, each.name)
            if each.choices and value not in each.choices:
                known = ", ".join(map(str, each.choices))
                raise PruningError(f"setting {each.name}={value!r} of di is not known; choose one of {known}")
        if self.ridge <= 0:
            raise PruningError(f"setting ridge={self.ridge} of di must be above 0, as 0.001 is")
        if not 0 <= self.label_weight <= 1:
            raise PruningError(f"setting label_weight={self.label_weight} of di must lie in [0, 1]; 1 is labels alone")
        if self.where == "output" and (self.label_weight < 1 or self.combine != "none"):
            raise PruningError(
                f"setting where='output' of di observes no consumer, which label_weight={self.label_weight} or "
                f"combine={self.combine!r} needs; take where='input', or label_weight=1 and combine='none'"
            )
        if self.features == "flatten" and self.label_weight < 1:
            raise PruningError(
                f"setting features='flatten' of di knows labels only, not label_weight={self.label_weight}; take 1"
            )

    def recipe(self) -> Recipe:
        """Return what has to be gathered for these settings."""
        ridge = self.ridge if self.features == "flatten" else 0.0
        return Recipe(self.features, self.where, self.images, self.positions, ridge)

    def statistics(self, net: nn.Module, space: SearchSpace, context: Context) -> Statistics:
        """Return the dense net's statistics: those of the context where they fit, else freshly gathered."""
        given = context.statistics
        if isinstance(given, Statistics) and given.recipe == self.recipe():
            return given
        return gather(net, space, self.recipe(), context)

    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        """Return the rank of every channel; the first to go has 0."""
        statistics = self.statistics(net, space, context)
        return {name: each.ranks for name, each in self.rankings(net, space, statistics).items()}

    def rankings(self, net: nn.Module, space: SearchSpace, statistics: Statistics) -> Mapping[str, "Ranking"]:
        """Rank the channels of every variable group over all the sites that show them."""
        return {group.name: self._rank(net, space, group, statistics) for group in space.variable}

    def _rank(self, net: nn.Module, space: SearchSpace, group: ChannelGroup, statistics: Statistics) -> "Ranking":
        factor = torch.ones(group.width, dtype=torch.float64)
        if self.combine == "consumers":
            factor = _consumer_factor(net, space, group, statistics)
        if self.features == "flatten":
            flat = [(_share(site.scores[f]), c) for site, f, c in statistics.sites_of(group) if site.scores is not None]
            return _sorted(_added(flat, factor))
        parts = [(self._information(net, space, site, f), c) for site, f, c in statistics.sites_of(group)]
        if self.score == "greedy":
            return eliminate(parts, factor)
        drops = self.score == "drop"
        return _sorted(_added([(each.drops() if drops else each.differential(), c) for each, c in parts], factor))

    def _information(self, net: nn.Module, space: SearchSpace, site: Site, features: Tensor) -> RidgeInformation:
        assert site.moments is not None
        moments = site.moments.take(features)
        scale = torch.ones(len(features), dtype=torch.float64)
        if self.standardise:
            standard = moments.standardised()
            scale = (standard.scatter.diagonal() / moments.scatter.diagonal().clamp_min(1e-300)).sqrt()
            moments = standard
        ridge = ridge_for(moments.scatter, self.ridge)
        inverse = ridge_inverse(moments.scatter, ridge)
        between = torch.zeros_like(moments.scatter)
        if self.label_weight > 0:
            labels = moments.between(self.labels == "unit")
            between += self.label_weight * _relative(inverse, labels)
        if self.label_weight < 1:
            reading = consumer_gram(net, site, space, self.even_outputs)[features][:, features]
            unscaled = site.moments.take(features).scatter
            outputs = unscaled @ reading @ unscaled * torch.outer(scale, scale)
            between += (1 - self.label_weight) * _relative(inverse, outputs)
        return RidgeInformation(moments.scatter, between, ridge)


def _relative(inverse: Tensor, between: Tensor) -> Tensor:
    """Scale a target so that all the features together explain 1 of it: targets and sites then weigh the same."""
    return between / max(float((inverse * between).sum()), 1e-300)


def consumer_gram(net: nn.Module, site: Site, space: SearchSpace, even_outputs: bool = False) -> Tensor:
    """Return Q = sum over outputs and kernel positions of w w', so that x'Qx is the energy a consumer makes of x.

    Args:
        net: the dense network.
        site: an input.
        space: of the network.
        even_outputs: divide the weights of each output by its standard deviation, as a BatchNorm after it does.

    Returns:
        Shape (features, features) of the site; block diagonal where the consumer is a grouped convolution.
    """
    name = f"{site.module}.weight"
    weight = net.get_submodule(site.module).weight
    assert isinstance(weight, Tensor)
    assert site.moments is not None
    feature_of = {int(each): feature for feature, each in enumerate(site.ids)}
    conv_groups = space.grouped.get(name, 1)
    gram = torch.zeros(len(site.ids), len(site.ids), dtype=torch.float64)
    for filters, ids in zip(
        weight.detach().double().cpu().chunk(conv_groups), np.split(space.axes[name][1], conv_groups), strict=True
    ):
        observed = [index for index, each in enumerate(ids.tolist()) if each in feature_of]
        features = torch.tensor(list(dict.fromkeys(feature_of[int(ids[index])] for index in observed)))
        if not observed:
            continue
        # Rows are channels, columns are outputs x positions: a flattened map shows a channel at a run of inputs.
        rows = filters[:, observed].reshape(len(filters), len(features), -1).movedim(1, 0)
        if even_outputs:
            scatter = site.moments.scatter[features][:, features]
            seen = torch.einsum("cop,cd,dop->o", rows, scatter, rows)
            rows = rows * torch.where(seen > 1e-9 * seen.max(), seen.clamp_min(1e-300).rsqrt(), 0.0)[None, :, None]
        rows = rows.reshape(len(features), -1)
        gram[features[:, None], features[None, :]] += rows @ rows.T
    return gram


def _consumer_factor(net: nn.Module, space: SearchSpace, group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Return what consumers make of each channel alone: E[x^2] times the squared norm of the weights that read it."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for site, features, channels in statistics.sites_of(group):
        if site.moments is not None:
            energy = site.moments.power()[features] * consumer_gram(net, site, space).diagonal()[features]
            total.index_add_(0, channels, energy / energy.sum().clamp_min(1e-300))
    return total


def _share(values: Tensor) -> Tensor:
    return values / values.sum().clamp_min(1e-300)


def _added(parts: list[tuple[Tensor, Tensor]], factor: Tensor) -> Tensor:
    total = torch.zeros(len(factor), dtype=torch.float64)
    for values, channels in parts:
        total.index_add_(0, channels, values)
    return total * factor


@dataclass(frozen=True)
class Ranking:
    """In which order the channels of a group go, and what that costs.

    Attributes:
        ranks: step at which each channel goes, shape (width,); the last one standing has the highest.
        lost: what is lost when w channels are left, w = 0..width, shape (width + 1,); lost[width] = 0.
    """

    ranks: Tensor
    lost: Tensor


def _sorted(scores: Tensor) -> Ranking:
    order = torch.argsort(scores, stable=True)
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(len(scores), dtype=torch.float64)
    return Ranking(ranks, _remaining(scores[order]))


def _remaining(losses: Tensor) -> Tensor:
    """Turn the loss of each step into what is lost when w channels are left."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), losses.cumsum(0)]).flip(0)


def eliminate(parts: list[tuple[RidgeInformation, Tensor]], factor: Tensor) -> Ranking:
    """Remove channels one by one, each time the one whose drop, added over all sites, is smallest.

    While more than a thousand channels are left, some are removed per pass over the matrices: one by one among the
    twice as many whose drops are smallest. As drops hardly ever fall when others go, that is the same order.

    Args:
        parts: per site its information and which channel of the group each of its features is.
        factor: multiplies the drops, shape (width,).
    """
    left = torch.arange(len(factor))
    gone: list[Tensor] = []
    losses: list[Tensor] = []
    while len(left):
        count = 1 if len(left) <= EXACT_UP_TO else max(1, int(REMOVED_AT_ONCE * len(left)))
        if count == 1:
            order, lost = _one_by_one(parts, factor, left, len(left))
        else:
            pool = left[torch.argsort(_drops(parts, factor)[left], stable=True)[: 2 * count]].sort().values
            small = [(each.among(_features(channels, pool)), channels) for each, channels in parts]
            order, lost = _one_by_one(small, factor, pool, count)
            for information, channels in parts:
                information.remove_all(_features(channels, order))
        gone.append(order)
        losses.append(lost)
        left = left[~torch.isin(left, order)]
    ranks = torch.empty(len(factor), dtype=torch.float64)
    ranks[torch.cat(gone)] = torch.arange(len(factor), dtype=torch.float64)
    return Ranking(ranks, _remaining(torch.cat(losses)))


def _drops(parts: list[tuple[RidgeInformation, Tensor]], factor: Tensor) -> Tensor:
    return _added([(information.drops(), channels) for information, channels in parts], factor)


def _features(channels: Tensor, wanted: Tensor) -> Tensor:
    """Return at which features of a site the wanted channels of the group are."""
    return torch.nonzero(torch.isin(channels, wanted)).flatten()


def _one_by_one(
    parts: list[tuple[RidgeInformation, Tensor]], factor: Tensor, candidates: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Remove `count` of the candidates; return them in that order, and what each cost."""
    allowed = torch.zeros(len(factor), dtype=torch.bool)
    allowed[candidates] = True
    feature_of = [dict(zip(channels.tolist(), range(len(channels)), strict=True)) for _, channels in parts]
    order = torch.empty(count, dtype=torch.int64)
    losses = torch.empty(count, dtype=torch.float64)
    for step in range(count):
        drops = _drops(parts, factor)
        channel = int(drops.masked_fill(~allowed, torch.inf).argmin())
        order[step], losses[step] = channel, drops[channel]
        allowed[channel] = False
        for (information, _), features in zip(parts, feature_of, strict=True):
            if channel in features:
                information.remove(features[channel])
    return order, losses
