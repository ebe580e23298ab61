"""The precision and memory format that train fastest."""

import copy

import pytest
import torch
from tiny_training import CPU, tiny_net, weights

from runners.training.compute_format import PLAIN, ComputeFormat, measure_compute_format


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
        "runners.training.compute_format.step_seconds", lambda net, images, compute_format: seconds[compute_format]
    )
    assert measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU) == ComputeFormat(torch.bfloat16, False)
