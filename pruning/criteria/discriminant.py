"""Channels ranked by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.base import Context, PruningError, declared_settings, setting
from pruning.criteria.information import RidgeInformation, ridge_for
from pruning.statistics import Recipe, Site, Statistics, gather
from spaces.groups import ChannelGroup
from spaces.space import SearchSpace


@dataclass(frozen=True)
class Discriminant:
    """Score channels by what a ridge rule loses without them.

    The rule predicts the label, what the next layers compute from the channels (with their present weights), or both.
    Statistics are those of the dense net: found in the context when its recipe is the same, else gathered.
    """

    features: str = setting("spatial", choices=("pooled", "spatial", "flatten"), help="how maps become samples")
    where: str = setting("input", choices=("input", "output"), help="observe what is read, or what convolutions write")
    target: str = setting("both", choices=("labels", "consumers", "both"), help="what the ridge rule predicts")
    score: str = setting("greedy", choices=("greedy", "drop", "differential"), help="one by one, at once, or by masks")
    labels: str = setting("unit", choices=("unit", "onehot"), help="scaling of the label codes")
    standardise: bool = setting(False, choices=(True, False), help="scale channels to unit variance")
    combine: str = setting("none", choices=("none", "consumers"), help="multiply by what consumers make of a channel")
    ridge: float = setting(1e-3, low=1e-5, high=1.0, log=True, help="relative to the mean variance")
    images: int = setting(512, help="calibration images")
    positions: int = setting(64, help="positions of a map that become samples")

    def __post_init__(self) -> None:
        """Refuse settings that are unknown or do not go together."""
        for each in declared_settings(self):
            value = getattr(self, each.name)
            if each.choices and value not in each.choices:
                known = ", ".join(map(str, each.choices))
                raise PruningError(f"setting {each.name}={value!r} of di is not known; choose one of {known}")
        if self.ridge <= 0:
            raise PruningError(f"setting ridge={self.ridge} of di must be above 0, as 0.001 is")
        if self.where == "output" and (self.target != "labels" or self.combine != "none"):
            raise PruningError(
                f"setting where='output' of di observes no consumer, which target={self.target!r} or "
                f"combine={self.combine!r} needs; take where='input', or target='labels' and combine='none'"
            )
        if self.features == "flatten" and self.target != "labels":
            raise PruningError(
                f"setting features='flatten' of di knows labels only, not target={self.target!r}; take target='labels'"
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
        return {name: each.ranks for name, each in self.rankings(net, space, context).items()}

    def rankings(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, "Ranking"]:
        """Rank the channels of every variable group over all the sites that show them."""
        statistics = self.statistics(net, space, context)
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
        between = torch.zeros_like(moments.scatter)
        if self.target == "labels":
            return RidgeInformation(moments.scatter, moments.between(self.labels == "unit"), ridge)
        if self.target == "both":
            between += _relative(moments.scatter, moments.between(self.labels == "unit"), ridge)
        if self.target in ("consumers", "both"):
            reading = consumer_gram(net, site, space)[features][:, features]
            unscaled = site.moments.take(features).scatter
            outputs = unscaled @ reading @ unscaled * torch.outer(scale, scale)
            between += _relative(moments.scatter, outputs, ridge)
        return RidgeInformation(moments.scatter, between, ridge)


def _relative(scatter: Tensor, between: Tensor, ridge: float) -> Tensor:
    """Scale a target so that all the features together explain 1 of it: targets and sites then weigh the same."""
    return between / max(RidgeInformation(scatter, between, ridge).information, 1e-300)


def consumer_gram(net: nn.Module, site: Site, space: SearchSpace) -> Tensor:
    """Return Q = sum over outputs and kernel positions of w w', so that x'Qx is the energy a consumer makes of x.

    Shape (features, features) of the site; block diagonal where the consumer is a grouped convolution.
    """
    weight = net.get_submodule(site.module).weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().double().cpu()
    ids = torch.as_tensor(space.axes[f"{site.module}.weight"][1])
    wanted = torch.zeros(int(ids.max()) + 2, dtype=torch.bool)
    wanted[site.ids] = True
    indices = torch.nonzero(wanted[ids]).flatten()  # id -1 falls on the last entry, which is False
    blocks = space.grouped.get(f"{site.module}.weight", 1)
    per_block = weight.shape[1]
    gram = torch.zeros(len(ids), len(ids), dtype=torch.float64) if blocks > 1 else None
    if gram is not None:
        for block, part in enumerate(weight.chunk(blocks)):
            rows = part.movedim(1, 0).reshape(per_block, -1)
            at = slice(block * per_block, (block + 1) * per_block)
            gram[at, at] = rows @ rows.T
        return gram[indices][:, indices]
    rows = weight.movedim(1, 0)[indices].reshape(len(site.ids), -1)
    return rows @ rows.T


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

    Args:
        parts: per site its information and which channel of the group each of its features is.
        factor: multiplies the drops, shape (width,).
    """
    ranks = torch.zeros(len(factor), dtype=torch.float64)
    losses = torch.zeros(len(factor), dtype=torch.float64)
    alive = torch.ones(len(factor), dtype=torch.bool)
    feature_of = [dict(zip(channels.tolist(), range(len(channels)), strict=True)) for _, channels in parts]
    for step in range(len(factor)):
        drops = _added([(information.drops(), channels) for information, channels in parts], factor)
        channel = int(drops.masked_fill(~alive, torch.inf).argmin())
        ranks[channel], losses[step] = step, drops[channel]
        alive[channel] = False
        for (information, _), features in zip(parts, feature_of, strict=True):
            if channel in features:
                information.remove(features[channel])
    return Ranking(ranks, _remaining(losses))
