"""The order in which channels are removed."""

import pytest
import torch

from pruning.criteria.discriminant import elimination
from pruning.criteria.discriminant.elimination import Ranking, eliminate, summed_over_sites
from pruning.criteria.discriminant.information import RidgeInformation


def _information(channels: int) -> RidgeInformation:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, channels, generator=generator, dtype=torch.float64)
    targets = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    cross = features.T @ targets
    return RidgeInformation(features.T @ features, cross @ cross.T, 0.3)


def test_the_lowest_score_is_removed_first_and_losses_add_up() -> None:
    ranking = Ranking.of_scores(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    assert ranking.ranks.tolist() == [2, 0, 1]
    assert ranking.lost.tolist() == [6, 3, 1, 0]


def test_sites_add_up_where_they_show_the_same_channel() -> None:
    sites = [
        (torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 2])),
        (torch.tensor([5.0]).double(), torch.tensor([2])),
    ]
    assert summed_over_sites(sites, torch.tensor([1.0, 1.0, 0.5]).double()).tolist() == [1, 0, 3.5]


def test_a_channel_that_no_site_shows_is_removed_first_and_all_information_is_lost_in_the_end() -> None:
    information = _information(6)
    whole = information.information
    ranking = eliminate([(information, torch.tensor([0, 1, 2, 4, 5, 6]))], torch.ones(7, dtype=torch.float64))
    assert ranking.ranks[3] == 0
    assert float(ranking.lost[0]) == pytest.approx(whole, rel=1e-10)


def test_wide_groups_are_ranked_in_the_same_order_in_fewer_passes(monkeypatch) -> None:
    channels, factor = torch.arange(40), torch.ones(40, dtype=torch.float64)
    exact = eliminate([(_information(40), channels)], factor)
    monkeypatch.setattr(elimination, "EXACT_UP_TO", 8)
    monkeypatch.setattr(elimination, "REMOVED_AT_ONCE", 1 / 10)
    quick = eliminate([(_information(40), channels)], factor)
    assert quick.ranks.tolist() == exact.ranks.tolist()
    torch.testing.assert_close(quick.lost, exact.lost)
