"""The published recipes: every one loads, is accepted whole, and stands for exactly one trial beside the baseline."""

import dataclasses
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from made_up_search import search_of
from PIL import Image
from torch import nn
from traced_zoo import zoo_space

from configs.loading import PRESETS, load
from configs.schema import RunConfig
from pruning.base import METHODS
from pruning.criteria.weights import norm_scores
from pruning.methods.di.gradual import CUTS_PER_EPOCH
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from pruning.settings import declared_settings
from runners.data.source import Shape, Source
from runners.data.splits import TensorSplit
from runners.training.compute_format import PLAIN, StepTiming
from runners.trial import Trial, TrialResult, TrialState
from search.environment import prepare
from search.problem import BASELINES
from spaces.budget import Budget
from spaces.space import ModelSpec, SearchSpace, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

RECIPES = sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "quick")


def test_every_recipe_of_the_papers_is_there() -> None:
    assert RECIPES == sorted(
        ["csgd-resnet56-cifar10", "csgd-resnet50-imagenet", "aofp-vgg16-cifar10", "aofp-resnet56-cifar10",
         "abfp-lenet5-mnist", "abfp-vgg16-cifar10", "abfp-resnet56-cifar10", "kse-resnet56-cifar10",
         "kse-densenet40-cifar10", "kse-resnet50-imagenet", "kse-resnet50-imagenet-best", "di-resnet50-imagenet",
         "di-resnet50-imagenet-44percent"]
    )  # fmt: skip


def recipe(name: str) -> RunConfig:
    config = load(name)
    if config.method not in METHODS:
        pytest.skip(f"method {config.method} is not here")
    return config


def small_set(shape: Shape, classes: int = 10) -> Source:
    images = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = TensorSplit(images, torch.arange(40) % classes, (0.5,) * shape[0], (0.25,) * shape[0], shape[1:])
    return Source(split, split, classes, shape)


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the sets of the recipes: CIFAR-10 and MNIST made up, ImageNet a folder of a few files."""
    monkeypatch.setattr("runners.data.builtin.cifar10", lambda config, shape: small_set((3, 32, 32)))
    monkeypatch.setattr("runners.data.builtin.mnist", lambda config, shape: small_set((1, 28, 28)))
    for part in ("train", "val"):
        for shade, label in enumerate(("cat", "dog")):
            folder = tmp_path / "imagenet" / part / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), (60 * shade, 10 * number, 0)).save(folder / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fixes_every_setting_that_a_search_would_vary(name: str) -> None:
    config = recipe(name)
    assert config.budgets
    (method,) = config.methods
    fixed = config.fixed_settings[method]
    assert len(fixed) == len(config.set)
    assert {setting.name for setting in declared_settings(METHODS[method]) if setting.searchable} <= set(fixed)


@pytest.fixture
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take spaces that other tests have traced too, and time no step: neither is what is tested here."""

    def traced(
        net: nn.Module, images: torch.Tensor, config: SpaceConfig, spec: ModelSpec, alignment: int
    ) -> SearchSpace:
        space = _plain_space(spec.name, spec.num_classes, spec.input_shape)
        return space.restrict(config, alignment)

    monkeypatch.setattr("search.environment.trace", traced)
    monkeypatch.setattr("search.environment.time_steps", lambda *_, **__: StepTiming(PLAIN, 0.001, 0.001, 1, 0.001))


@cache
def _plain_space(name: str, classes: int, shape: Shape) -> SearchSpace:
    return trace(build(ModelSpec(name, classes, shape)), torch.empty(1, *shape))


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_trial_beside_the_baselines(name: str, small_data: Path) -> None:
    config = recipe(name)
    data = dataclasses.replace(config.data, data_dir=str(small_data), val_share=0.2)
    if "imagenet" in name:
        data = dataclasses.replace(data, image_size=64)
    if "gflops" in config.budget[0]:
        config = dataclasses.replace(config, budget=("40%",))  # of what small images cost
    # Published weights are not at hand here, and how to compute fastest is not what is tested.
    train = dataclasses.replace(config.train, precision="float32", device="cpu")
    runner = dataclasses.replace(config.runner, name="local")
    if config.weights:
        train = dataclasses.replace(train, dense_lr_scheduler="constant")
    config = dataclasses.replace(config, data=data, train=train, weights="", runner=runner)

    problem = prepare(config).problem
    search = search_of(problem)
    trials = []
    while (trial := search.ask()) is not None:
        trials.append(trial)
        search.tell(_result(trial, problem.space))
    # `di` with widths of its own is a baseline; in a space of one network all widths are uniform.
    *baselines, published = trials if config.method != "di" else (trials[0], trials[2], trials[1])
    kinds = [(baseline.method, baseline.widths) for baseline in BASELINES]
    unneeded = [("di", "own")] if config.space.bound or config.method == "di" else []
    assert [(trial.method, trial.baseline) for trial in baselines] == [kind for kind in kinds if kind not in unneeded]
    assert (published.method, published.baseline) == (config.method, "own" if config.method == "di" else "")
    assert published.settings == problem.fixed[config.method]
    assert METHODS[config.method](**published.settings)
    assert {budget.limit for budget in published.goal.budgets} <= {
        min(problem.budgets[0].limit, problem.space.cost(problem.space.largest).flops)
    }
    if config.space.bound:
        assert problem.space.largest == problem.space.smallest
        assert published.goal.widths == problem.space.largest
    else:
        assert published.goal.widths is None


def _result(trial: Trial, space: SearchSpace) -> TrialResult:
    return TrialResult(trial, TrialState.COMPLETE, 0.5, space.smallest_cost, space.smallest)


def _flops(net: nn.Module, shape: Shape) -> int:
    """Convolutions and linear layers alone, as the papers count."""
    count = FlopCountAnalysis(net.eval(), torch.zeros(1, *shape)).unsupported_ops_warnings(False).by_operator()
    return int(count["conv"] + count["linear"])


@pytest.mark.parametrize(
    ("name", "shape", "percent"),
    [
        ("csgd-resnet56-cifar10", (3, 32, 32), 60.85),
        ("abfp-resnet56-cifar10", (3, 32, 32), 60.85),
        ("abfp-lenet5-mnist", (1, 28, 28), 95.11),
        ("abfp-vgg16-cifar10", (3, 32, 32), 79.91),
    ],
)
def test_the_widths_of_a_recipe_remove_the_published_share_of_the_flops(name: str, shape: Shape, percent: float):
    config = load(name)
    net = build(ModelSpec(config.model, 10, shape))
    space = trace(net, torch.zeros(1, *shape), config.space)
    narrow = slice_channels(net, space, select_channels(space, norm_scores(net, space, order=1), space.largest))
    assert round(100 * (1 - _flops(narrow, shape) / _flops(net, shape)), 2) == percent


def _densenet40_flops(stem: int) -> int:
    """Return the multiplications of DenseNet-40 with growth 12, layer by layer."""
    width, flops = stem, 32 * 32 * 9 * 3 * stem
    for block, side in enumerate((32, 16, 8)):
        for _ in range(12):
            flops += side * side * 9 * width * 12
            width += 12
        flops += side * side * width * width if block < 2 else width * 10
    return flops


def test_kse_has_the_published_share_of_a_densenet_with_another_stem() -> None:
    assert round(_densenet40_flops(24) / 1e6, 1) == 282.9  # the paper's dense network
    config = load("kse-densenet40-cifar10")
    assert _flops(build(ModelSpec(config.model, 10, (3, 32, 32))), (3, 32, 32)) == _densenet40_flops(16)
    assert config.budget == (f"{100 * 115e6 / _densenet40_flops(24):.2f}%",)


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return build(ModelSpec("resnet50", 1000, (3, 224, 224)))


@pytest.mark.parametrize(
    ("share", "percent"),
    [(0.7, 35.69), (0.6, 45.88), (0.5, 55.44)],  # as in the file; as its comment says for the others
)
def test_inner_layers_of_resnet50_remove_the_published_shares_of_the_flops(
    resnet50: nn.Module, share: float, percent: float
) -> None:
    config = load("csgd-resnet50-imagenet").space
    shares = {stage: math.ceil(share * width) / width for stage, width in enumerate((64, 128, 256, 512), start=1)}
    bound = tuple(f"layer{stage}.*={kept}:{kept}" for stage, kept in shares.items())
    if share == 0.7:
        assert config.bound == bound
    net, shape = resnet50, (3, 224, 224)
    space = zoo_space("resnet50", 224, 1000).restrict(dataclasses.replace(config, bound=bound))
    for group in space.variable:
        assert (group.lowest, group.ceiling) == (math.ceil(share * group.width),) * 2
    assert len(space.variable) == 32
    narrow = slice_channels(net, space, select_channels(space, norm_scores(net, space, order=1), space.largest))
    assert round(100 * (1 - _flops(narrow, shape) / _flops(net, shape)), 2) == percent


def test_di_cuts_half_a_percent_twice_an_epoch_and_retrains_as_long_as_its_authors() -> None:
    config = load("di-resnet50-imagenet")
    texts = config.fixed_settings["di"]
    settings = {name: float(texts[name]) for name in ("step", "gradual_epochs", "gradual_rate")}
    dense = zoo_space("resnet50", 224, 1000).dense_cost
    assert config.model == "resnet50"
    share = 1 - Budget.parse(config.budget[0]).limit / dense.flops
    assert share / (CUTS_PER_EPOCH * settings["gradual_epochs"]) == pytest.approx(settings["step"], rel=0.02)
    assert settings["gradual_rate"] * config.train.lr == pytest.approx(0.01024)
    assert config.train.epochs - settings["gradual_epochs"] == 120


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_every_option_of_training(name: str) -> None:
    """Nothing is left to defaults that may change: a recipe is what its file says."""
    text = (PRESETS / f"{name}.yaml").read_text()
    config = load(name)
    options = {"epochs", "batch_size", "lr", "lr_scheduler", "warmup_epochs", "momentum", "nesterov",
               "weight_decay", "label_smoothing", "mixup", "clip_grad_norm", "precision"}  # fmt: skip
    if not config.weights:
        options |= {"dense_epochs", "dense_lr", "dense_lr_scheduler", "dense_warmup_epochs"}
    assert not [option for option in options if f"\n  {option}: " not in text]
    assert "# ours" in text
    assert text.startswith(f"# {config.method.upper().replace('CSGD', 'C-SGD')}, ")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_nothing_beyond_what_the_paper_does(name: str) -> None:
    assert load(name).final_training == 0
