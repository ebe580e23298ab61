"""The int8 file of a trained LeNet-5 is small and about as accurate, by ONNX Runtime itself, as the float32 network."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import RunConfig
from pruning.base import Goal
from pruning.formats import FormatError
from pruning.quantization.static import INT8_FILE, check_int8
from runners.config import DataConfig, LatencyConfig, TrainConfig
from runners.data.loading import load_data
from runners.trial import Trial, TrialResult, TrialState
from search.cli import main
from search.finalization.int8 import Quantizer
from search.reporting.page.int8 import int8_statements, int8_table
from search.results.int8 import Int8
from spaces.zoo.cifar import LeNet

SHAPE = (1, 28, 28)
CONFIG = RunConfig(
    budget=("50%",),
    model="lenet5",
    data=DataConfig("digits"),
    train=TrainConfig(device="cpu"),
    latency=LatencyConfig(device="none"),
)
MEMBER = TrialResult(Trial(7, "di", Goal()), TrialState.COMPLETE, test_accuracy=0.9)


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return Quantizer(load_data(CONFIG.data, 0, SHAPE), CONFIG)


def test_int8_is_a_quarter_of_the_size_and_about_as_accurate(quantizer: Quantizer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net, data = LeNet(10, SHAPE), quantizer.data
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for images, labels in data.train.batches(32, device=torch.device("cpu"), shuffle_seed=0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    made = quantizer(MEMBER, net.eval(), tmp_path)
    assert not made.refused
    session = onnxruntime.InferenceSession(tmp_path / INT8_FILE, providers=["CPUExecutionProvider"])
    images, labels = next(data.test.batches(len(data.test), device=torch.device("cpu")))
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        float_accuracy = (net(images).argmax(1) == labels).float().mean().item()
    assert made.test_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert float_accuracy > 0.7
    assert abs(made.test_accuracy - float_accuracy) < 0.03
    assert 0.2 < (tmp_path / INT8_FILE).stat().st_size / made.float_bytes < 0.3
    assert (made.float_test_accuracy, made.untimed) == (0.9, "latency is not measured")


def test_a_board_times_both_files_with_the_batch_of_its_inference(quantizer: Quantizer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    seen = tmp_path / "seen"
    script = tmp_path / "board.py"
    script.write_text(
        "import os, shutil, sys\n"
        f"shutil.copy(sys.argv[1], {str(seen)!r} + ('8' if 'int8' in sys.argv[1] else '32'))\n"
        "print(os.path.getsize(sys.argv[1]) / 1000)\n"  # a millisecond per kilobyte
    )
    board = LatencyConfig(command=f"{sys.executable} -S {script} {{model}}", batch=(3,))
    made = Quantizer(quantizer.data, dataclasses.replace(CONFIG, latency=board))(
        MEMBER, LeNet(10, SHAPE).eval(), tmp_path
    )
    sizes = {bits: seen.with_name(f"seen{bits}").stat().st_size for bits in (8, 32)}
    assert (made.seconds, made.float_seconds) == (pytest.approx(sizes[8] / 1e6), pytest.approx(sizes[32] / 1e6))
    assert made.low == made.high == made.seconds
    assert made.conditions == f"the device of {board.command!r}, batch 3"
    images = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    logits = []
    for path in (seen.with_name("seen8"), tmp_path / INT8_FILE):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits.append(session.run(None, {"images": images})[0])
    np.testing.assert_array_equal(*logits)
    assert onnxruntime.InferenceSession(seen.with_name("seen32")).get_inputs()[0].shape == [3, *SHAPE]


def test_a_network_that_cannot_be_quantised_is_named_and_leaves_no_file(quantizer: Quantizer, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, 10:20]

    made = quantizer(MEMBER, Branching().eval(), tmp_path)
    assert made.refused
    assert not (tmp_path / INT8_FILE).exists()
    assert int8_statements({"7": made}) == [f"network 7 has no int8 file: {made.refused}"]


def test_without_the_extra_one_line_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(FormatError, match=r"needs onnxruntime, .* pip install 'slimfront\[onnx\]'"):
        check_int8()
    assert main(["--budget", "50%", "--model", "lenet5", "--data", "digits", "--quantize", "int8"]) == 2
    assert "pip install 'slimfront[onnx]'" in capsys.readouterr().err


def test_the_table_has_a_line_per_network() -> None:
    timed = Int8("", 1000, 4000, 0.97, 0.98, 0.96, 0.965, "cpu:1thread, batch 1", 0.001, 0.0009, 0.0011, 0.002)
    table = int8_table({"7": timed, "9": dataclasses.replace(timed, seconds=None), "3": Int8(refused="no")})
    assert table is not None
    assert [row[0] for row in table.rows] == ["7", "9"]
    assert table.rows[0][-4:] == ("96.00%", "96.50%", "1", "2")
    assert table.rows[1][-2] == "-"
