"""Exports of a finished search: every file gives the network's logits by the code on its card."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.loading import RUN_FILE, effective_yaml
from configs.schema import RunConfig
from pruning import checkpoint
from pruning.base import Goal
from pruning.export import ExportError, RefusedError
from pruning.formats import FORMATS, Format
from pruning.quantization.layers import quantize
from pruning.quantization.rounding import register_rounding
from pruning.quantization.static import INT8_FILE
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from runners.config import LatencyConfig
from runners.trial import Trial, TrialResult, TrialState
from search.cli import main
from search.finalization.exports import export_from_run
from search.results.result import DenseResult, SearchResult
from spaces.budget import Budget
from spaces.space import ModelSpec, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.zoo.cifar import LeNet

SHAPE = (1, 28, 28)
SPEC = ModelSpec("lenet5", 10, SHAPE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a narrow LeNet, trial 7, the same quantised, trial 8, and a failure."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    wide = LeNet(10, SHAPE).eval()
    space = trace(wide, torch.empty(1, *SHAPE), spec=SPEC)
    widths = space.fit(uniform_ratios(space), [Budget("params", 100_000)])
    scores = {group.name: torch.rand(group.width) for group in space.groups}
    narrow = slice_channels(wide, space, select_channels(space, scores, widths)).eval()
    rounded = copy.deepcopy(narrow)
    register_rounding(rounded, {"conv2": torch.full((widths["conv2"],), 4, dtype=torch.uint8)})
    results = []
    for number, net in ((7, narrow), (8, quantize(rounded))):
        checkpoint.save(folder / f"{number}.safetensors", net, SPEC, widths)
        trial = Trial(number, "di", Goal(widths), seed=11)
        done = TrialResult(trial, TrialState.COMPLETE, 0.9 - number / 100, space.cost(widths), widths)
        results.append(dataclasses.replace(done, path=f"{number}.safetensors", test_accuracy=0.8))
    results.append(TrialResult(Trial(9, "kse", Goal()), TrialState.FAILED, error="no layer\nto share"))
    config = RunConfig(budget=("0.5mflops",), model="lenet5", seed=3, latency=LatencyConfig(device="none"))
    (folder / RUN_FILE).write_text(effective_yaml(config))
    result = SearchResult(
        config=dataclasses.asdict(config),
        budgets=(Budget("flops", 10**7),),
        dense=DenseResult(0.97, 0.96, space.dense_cost),
        results=tuple(results),
        space={"input_shape": list(SHAPE), "groups": [{"group": name, "width": w} for name, w in space.full.items()]},
        val_images=50,
    )
    (folder / "result.json").write_text(result.to_json())
    return folder


def code_on(card: str, file: str) -> str:
    """Return the code below the heading of a file."""
    found = re.search(rf"### `{re.escape(file)}`.*?```python\n(.*?)```", card, re.DOTALL)
    assert found is not None, f"the card has no code for {file}"
    return found[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
def test_every_file_gives_the_logits_of_the_network_by_the_code_on_its_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_from_run(run, "7", list(FORMATS), tmp_path)
    monkeypatch.chdir(tmp_path)
    images = torch.rand(4, *SHAPE)
    expected = checkpoint.load(run / "7.safetensors").eval()(images)
    card = exported.card.read_text()
    for file in exported.files:
        code = code_on(card, file.path.name)
        names: dict[str, object] = {"wide": LeNet(10, SHAPE)}
        code = code.replace("net = ...", "net = wide").replace("torch.rand(2, 1, 28, 28)", "images")
        code = code.replace('numpy.random.rand(2, 1, 28, 28).astype("float32")', "images.numpy()")
        exec(code, names | {"images": images}, names)
        net = names.get("net")
        got = net(images) if isinstance(net, nn.Module) else torch.from_numpy(names["logits"])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert file.max_difference is None or file.max_difference < 1e-5


def test_the_card_says_what_the_network_is(run: Path, tmp_path: Path) -> None:
    card = export_from_run(run, "", ["safetensors"], tmp_path).card.read_text()
    for words in ("network 7", "83.00%", "80.00%", "97.00%", "at most 10mflops", "3 of the search, 11 of the trial"):
        assert words in card
    assert "| conv1 |  | 20 |" in card


def test_a_quantised_network_runs_as_a_program_and_says_what_a_state_dict_lacks(run: Path, tmp_path: Path) -> None:
    exported = export_from_run(run, "8", ["pt2", "state_dict"], tmp_path)
    images = torch.rand(3, *SHAPE)
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(images), checkpoint.load(run / "8.safetensors").eval()(images))
    assert "layers of its own kind" in exported.card.read_text()


def test_a_file_that_computes_something_else_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Format(
        ".bad", lambda source, path: path.write_bytes(b""), lambda path: lambda images: images.flatten(1)[:, :10]
    )
    monkeypatch.setitem(FORMATS, "bad", broken)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=r"bad refused: its logits differ by .* take another format"):
        export_from_run(run, "7", ["bad"], tmp_path)
    assert not (tmp_path / "model.bad").exists()


@pytest.mark.parametrize(
    ("label", "message"),
    [("5", "no network '5'; it has 7, 8, 9"), ("9", "network 9 has no weights (no layer to share)")],
)
def test_a_network_that_is_not_there_is_named(run: Path, label: str, message: str) -> None:
    with pytest.raises(ExportError, match=re.escape(message)):
        export_from_run(run, label, ["safetensors"])


def test_the_command_prints_the_differences(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "pt2", "--out", str(tmp_path)]) == 0
    assert re.search(r"model.pt2 +[\d,]+ +\d\.\de[-+]\d\d", capsys.readouterr().out)
    assert main(["export", str(run), "--format", "onx"]) == 2
    assert "did you mean onnx?" in capsys.readouterr().err


def test_a_network_of_a_run_is_quantised_and_its_card_says_how_to_run_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_from_run(run, "7", ["safetensors"], tmp_path, int8=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code_on(exported.card.read_text(), INT8_FILE), names)
    assert names["logits"].shape == (2, 10)
    assert exported.int8 is not None
    assert f"| bytes | {(tmp_path / INT8_FILE).stat().st_size:,} | {exported.int8.float_bytes:,} |" in (
        exported.card.read_text()
    )
