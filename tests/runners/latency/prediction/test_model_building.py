"""Models of a tiny net, built from real timings of its layers and of a few whole nets."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_nets import IMAGE, Residual
from torch import nn

from runners.config import LatencyConfig
from runners.latency.meter import LatencyMeter
from runners.latency.prediction import model_building
from runners.latency.prediction.model_building import at_widths, build_model
from spaces.counting import count_cost
from spaces.space import SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchSpace:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    monkeypatch.setattr(model_building, "LAYER_SECONDS", 0.0)
    monkeypatch.setattr(model_building, "HELD_OUT", 2)
    monkeypatch.setattr(model_building, "MAX_DRIFT", float("inf"))
    return trace(Residual().eval(), torch.zeros(1, *IMAGE))


def meter(*batches: int) -> LatencyMeter:
    return LatencyMeter(LatencyConfig("cpu:1thread", batches), Residual().eval(), IMAGE)


def test_a_model_is_built_once_per_net_and_conditions(space: SearchSpace, tmp_path: Path) -> None:
    model, built = build_model(meter(1), space, 1e-4)
    assert (built.cached, built.error.nets, built.failed) == (False, 2, ())
    assert built.timings > 10
    assert len(model.errors) == 2
    again, kept = build_model(meter(1, 8), space, 1e-4)
    assert kept.cached
    assert again.predict(space.smallest) == model.predict(space.smallest)
    narrower = space.restrict(SpaceConfig(floor=0.5))
    assert not build_model(meter(1), narrower, 1e-4)[1].cached
    assert not build_model(meter(2), space, 1e-4)[1].cached


def test_a_model_is_not_cached_when_the_machine_changed_its_speed(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_building, "MAX_DRIFT", -1.0)
    build_model(meter(1), space, 1e-4)
    assert not (tmp_path / "latency").exists()


def test_an_unreadable_cached_model_is_built_again_with_a_warning(
    space: SearchSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_model(meter(1), space, 1e-4)
    files = list((tmp_path / "latency").glob("*.json"))
    assert len(files) == 2  # the model, and the table of its layers
    for file in files:
        file.write_text("{")
    built = build_model(meter(1), space, 1e-4)[1]
    assert (built.cached, built.reused) == (False, 0)
    assert caplog.text.count("cannot be read") == 2


def test_layers_that_another_network_has_timed_are_not_timed_again(space: SearchSpace) -> None:
    first = build_model(meter(1), space, 1e-4)[1]
    restricted = space.restrict(SpaceConfig(skip=("inner",)))  # another space, so another model, of the same layers
    second = build_model(meter(1), restricted, 1e-4)[1]
    assert (second.cached, second.timings) == (False, 0)
    assert 0 < second.reused <= first.timings


def test_layers_are_timed_for_another_runtime_only_where_rates_do_not_come_close(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_building, "HELD_OUT", 12)

    def built(batch_size: int, ratio_of: Callable[[nn.Module], float]) -> model_building.Building:
        @contextlib.contextmanager
        def ratios(_: LatencyMeter) -> Iterator[Callable[[nn.Module], float]]:
            yield ratio_of

        monkeypatch.setattr(LatencyMeter, "ratios", ratios)
        in_onnxruntime = LatencyConfig("cpu:1thread", (batch_size,), engine="onnxruntime")
        return build_model(LatencyMeter(in_onnxruntime, Residual().eval(), IMAGE), space, 1e-4)[1]

    erratic = itertools.cycle([0.4, 1.0, 0.7])
    assert built(1, lambda _: next(erratic)).timings > 10
    by_work = built(2, lambda net: 0.1 + 0.9 * count_cost(net, IMAGE).flops / space.dense_cost.flops)
    assert (by_work.cached, by_work.timings) == (False, 0)
    assert by_work.error.median < model_building.CLOSE


def test_a_net_at_widths_is_a_narrower_copy_of_the_dense_one(space: SearchSpace) -> None:
    net = Residual().eval()
    narrow = at_widths(net, space, space.smallest)
    assert narrow.stem.out_channels == space.smallest["stem"]
    assert net.stem.out_channels == 8
