"""Tasks of a user's own: the segmentation of docs/tasks.md is searched as the page says, and mistakes are refused."""

import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import RunConfig
from pruning.base import PruningError
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.data.splits import DataError
from runners.training.task import TaskError
from search.environment import prepare
from search.orchestrator import run
from search.reporting.summary import summary
from search.results.loading import load
from search.results.result import SearchResult
from spaces.errors import ConfigError

PAGE = Path(__file__).parent.parent.parent / "docs" / "tasks.md"
pytestmark = pytest.mark.usefixtures("_shapes")


class NoLoss:
    score_name = "score"
    score = staticmethod(lambda outputs, targets: 0.5)


class Task(NoLoss):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


class VectorLoss(Task):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")


class HighScore(Task):
    score = staticmethod(lambda outputs, targets: 1.5)


class WrongLoss(Task):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.flatten(1), targets)


class Metric(Task):
    """A score of all images together, as a metric of torchmetrics has it."""

    def __init__(self) -> None:
        self.score = self
        self.reset()

    def reset(self) -> None:
        self.hits = self.seen = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.hits += int((outputs.argmax(1) == targets).sum())
        self.seen += targets.numel()

    def compute(self) -> float:
        return self.hits / self.seen


@pytest.fixture(scope="module")
def _shapes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Save the module of the page and let it be imported."""
    folder = tmp_path_factory.mktemp("page")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    # Fewer and smaller images than the page has, for a search of a few seconds.
    text = code[1].replace("side=32", "side=16").replace("6, side - 6", "4, side - 4")
    (folder / "shapes.py").write_text(text.replace("shapes(400, 0), shapes(100, 1)", "shapes(64, 0), shapes(24, 1)"))
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("shapes", None)


def config(out: Path, task: str = "shapes:Segmentation", **changes: Any) -> RunConfig:
    train = {"task": task, "dense_epochs": 3, "batch_size": 16, "lr": 0.05, "device": "cpu", "precision": "float32"}
    train |= changes.pop("train", {})
    settings: dict[str, Any] = {"method": "di,taylor", "trials": 4, "final_epochs": "1", "log_models": "none"}
    return RunConfig(
        budget=("30%",),
        model="shapes:UNet",
        data=DataConfig("shapes:data", **changes.pop("data", {})),
        train=TrainConfig(**train),
        runner=RunnerConfig(name="local"),
        latency=LatencyConfig("none"),
        out=str(out / "run"),
        **{**settings, **changes},
    )


@pytest.fixture(scope="module")
def searched(_shapes: None, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.export._write_program", lambda net, input_shape, folder: (None, 0.0))
        return run(config(tmp_path_factory.mktemp("searched")))


def mean_iou(net: nn.Module, images: Tensor, masks: Tensor) -> float:
    """Count intersections and unions image by image and class by class."""
    scores = []
    for found, true in zip(net(images).argmax(1), masks, strict=True):
        pairs = [((found == kind) & (true == kind), (found == kind) | (true == kind)) for kind in range(3)]
        shares = [int(both.sum()) / int(either.sum()) for both, either in pairs if either.any()]
        scores.append(sum(shares) / len(shares))
    return sum(scores) / len(scores)


def test_a_segmentation_is_searched_and_its_score_is_that_of_the_networks(searched: SearchResult) -> None:
    assert [trial.error for trial in searched.results if trial.error] == []
    chosen = searched.chosen
    assert chosen is not None
    assert chosen.cost is not None
    assert chosen.cost.flops <= 0.3 * searched.dense.cost.flops
    import shapes

    images, masks = shapes.shapes(24, 1)
    net = load(Path(searched.folder) / chosen.path, shapes.UNet())
    with torch.no_grad():
        assert chosen.test_accuracy == pytest.approx(mean_iou(net, images, masks), abs=1e-6)


def test_labels_are_used_nowhere(searched: SearchResult) -> None:
    settings = [trial.trial.settings for trial in searched.results if trial.trial.method == "di"]
    assert settings
    assert all(setting["label_weight"] == 0 for setting in settings)


def test_reports_have_the_name_of_the_score(searched: SearchResult) -> None:
    from io import StringIO

    from search.reporting.wording import make_console, print_parts

    out = StringIO()
    print_parts(make_console(out), summary(searched, Path(searched.folder), "mlflow ui"))
    assert "mean IoU on val and test" in out.getvalue()
    assert "accuracy" not in out.getvalue().lower()
    with (Path(searched.folder) / "front.csv").open() as file:
        (row, *_) = csv.DictReader(file)
    assert 0 < float(row["val_mean_iou"]) < 1
    assert "val_accuracy" not in row
    assert "Mean IoU and cost" in (Path(searched.folder) / "report.html").read_text(encoding="utf-8")
    assert SearchResult.from_json(searched.to_json()).score_name == "mean IoU"


def test_mlflow_has_the_name_of_the_score(searched: SearchResult) -> None:
    from search.tracking.store import open_store

    client = open_store(f"sqlite:///{Path(searched.folder) / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "slimfront"]
    names = {name for found in client.search_runs([experiment.experiment_id]) for name in found.data.metrics}
    assert {"mean_iou", "val_mean_iou", "test_mean_iou", "dense_mean_iou"} <= names
    assert not [name for name in names if "accuracy" in name]


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"train": {"mixup": 0.2}}, ConfigError, "--mixup is for classification"),
        ({"train": {"distill_weight": 0.5}}, ConfigError, "--distill-weight is for classification"),
        ({"final_distill_weight": "0.5"}, ConfigError, "--final-distill-weight is for classification"),
        ({"search_training": "distill-weight"}, ConfigError, "--search-training distill-weight is for"),
        ({"data": {"augment": "cutmix"}}, ConfigError, "--augment cutmix is for classification"),
        ({"data": {"augment": "flip"}}, DataError, "--augment flip changes images alone"),
        ({"data": {"image_size": 32}}, DataError, "scale images and targets in the dataset"),
        ({"set": ("di.label_weight=0.5",)}, PruningError, "di.label_weight=0.5 needs classes"),
        ({"set": ("di.distill=0.5",)}, PruningError, "distill=0.5 of di trains on the dense net's class logits"),
        ({"task": "shapes:nothing"}, TaskError, "'shapes:nothing' cannot be loaded"),
        ({"task": f"{__name__}:NoLoss"}, TaskError, "NoLoss without loss or score"),
        ({"task": f"{__name__}:VectorLoss"}, TaskError, r"a shape \(2, 16, 16\); it must be a scalar"),
        ({"task": f"{__name__}:HighScore"}, TaskError, r"is 1.5; it must lie in \[0, 1\]"),
        ({"task": f"{__name__}:WrongLoss"}, TaskError, r"raised \w+: .* outputs of shape \(2, 3, 16, 16\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_suit_the_task_is_refused_before_any_training(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        prepare(config(tmp_path, **changes))


def test_a_metric_of_all_images_is_read_from_the_start_every_time(tmp_path: Path) -> None:
    environment = prepare(config(tmp_path, task=f"{__name__}:Metric"))
    import shapes

    images, masks = shapes.shapes(24, 1)
    with torch.no_grad():
        expected = float((environment.net(images).argmax(1) == masks).double().mean())
    assert environment.score(environment.net, environment.data.test) == pytest.approx(expected)
    assert environment.score(environment.net, environment.data.test) == pytest.approx(expected)
