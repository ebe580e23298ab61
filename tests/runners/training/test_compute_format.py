"""The precision and memory format that train fastest."""

import copy

import pytest
import torch
from tiny_training import CPU, tiny_net, weights

from runners.training.compute_format import PLAIN, ComputeFormat, measure_compute_format, time_steps, using_threads


def test_measuring_leaves_the_net_alone_and_answers_for_narrower_nets_from_memory(monkeypatch):
    net = tiny_net()
    before = weights(net)
    compute_format = measure_compute_format(net, (3, 6, 6), 8, CPU)
    assert compute_format.autocast in (None, torch.bfloat16)
    assert torch.equal(before, weights(net))
    assert net[0].weight.is_contiguous()
    monkeypatch.setattr("runners.training.compute_format._fastest", lambda *_: pytest.fail("measured again"))
    assert measure_compute_format(copy.deepcopy(net), (3, 6, 6), 8, CPU) is compute_format


def test_measuring_takes_the_fastest_and_the_earlier_of_two_that_are_close(monkeypatch):
    seconds = {
        PLAIN: 1.0,
        ComputeFormat(torch.bfloat16, True): 0.95,
        ComputeFormat(torch.bfloat16, False): 0.52,
        ComputeFormat(None, True): 0.5,
    }
    monkeypatch.setattr(
        "runners.training.compute_format.step_seconds",
        lambda _net, _images, compute_format, **_: seconds[compute_format],
    )
    assert measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU) == ComputeFormat(torch.bfloat16, False)


@pytest.mark.parametrize(("together", "alone", "threads"), [(0.5, 0.05, 2), (0.95, 0.08, 1)])
def test_one_round_answers_for_format_threads_and_forecast(monkeypatch, together, alone, threads):
    """Steps take 1 s with one thread in float32, 0.8 s in bfloat16, and `together` with both threads."""
    timed = []

    def step(_net, images, compute_format, steps=2):
        timed.append(len(images) * (1 + steps))
        if steps == 1:
            return 0.1  # two images, so ten take half a second
        both = torch.get_num_threads() == 2
        return together if both else (0.8 if compute_format == ComputeFormat(torch.bfloat16, True) else 1.0)

    monkeypatch.setattr("runners.training.compute_format.step_seconds", step)
    monkeypatch.setattr("runners.training.compute_format._measured", {})
    with using_threads(2):
        found = time_steps(tiny_net(), (3, 5, 5), 32, CPU, threads=1)
    assert found.compute_format == ComputeFormat(torch.bfloat16, True)
    assert found.worker_seconds == pytest.approx(0.08)
    assert found.alone_seconds == pytest.approx(alone)
    assert found.threads_alone == threads
    assert 0 < found.forward_seconds < 0.05  # really timed
    assert sum(timed) == 2 * 2 + 3 * 10 * 5  # one step to size them, four formats, and all threads
