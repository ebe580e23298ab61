"""Sensitivities are measured once for every dense network and space."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from runners.evaluation import sensitivities
from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.sensitivities import affordable_images, measure_sensitivities
from spaces.space import SpaceConfig


@pytest.fixture
def measure(tiny_search_context: SearchContext, tmp_path: Path):
    context = TrialContext(tiny_search_context.data, tiny_search_context.train, 0)

    def measure(net: nn.Module = tiny_search_context.net, images: int = 32):
        return measure_sensitivities(net, tiny_search_context.space, context, images, tmp_path)

    return measure


def test_every_group_has_a_positive_sensitivity_and_the_net_is_left_alone(
    measure, tiny_search_context: SearchContext
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_search_context.net.state_dict().items()}
    found = measure()
    assert set(found.by_group) == {group.name for group in tiny_search_context.space.variable}
    assert min(found.by_group.values()) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_search_context.net.state_dict().items())
    assert not tiny_search_context.net.training


def test_a_group_whose_channels_do_nothing_is_less_sensitive(measure, tiny_search_context: SearchContext) -> None:
    net = copy.deepcopy(tiny_search_context.net)
    groups = tiny_search_context.space.variable
    weight = dict(net.named_parameters())[f"{groups[0].producers[0]}.weight"]
    with torch.no_grad():
        weight[: len(weight) // 2] *= 1e-6  # the half that a cut to half by norm takes
    assert measure(net).by_group[groups[0].name] < measure().by_group[groups[0].name]


def test_the_second_search_reads_what_the_first_measured(measure, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure()
    monkeypatch.setattr(sensitivities, "sensitivity", None)  # measuring again would fail
    again = measure()
    assert (first.cached, again.cached) == (False, True)
    assert again.by_group == first.by_group


def test_other_weights_or_more_images_are_measured_anew(measure, tiny_search_context: SearchContext) -> None:
    measure()
    other = copy.deepcopy(tiny_search_context.net)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.5)
    assert not measure(other).cached
    assert not measure(images=16).cached


def test_a_damaged_file_is_measured_anew_and_named(measure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = measure()
    (file,) = (tmp_path / "sensitivities").iterdir()
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        again = measure()
    assert again == first
    assert f"{file} cannot be read" in caplog.text


def test_measuring_takes_no_longer_than_an_epoch(tiny_search_context: SearchContext) -> None:
    groups = len(tiny_search_context.space.variable)
    # Three cuts of every group, and a training step takes as long as three forward passes.
    assert affordable_images(tiny_search_context.space, 100 * groups) == 100
    assert affordable_images(tiny_search_context.space, 10**6) == 512
    assert affordable_images(tiny_search_context.space, 4 * groups) == 0
    narrow = tiny_search_context.space.restrict(SpaceConfig(only=(tiny_search_context.space.variable[0].name,)))
    assert affordable_images(narrow, 100) == 100
