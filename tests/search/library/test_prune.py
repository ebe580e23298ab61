import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_nets import Residual
from torch import nn
from two_inputs import SAMPLES, TwoInputs, inputs

import search
from pruning.base import PruningError
from pruning.checkpoint import save
from pruning.rewriting.surgery import slice_channels
from runners.config import DataConfig
from runners.data.loading import load_data
from runners.data.splits import DataError, Split
from search.cli import main
from spaces.counting import count_cost
from spaces.errors import BudgetError, TraceError
from spaces.space import ModelSpec
from spaces.zoo.models import build

IMAGES = torch.rand(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(SAMPLES) % 5


@pytest.fixture
def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


def test_the_narrow_net_has_the_cost_that_fvcore_counts_and_keeps_the_budget(residual: nn.Module) -> None:
    before = copy.deepcopy(residual.state_dict())
    pruned = search.prune(residual, [(IMAGES, LABELS)], budget="50%")
    assert pruned.cost == count_cost(pruned.net, (3, 8, 8))
    assert pruned.dense_cost == count_cost(residual, (3, 8, 8))
    assert 0.4 * pruned.dense_cost.flops < pruned.cost.flops <= 0.5 * pruned.dense_cost.flops
    assert all(torch.equal(before[name], tensor) for name, tensor in residual.state_dict().items())


def test_memory_and_file_are_hard_budgets_too(residual: nn.Module, tmp_path: Path) -> None:
    pruned = search.prune(residual, IMAGES, budget=["60%activations", "3.5kb"], method="l2")
    assert pruned.dense_cost.activations == 4 * 64 * (8 + 8 + 8)  # the addition of the shortcut
    assert (pruned.cost.activations or 0) <= 0.6 * 4 * 64 * 24
    save(tmp_path / "model.safetensors", pruned.net, None, pruned.widths)
    assert (tmp_path / "model.safetensors").stat().st_size == pruned.cost.size <= 3500


def test_the_selection_names_the_channels_of_the_dense_net(residual: nn.Module) -> None:
    pruned = search.prune(residual, IMAGES, budget="40%", method="l2")
    kept = pruned.selection["stem"]
    assert torch.equal(pruned.net.stem.weight, residual.stem.weight[kept])
    norms = residual.stem.weight.flatten(1).norm(dim=1) + residual.outer.weight.flatten(1).norm(dim=1)
    assert len(kept) == pruned.widths["stem"] < len(norms)
    again = slice_channels(residual, pruned.space, pruned.selection)
    assert torch.equal(again.inner.weight, pruned.net.inner.weight)


def test_several_inputs_and_outputs_stay() -> None:
    torch.manual_seed(0)
    net = TwoInputs()
    images, depths = inputs()
    for given in ((images, depths), {"image": images, "depth": depths}, [((images, depths), None)]):
        pruned = search.prune(net, given, budget=["50%", "900params"])
        found = pruned.net(image=images[:3], depth=depths[:3])
        assert {name: tuple(value.shape) for name, value in found.items()} == {"boxes": (3, 4, 6, 6), "classes": (3, 5)}
        assert pruned.cost.params == sum(parameter.numel() for parameter in pruned.net.parameters()) <= 900


def test_one_pair_of_inputs_and_targets_is_a_batch_where_the_net_takes_one_input(residual: nn.Module) -> None:
    paired, listed = (search.prune(residual, given) for given in ((IMAGES, LABELS), [(IMAGES, LABELS)]))
    assert paired.selection.keys() == listed.selection.keys()
    assert all(torch.equal(kept, listed.selection[name]) for name, kept in paired.selection.items())


class Denoiser(nn.Module):
    """Takes noisy images and the step of every image, as networks of diffusion do."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.of_step = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 16))

    def forward(self, images: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return self.leave(torch.relu(self.enter(images) + self.of_step(steps)[:, :, None, None]))


def test_an_input_of_one_number_a_sample_stays() -> None:
    torch.manual_seed(0)
    net, steps = Denoiser(), torch.arange(SAMPLES) % 10
    pruned = search.prune(net, [((IMAGES, steps), None)], budget="50%", method="l2")
    (kept,) = pruned.selection.values()
    removed = torch.tensor([channel not in kept.tolist() for channel in range(16)])
    with torch.no_grad():
        for layer in (net.enter, net.of_step[1]):
            layer.weight[removed], layer.bias[removed] = 0.0, 0.0
        torch.testing.assert_close(pruned.net(IMAGES, steps), net(IMAGES, steps))


def test_labels_that_the_net_tells_apart_change_what_di_keeps(residual: nn.Module) -> None:
    """Images of one class alone suffice without labels, and are an error where the labels count."""
    one_class = torch.zeros_like(LABELS)
    assert search.prune(residual, IMAGES).cost.flops > 0
    with pytest.raises(PruningError, match="fewer than two classes"):
        search.prune(residual, [(IMAGES, one_class)])
    with pytest.raises(PruningError, match="needs labels"):
        search.prune(residual, IMAGES, method="taylor")
    assert search.prune(residual, [(IMAGES, LABELS)], method="taylor").cost.flops > 0


@pytest.mark.parametrize(
    ("images", "options", "kind", "message"),
    [
        (IMAGES, {"budget": "5ms"}, BudgetError, "needs a search"),
        (IMAGES, {"budget": "0.1%"}, BudgetError, "smallest"),
        (IMAGES, {"method": "aofp"}, PruningError, "trains while it cuts"),
        (IMAGES[:1], {}, DataError, "at least 2"),
        (IMAGES[:, :1], {}, TraceError, "does not run on the first batch"),
        ([], {}, DataError, "0 samples"),
        (7, {}, DataError, "a int"),
    ],
)
def test_what_cannot_be_cut_is_named(residual, images, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        search.prune(residual, images, **options)


def _among_five(net: nn.Module, split: Split) -> float:
    """Return the share of images whose class has at most four others above it."""
    images, labels = next(split.batches(len(split), device=torch.device("cpu")))
    with torch.no_grad():
        logits = net(images)
    return float(((logits > logits.gather(1, labels[:, None])).sum(1) < 5).double().mean())


def test_the_command_cuts_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cut"
    flags = "--model tiny_nets:residual --data digits --image-size 8 --dense-epochs 1 --precision float32 --device cpu"
    assert main(["prune", "--budget", "40%", "--out", str(out), *flags.split()]) == 0
    figures = json.loads((out / "metrics.json").read_text())
    net = search.load(out, trust=True)
    cost = count_cost(net, (3, 8, 8))
    assert (figures["flops"], figures["params"], figures["method"]) == (cost.flops, cost.params, "di")
    kept = json.loads((out / "selection.json").read_text())
    assert {name: len(channels) for name, channels in kept.items()} == json.loads((out / "widths.json").read_text())
    shown = capsys.readouterr().out
    assert f"{100 * figures['test_accuracy']:.2f}%" in shown
    assert "after 1 epoch" in shown
    data = load_data(DataConfig("digits", image_size=8), 0)
    top5 = [_among_five(net, split) for split in (data.val, data.test)]
    assert [figures["val_top5"], figures["test_top5"]] == pytest.approx(top5)
    assert f"Top-5: {100 * top5[0]:.2f}% on val, {100 * top5[1]:.2f}% on test (dense " in shown
    again = f"{flags} --method l2 --epochs 0 --out {tmp_path / 'json'} --json --quiet"
    assert main(["prune", "--budget", "20%params", *again.split()]) == 0
    printed, err = capsys.readouterr()
    assert json.loads(printed) == {
        "folder": str(tmp_path / "json"), **json.loads((tmp_path / "json" / "metrics.json").read_text())
    }  # fmt: skip
    assert err == ""
    shared = f"{flags} --method kse --epochs 0 --out {tmp_path / 'kse'} --quiet"
    assert main(["prune", "--budget", "50%", *shared.split()]) == 0  # by its layers, not its widths
    dense = count_cost(build(ModelSpec("tiny_nets:residual", 10, (3, 8, 8))), (3, 8, 8))
    assert count_cost(search.load(tmp_path / "kse", trust=True), (3, 8, 8)).flops <= dense.flops / 2


def test_the_command_takes_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--budget", "40%", "--method", "l1,l2"]) == 2
    assert "prune uses one" in capsys.readouterr().err
