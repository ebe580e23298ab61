"""The declared precision, and the memory format that trains faster."""

import copy
import threading

import pytest
import torch
from tiny_training import CPU, tiny_net, weights
from torch import nn
from torch.nn import functional

from runners.training.compute_format import (
    PLAIN,
    ComputeFormat,
    ComputeFormatError,
    autocast_dtype,
    measure_compute_format,
    seconds_beside,
    time_steps,
    using_threads,
)

LOW = ComputeFormat(torch.bfloat16)
LOW_LAST = ComputeFormat(torch.bfloat16, channels_last=True)
LAST = ComputeFormat(channels_last=True)


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch):
    monkeypatch.setattr("runners.training.compute_format._measured", {})


@pytest.fixture
def _bfloat16_processor(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})


def _fake_steps(monkeypatch, seconds):
    """Let a step in a format take so many seconds, or raise the error that stands for them."""

    def step(_net, _images, compute_format, **_):
        found = seconds[compute_format]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("runners.training.compute_format.step_seconds", step)


def test_measuring_leaves_the_net_alone_and_answers_for_narrower_nets_from_memory(monkeypatch):
    net = tiny_net()
    before = weights(net)
    compute_format = measure_compute_format(net, (3, 6, 6), 8, CPU)
    assert compute_format.autocast == autocast_dtype("auto", net, CPU)
    assert torch.equal(before, weights(net))
    assert net[0].weight.is_contiguous()
    monkeypatch.setattr("runners.training.compute_format._fastest", lambda *_: pytest.fail("measured again"))
    assert measure_compute_format(copy.deepcopy(net), (3, 6, 6), 8, CPU) is compute_format


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, None),
        ({"avx512_f": True}, None),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert autocast_dtype("auto", tiny_net(), CPU) == expected
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8))
    assert autocast_dtype("auto", depthwise, CPU) is None
    assert autocast_dtype("bfloat16", depthwise, CPU) == torch.bfloat16
    assert autocast_dtype("float32", tiny_net(), CPU) is None
    assert autocast_dtype("auto", tiny_net(), torch.device("mps")) is None


@pytest.mark.parametrize(
    ("has_bfloat16", "capability", "expected"),
    [(True, (9, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (6, 1), None)],
)
def test_a_gpu_computes_in_the_lower_precision_that_its_generation_has(monkeypatch, has_bfloat16, capability, expected):
    """The GPU is made up: its generation answers as torch would."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert autocast_dtype("auto", tiny_net(), torch.device("cuda:0")) == expected


@pytest.mark.usefixtures("_bfloat16_processor")
@pytest.mark.parametrize(
    ("plain", "low", "low_last", "chosen"),
    [(0.1, 1.0, 0.95, LOW), (0.1, 1.0, 0.9, LOW_LAST), (0.1, 1.0, RuntimeError("view size"), LOW)],
)
def test_the_memory_format_is_measured_and_the_precision_is_not(monkeypatch, plain, low, low_last, chosen):
    _fake_steps(monkeypatch, {PLAIN: plain, LAST: plain, LOW: low, LOW_LAST: low_last})
    assert measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU) == chosen


@pytest.mark.usefixtures("_bfloat16_processor")
def test_a_network_that_fails_in_a_lower_precision_is_computed_in_float32_unless_it_was_asked_for(monkeypatch):
    failing = RuntimeError("not implemented for 'BFloat16'\nmore")
    _fake_steps(monkeypatch, {PLAIN: 1.0, LAST: 0.5, LOW: failing, LOW_LAST: 0.1})
    assert measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU) == LAST
    with pytest.raises(ComputeFormatError, match=r"fails .* 2 images on cpu .*'BFloat16'\); take --precision auto$"):
        measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU, "bfloat16")


def test_a_batch_that_does_not_fit_is_refused_by_its_size(monkeypatch):
    full = torch.OutOfMemoryError("tried to allocate 2 GiB")
    _fake_steps(monkeypatch, dict.fromkeys((PLAIN, LAST, LOW, LOW_LAST), full))
    monkeypatch.setattr("runners.training.compute_format._images", lambda *_: torch.zeros(512, 3, 7, 7))
    with pytest.raises(ComputeFormatError, match="512 images does not fit into the memory of cpu .*--batch-size"):
        measure_compute_format(tiny_net(), (3, 7, 7), 512, CPU)


def test_a_network_with_a_view_of_the_batch_is_trained_in_the_contiguous_format():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 5)

        def forward(self, images):
            maps = functional.max_pool2d(functional.relu(self.conv(images)), 2)
            return self.linear(maps.view(maps.size(0), -1))

    assert not measure_compute_format(Viewed(), (3, 16, 16), 8, CPU).channels_last


@pytest.mark.usefixtures("_bfloat16_processor")
@pytest.mark.parametrize(("together", "alone", "threads"), [(0.5, 0.05, 2), (0.95, 0.08, 1)])
def test_one_round_answers_for_format_threads_and_forecast(monkeypatch, together, alone, threads):
    """Steps take 1 s with one thread, 0.8 s in channels_last, and `together` with both threads."""
    timed = []

    def step(_net, images, compute_format, steps=2):
        timed.append(len(images) * (1 + steps))
        if steps == 1:
            return 0.1  # two images, so ten take half a second
        both = torch.get_num_threads() == 2
        return together if both else (0.8 if compute_format == LOW_LAST else 1.0)

    monkeypatch.setattr("runners.training.compute_format.step_seconds", step)
    with using_threads(2):
        found = time_steps(tiny_net(), (3, 5, 5), 32, CPU, threads=1)
    assert found.compute_format == LOW_LAST
    assert found.worker_seconds == pytest.approx(0.08)
    assert found.alone_seconds == pytest.approx(alone)
    assert found.threads_alone == threads
    assert 0 < found.forward_seconds < 0.05  # really timed
    assert sum(timed) == 2 * 2 + 3 * 10 * 3  # one step to size them, two formats, and all threads


@pytest.mark.usefixtures("_bfloat16_processor")
@pytest.mark.parametrize(("beside", "slower"), [(1.4, 1.4), (0.9, 1.0)])
def test_a_worker_is_as_slow_as_beside_the_others_and_the_dense_training_is_not(monkeypatch, beside, slower):
    """A step of two images takes 1 s alone; beside another never less, since a shorter time would be noise."""
    counts = []

    def timed_beside(_net, _images, _format, count):
        counts.append(count)
        return beside

    _fake_steps(monkeypatch, dict.fromkeys((PLAIN, LAST, LOW, LOW_LAST), 1.0))
    monkeypatch.setattr("runners.training.compute_format.seconds_beside", timed_beside)
    monkeypatch.setattr("runners.training.compute_format.forward_seconds", lambda *_: 0.2)
    found = time_steps(tiny_net(), (3, 5, 5), 32, CPU, threads=1, workers=64)
    assert found.worker_seconds == pytest.approx(slower / 2)
    assert found.forward_seconds == pytest.approx(slower * 0.2 / 2)
    assert found.alone_seconds == 0.5
    assert counts == [4]  # not 64 copies in memory
    assert time_steps(tiny_net(), (3, 5, 5), 32, CPU, threads=1).worker_seconds == 0.5
    assert len(counts) == 1  # a single worker has nobody beside it


def test_steps_beside_one_another_begin_together_and_a_failure_ends_all_of_them():
    class Meeting(nn.Module):
        """Waits in its forward pass for that of the other copy, which no step after the other would reach."""

        met = threading.Barrier(2)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            self.met.wait(timeout=60)
            return self.conv(images)

    assert seconds_beside(Meeting(), torch.rand(2, 3, 4, 4), PLAIN, 2) > 0
    Meeting.met.abort()
    with pytest.raises(threading.BrokenBarrierError):
        seconds_beside(Meeting(), torch.rand(2, 3, 4, 4), PLAIN, 2)
