import json
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from pruning import checkpoint, export
from pruning.quantization.layers import quantize
from pruning.quantization.rounding import register_rounding
from spaces.space import ModelSpec
from spaces.widths import Widths
from spaces.zoo.cifar import LeNet

SPEC = ModelSpec("lenet5", 10, (1, 28, 28))
WIDTHS = Widths({"conv1": 20})


class DropAfter(nn.Module):
    """A net with BatchNorm and dropout, both of which behave otherwise in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x))).mean((2, 3))


class Loop(DropAfter):
    """Its forward asks for values, which torch.export cannot capture; a trace follows one path."""

    def forward(self, x):
        y = super().forward(x)
        return y if y.sum().item() == y.sum().item() else -y


class CountsImages(DropAfter):
    """Neither capture holds for another number of images: it counts them in Python."""

    def forward(self, x):
        return super().forward(x) * sum(1 for _ in x.detach().numpy())


@pytest.fixture
def lenet():
    torch.manual_seed(0)
    return LeNet(10, (1, 28, 28)).eval()


def test_a_member_is_written_as_widths_checkpoint_and_program(lenet, tmp_path):
    written = export.export_network(lenet, SPEC, WIDTHS, (1, 28, 28), tmp_path / "members" / "3")
    assert json.loads(written.widths.read_text()) == {"conv1": 20}
    assert checkpoint.read_header(written.checkpoint).spec == SPEC
    assert written.program is not None
    assert written.program.name == "model.pt2"
    assert written.max_difference <= 1e-5
    assert sorted(path.name for path in written.folder.iterdir()) == ["model.pt2", "model.safetensors", "widths.json"]


def test_the_program_runs_without_this_project(lenet, tmp_path):
    written = export.export_network(lenet, SPEC, WIDTHS, (1, 28, 28), tmp_path / "member")
    image = torch.rand(5, 1, 28, 28)
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys, torch; image = torch.load('image.pt'); net = torch.export.load('member/model.pt2').module();"
        "torch.save(net(image), 'logits.pt'); assert 'spaces' not in sys.modules and 'pruning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=written.folder.parent)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), lenet(image), rtol=1e-5, atol=1e-6)


def test_a_quantised_net_is_written_as_codes_and_as_a_plain_program(lenet, tmp_path):
    register_rounding(lenet, {"conv2": torch.full((50,), 4, dtype=torch.uint8), "fc1": torch.full((500,), 4).byte()})
    written = export.export_network(quantize(lenet), SPEC, WIDTHS, (1, 28, 28), tmp_path)
    assert written.program is not None
    assert written.program.name == "model.pt2"
    assert written.max_difference == 0
    assert written.checkpoint.stat().st_size < 4 * 431_080 / 6
    image = torch.rand(3, 1, 28, 28)
    assert torch.equal(checkpoint.load(tmp_path / export.CHECKPOINT)(image), lenet(image))


def test_the_net_stays_in_its_mode_and_its_program_is_for_inference(tmp_path):
    net = DropAfter().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    written = export.export_network(net, None, {}, (1, 8, 8), tmp_path)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    image = torch.rand(2, 1, 8, 8)
    program = torch.export.load(written.program).module()
    torch.testing.assert_close(program(image), net.eval()(image))


def test_a_net_that_cannot_be_exported_is_traced(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        written = export.export_network(Loop(), None, {}, (1, 8, 8), tmp_path)
    assert written.program is not None
    assert written.program.name == "model.torchscript.pt"
    assert not (tmp_path / "model.pt2").exists()
    assert "model.pt2 cannot be written" in caplog.text


def test_a_program_that_differs_is_not_left_behind(tmp_path):
    written = export.export_network(CountsImages(), None, {}, (1, 8, 8), tmp_path)
    assert written.program is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "widths.json"]


def test_without_a_program_the_one_of_an_earlier_run_goes(lenet, tmp_path):
    (tmp_path / "model.pt2").write_text("stale")
    written = export.export_network(lenet, SPEC, WIDTHS, (1, 28, 28), tmp_path, program=False)
    assert written.program is None
    assert not (tmp_path / "model.pt2").exists()
    assert checkpoint.load(tmp_path / export.CHECKPOINT).conv1.out_channels == 20


def test_a_folder_that_cannot_be_made_is_named(lenet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(export.ExportError, match="file.*cannot be written"):
        export.export_network(lenet, SPEC, WIDTHS, (1, 28, 28), tmp_path / "file" / "member")
