import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from pruning.formats import RUNTIME_PACKAGES
from runners.config import LatencyConfig
from runners.latency import engines
from runners.latency.engines import (
    LatencyError,
    check_latency,
    devices,
    keep_freed_memory,
    parse_device,
    prepare,
)

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
HAS_ONNX = all(importlib.util.find_spec(name) for name in RUNTIME_PACKAGES)


def test_texts_name_processors_by_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_count", lambda: 2)
    one, two = parse_device("cpu:1thread"), parse_device("cpu:2threads")
    assert (one.device.type, one.threads, two.threads) == ("cpu", 1, 2)
    assert one.name


def test_accelerators_are_named_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("cuda:1").device == torch.device("cuda", 1)
    assert "cuda:2" not in devices()


@pytest.mark.parametrize("text", ["cpu", "cpu:0threads", "cpu:3threads", "cpu:2", "cuda", "cuda:9", "tpu:0", " "])
def test_an_unknown_device_is_refused_with_the_names_of_the_existing_ones(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "cpu_count", lambda: 2)
    with pytest.raises(LatencyError, match=f"'{text}' is not on this machine; there is: cpu:1thread, cpu:2threads"):
        parse_device(text)


def test_many_cores_are_not_all_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_count", lambda: 64)
    with pytest.raises(LatencyError, match=r"cpu:1thread, cpu:2threads, \.\.\. cpu:64threads"):
        parse_device("gpu")


def test_nothing_is_checked_without_a_device() -> None:
    for text in ("none", ""):
        check_latency(LatencyConfig(text, engine="onnxruntime"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_eager_runs_a_copy_in_the_configured_format(dtype: str, channels_last: bool) -> None:
    config = LatencyConfig("cpu:1thread", (2,), dtype, channels_last)
    check_latency(config)
    program, images = prepare(NET, IMAGES, parse_device("cpu:1thread"), config)()
    assert images.dtype is getattr(torch, dtype)
    assert images.is_contiguous(memory_format=torch.channels_last) is channels_last
    out = program(images)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out.float(), NET.eval()(IMAGES), rtol=0.05, atol=0.05)
    assert NET[0].weight.dtype is torch.float32


def test_every_placement_has_weights_and_images_of_its_own_at_another_place() -> None:
    placement = prepare(NET, IMAGES, parse_device("cpu:1thread"), LatencyConfig("cpu:1thread"))
    (first, images), (second, other_images) = placement(), placement()
    assert isinstance(first, nn.Module)
    assert isinstance(second, nn.Module)
    tensors = [*first.state_dict().values(), *second.state_dict().values(), *NET.state_dict().values()]
    places = [tensor.data_ptr() for tensor in (*tensors, images, other_images, IMAGES)]
    assert len(set(places)) == len(places)
    assert torch.equal(first(images), second(other_images))


def test_an_engine_that_fails_is_refused_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(net: nn.Module, dynamic: bool) -> nn.Module:
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(LatencyError, match=r"'torch.compile' with float32 does not work .*\(no C\+\+ compiler\); take"):
        check_latency(LatencyConfig("cpu:1thread", engine="torch.compile"))


def test_onnxruntime_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(LatencyError, match="needs onnxruntime, not installed here; pip install 'slimfront"):
        check_latency(LatencyConfig("cpu:1thread", engine="onnxruntime"))


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"channels_last": True}])
def test_onnxruntime_takes_ordinary_float32_only(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(LatencyError, match="take --latency-engine eager"):
        check_latency(LatencyConfig("cpu:1thread", engine="onnxruntime", **changes))  # type: ignore[arg-type]


@pytest.mark.skipif(not HAS_ONNX, reason="onnxruntime, onnx and onnxscript are not installed")
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_the_same_answers() -> None:
    config = LatencyConfig("cpu:1thread", engine="onnxruntime")
    check_latency(config)
    program, images = prepare(NET, IMAGES, parse_device("cpu:1thread"), config)()
    (out,) = program(images)  # type: ignore[misc]
    torch.testing.assert_close(torch.from_numpy(out), NET.eval()(IMAGES), rtol=1e-4, atol=1e-5)


# Prints the page faults of 20 calls of a net whose activations are above glibc's initial mmap threshold, before and
# after freed memory is kept.
FAULTS = """
import resource, torch
from runners.latency.engines import keep_freed_memory
torch.set_num_threads(1)
net, images = torch.nn.Conv2d(3, 16, 3, padding=1).eval(), torch.zeros(8, 3, 64, 64)
def faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.no_grad():
        for _ in range(calls):
            blocks = [net(images) for _ in range(8)]
            del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for keeps in (False, True):
    if keeps:
        keep_freed_memory()
    faults(3)
    print(faults(20))
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library cannot keep freed memory")
def test_a_net_meets_no_page_faults_once_it_is_warm() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < 100 < before
