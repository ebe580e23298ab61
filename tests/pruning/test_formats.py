import importlib.util
import re
import zipfile

import pytest
import torch
from torch import nn

from pruning import checkpoint, formats
from pruning.formats import FORMATS, FormatError, read_program, write_network
from spaces.errors import UnknownNameError
from spaces.space import ModelSpec
from spaces.zoo.cifar import LeNet

SHAPE = (1, 28, 28)
SPEC = ModelSpec("lenet5", 10, SHAPE)
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the extra [onnx]")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return LeNet(10, SHAPE).train()


@pytest.mark.parametrize("name", [pytest.param("onnx", marks=needs_onnx), "pt2", "torchscript"])
def test_a_program_gives_the_logits_of_the_net_for_any_number_of_images(net, name, tmp_path):
    path = write_network(net, name, tmp_path / "net", SHAPE)
    assert net.training
    assert [file.name for file in tmp_path.iterdir()] == ["net"]
    assert not re.findall(rb"/[\w./-]+\.py\b", contents(path))  # stack traces would hold paths of this machine
    images = torch.rand(5, *SHAPE)
    expected = LeNet(10, SHAPE)
    expected.load_state_dict(net.state_dict())
    for batch in (images[:1], images):
        torch.testing.assert_close(read_program(name, path)(batch), expected.eval()(batch), rtol=1e-4, atol=1e-5)


def contents(path):
    """Return the bytes of a file; of an archive those of its entries, which may be compressed."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(entry) for entry in archive.infolist())


@needs_onnx
def test_a_fixed_batch_is_written_into_the_shape(net, tmp_path):
    import onnx

    path = write_network(net, "onnx", tmp_path / "net.onnx", SHAPE, batch=3)
    images = onnx.load(path).graph.input[0]
    assert images.name == "images"
    assert [axis.dim_value for axis in images.type.tensor_type.shape.dim] == [3, *SHAPE]


def test_weights_are_those_of_the_net(net, tmp_path):
    write_network(net, "state_dict", tmp_path / "net.pt", SHAPE)
    write_network(net, "safetensors", tmp_path / "net.safetensors", SHAPE, spec=SPEC)
    loaded = torch.load(tmp_path / "net.pt", weights_only=True)
    rebuilt = checkpoint.load(tmp_path / "net.safetensors").state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(rebuilt[name], tensor)
    with pytest.raises(FormatError, match="holds weights and no program"):
        read_program("safetensors", tmp_path / "net.safetensors")


class Asks(nn.Module):
    """torch.export cannot capture a branch on values."""

    def forward(self, x):
        return x.mean((1, 2, 3)) if x.sum().item() > 0 else -x.mean((1, 2, 3))


def test_a_net_that_cannot_be_written_is_an_error_that_leaves_no_file(tmp_path):
    (tmp_path / "net.pt2").write_text("of an earlier run")
    with pytest.raises(FormatError, match=r"cannot be written as pt2 \(.+\); take another format: onnx, torchscript"):
        write_network(Asks(), "pt2", tmp_path / "net.pt2", SHAPE)
    assert (tmp_path / "net.pt2").read_text() == "of an earlier run"


def test_unknown_formats_and_missing_packages_are_named(net, monkeypatch, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown format 'onx'; did you mean onnx"):
        write_network(net, "onx", tmp_path / "net", SHAPE)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnx" else object())
    line = "format onnx needs onnx, not installed here; pip install 'slimfront[onnx]'"
    with pytest.raises(FormatError, match=re.escape(line)):
        write_network(net, "onnx", tmp_path / "net", SHAPE)
    assert list(FORMATS) == ["onnx", "pt2", "torchscript", "safetensors", "state_dict"]
