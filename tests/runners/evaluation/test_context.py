"""What a method may use."""

import pytest
from filelock import Timeout

from runners.evaluation.context import TrialContext
from runners.latency.engines import parse_device
from runners.latency.meter import exclusive, locked


def test_a_latency_ratio_is_read_while_nothing_else_is_measured_on_the_device(
    tiny_search_context, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("runners.latency.meter.lock_folder", lambda: tmp_path)
    monkeypatch.setattr("runners.evaluation.context.locked", lambda name: locked(name, 0.05))
    made = tiny_search_context
    context = TrialContext(made.data, made.train, 0)
    with exclusive(parse_device("cpu:1thread")), pytest.raises(Timeout):
        context.latency_ratio(made.net, made.net)
    assert context.latency_ratio(made.net, made.net) > 0
