"""Channels ranked by Discriminant Information. Hou & Kung, arXiv 2005.13796 (ICPR 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pruning.base import Context, Criterion, PruningError
from pruning.calibration.activation_moments import ActivationMoments, Recipe, Site, gather
from pruning.calibration.occurrences import Occurrences
from pruning.calibration.second_moments import ridge_for
from pruning.criteria.discriminant.elimination import Ranking, eliminate, summed_over_sites
from pruning.criteria.discriminant.information import RidgeInformation, ridge_inverse
from pruning.settings import declared_settings, setting
from spaces.groups import ChannelGroup
from spaces.slicing.filters import as_filters
from spaces.space import SearchSpace

FLATTENED_BATCH = 128  # images; the authors' batch, on which the score of whole maps depends


@dataclass(frozen=True)
class Discriminant(Criterion):
    """Score each channel by the information that a ridge regression loses without it; scores are ranks.

    The regression predicts the labels, the outputs of the layers that read the channels (with their present weights),
    or both. Activation moments are taken from the context if they were gathered by the same recipe, else gathered.
    """

    features: str = setting(
        "spatial", choices=("pooled", "spatial", "flatten"), searched=False, help="how feature maps become samples"
    )
    where: str = setting(
        "input", choices=("input", "output"), searched=False, help="observe what is read, or what convolutions write"
    )
    label_weight: float = setting(0.1, low=0.0, high=1.0, help="share of the labels in the targets of the ridge rule")
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
        """Refuse settings that are unknown or contradict each other."""
        for declared in declared_settings(self):
            value = getattr(self, declared.name)
            if declared.choices and value not in declared.choices:
                known = ", ".join(map(str, declared.choices))
                raise PruningError(f"setting {declared.name}={value!r} of di is not known; choose one of {known}")
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
        """Return the recipe of the activation moments that these settings need."""
        if self.features != "flatten":
            return Recipe(self.features, self.where, self.images, self.positions)
        unit = self.labels == "unit"
        return Recipe(self.features, self.where, self.images, self.positions, self.ridge, unit, FLATTENED_BATCH)

    def activation_moments(self, net: nn.Module, space: SearchSpace, context: Context) -> ActivationMoments:
        """Return the dense net's activation moments: the context's if their recipe is the same, else new ones."""
        given = context.prepared
        if isinstance(given, ActivationMoments) and given.recipe == self.recipe():
            return given
        return gather(net, space, self.recipe(), context)

    @override
    def scores(self, net: nn.Module, space: SearchSpace, context: Context) -> Mapping[str, Tensor]:
        moments = self.activation_moments(net, space, context)
        return {name: ranking.ranks for name, ranking in self.rankings(net, space, moments).items()}

    def rankings(self, net: nn.Module, space: SearchSpace, moments: ActivationMoments) -> Mapping[str, Ranking]:
        """Rank the channels of every variable group by all the sites at which they are observed."""
        return {group.name: self._rank(net, space, group, moments) for group in space.variable}

    def _rank(self, net: nn.Module, space: SearchSpace, group: ChannelGroup, moments: ActivationMoments) -> Ranking:
        factor = torch.ones(group.width, dtype=torch.float64)
        if self.combine == "consumers":
            factor = _consumer_factor(net, space, group, moments)
        if self.features == "flatten":
            shares = [(_share(site.scores[f]), c) for site, f, c in moments.sites_of(group) if site.scores is not None]
            return Ranking.of_scores(summed_over_sites(shares, factor))
        sites = [(self._information(net, space, site, f), c) for site, f, c in moments.sites_of(group)]
        if self.score == "greedy":
            return eliminate(sites, factor)
        values = [
            (information.drops() if self.score == "drop" else information.differential(), channels)
            for information, channels in sites
        ]
        return Ranking.of_scores(summed_over_sites(values, factor))

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
            consumed = consumer_gram(net, site, space, self.even_outputs)[features][:, features]
            unscaled = site.moments.take(features).scatter
            outputs = unscaled @ consumed @ unscaled * torch.outer(scale, scale)
            between += (1 - self.label_weight) * _relative(inverse, outputs)
        return RidgeInformation(moments.scatter, between, ridge)


def _relative(inverse: Tensor, between: Tensor) -> Tensor:
    """Scale a target so that all features together explain 1 of it; all targets and sites then weigh the same."""
    return between / max(float((inverse * between).sum()), 1e-300)


def consumer_gram(net: nn.Module, site: Site, space: SearchSpace, even_outputs: bool = False) -> Tensor:
    """Return Q = sum over outputs and kernel positions of w w', so that x'Qx is the energy of the consumer's outputs.

    Args:
        net: the dense network.
        site: the input of a layer, which is the consumer.
        space: search space of the network.
        even_outputs: divide the weights of each output by the output's standard deviation, as a BatchNorm that
            follows the consumer does.

    Returns:
        Shape (features, features) of the site; block diagonal where the consumer is a grouped convolution.
    """
    name = space.layers[site.module].weight
    weight = as_filters(space, name, net.get_parameter(name))
    assert site.moments is not None
    feature_of = {int(channel): feature for feature, channel in enumerate(site.ids)}
    conv_groups = space.grouped.get(name, 1)
    gram = torch.zeros(len(site.ids), len(site.ids), dtype=torch.float64)
    for filters, ids in zip(
        weight.detach().cpu().double().chunk(conv_groups), np.split(space.axes[name][1], conv_groups), strict=True
    ):
        observed = Occurrences.of(torch.tensor([channel if channel in feature_of else -1 for channel in ids.tolist()]))
        if not len(observed.channels):
            continue
        features = torch.tensor([feature_of[channel] for channel in observed.channels.tolist()])
        # Rows are channels, columns are outputs x positions: a channel may be read at several indices.
        read = observed.select(filters, 1).reshape(len(filters), *observed.index.shape, -1)
        rows = (read * observed.counted[..., None]).flatten(2).movedim(1, 0)
        if even_outputs:
            scatter = site.moments.scatter[features][:, features]
            energy = torch.einsum("cop,cd,dop->o", rows, scatter, rows)
            scale = torch.where(energy > 1e-9 * energy.max(), energy.clamp_min(1e-300).rsqrt(), 0.0)
            rows = rows * scale[None, :, None]
        rows = rows.reshape(len(features), -1)
        gram[features[:, None], features[None, :]] += rows @ rows.T
    return gram


def _consumer_factor(net: nn.Module, space: SearchSpace, group: ChannelGroup, moments: ActivationMoments) -> Tensor:
    """Return E[x^2] of each channel times the squared norm of its consumers' weights, relative to each site's sum."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for site, features, channels in moments.sites_of(group):
        if site.moments is not None:
            energy = site.moments.power()[features] * consumer_gram(net, site, space).diagonal()[features]
            total.index_add_(0, channels, energy / energy.sum().clamp_min(1e-300))
    return total


def _share(values: Tensor) -> Tensor:
    return values / values.sum().clamp_min(1e-300)
