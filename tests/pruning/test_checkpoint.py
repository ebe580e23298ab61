import json
import os
import sys
from random import Random

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from pruning import checkpoint
from spaces.errors import WeightsError
from spaces.space import ModelSpec
from spaces.widths import Widths
from spaces.zoo import models as zoo
from spaces.zoo.cifar import DenseNet, ResNet

RESNET = ModelSpec("resnet20", 10, (3, 32, 32))
WIDTHS = Widths({"conv1": 5, "layers.stage2.0.conv1": 9})


def narrow_resnet():
    """A ResNet-20 with the tensors' names of the zoo's and fewer channels, after a training step's worth of change."""
    net = ResNet(((5, 3), (9, 3), (11, 3)), 10, 3)
    net(torch.randn(4, 3, 32, 32))  # moves the running statistics
    return net


def assert_equal_nets(first, second, image):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(first.eval()(image), second.eval()(image))


def test_a_narrow_net_comes_back_bit_equal(tmp_path):
    net = narrow_resnet()
    checkpoint.save(tmp_path / "net.safetensors", net, RESNET, WIDTHS)
    assert_equal_nets(checkpoint.load(tmp_path / "net.safetensors"), net, torch.randn(2, 3, 32, 32))


def test_layers_know_their_new_sizes_and_can_be_trained():
    net = checkpoint.from_bytes(checkpoint.to_bytes(narrow_resnet(), RESNET, WIDTHS))
    assert (net.conv1.out_channels, net.bn1.num_features, net.fc.in_features) == (5, 5, 11)
    assert net.training
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("mobilenet_v2", lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.5)),
        ("mnasnet1_0", lambda: torchvision.models.mnasnet0_5(num_classes=10)),
        ("densenet40", lambda: DenseNet(7, 12, 10, 3)),
        ("googlenet", lambda: zoo.build(ModelSpec("googlenet", 10, (3, 64, 64)))),
        ("convnext_tiny", lambda: zoo.build(ModelSpec("convnext_tiny", 10, (3, 64, 64)))),
    ],
)
def test_nets_with_depthwise_layers_concatenation_and_layer_norm_come_back(name, narrow):
    net = narrow()
    back = checkpoint.from_bytes(checkpoint.to_bytes(net, ModelSpec(name, 10, (3, 64, 64)), {}))
    assert_equal_nets(back, net, torch.randn(1, 3, 64, 64))


def test_loading_draws_no_random_numbers_and_no_memory_for_dense_weights():
    data = checkpoint.to_bytes(narrow_resnet(), RESNET, WIDTHS)
    torch.manual_seed(0)
    checkpoint.from_bytes(data)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_the_header_is_read_without_building():
    path_free = checkpoint.to_bytes(narrow_resnet(), RESNET, WIDTHS)
    assert checkpoint._header(path_free, "bytes").spec == RESNET
    assert checkpoint._header(path_free, "bytes").widths == WIDTHS


def test_read_header_of_a_file(tmp_path):
    checkpoint.save(tmp_path / "net", narrow_resnet(), None, WIDTHS)
    header = checkpoint.read_header(tmp_path / "net")
    assert (header.spec, header.widths) == (None, WIDTHS)


class Tied(nn.Module):
    """An autoencoder whose decoder shares the encoder's weight."""

    def __init__(self, width):
        super().__init__()
        self.encoder = nn.Linear(width, width, bias=False)
        self.decoder = nn.Linear(width, width, bias=False)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return self.decoder(self.encoder(x)) * self.scale


def test_tied_weights_stay_tied():
    back = checkpoint.from_bytes(checkpoint.to_bytes(Tied(3), None, {}), model=Tied(6))
    assert back.encoder.weight is back.decoder.weight
    assert back(torch.zeros(1, 3)).shape == (1, 3)
    assert not back.scale.requires_grad


def test_a_live_module_is_the_dense_net_and_stays_untouched(tmp_path):
    checkpoint.save(tmp_path / "net", Tied(3), None, {})
    dense = Tied(6)
    assert checkpoint.load(tmp_path / "net", model=dense).encoder.in_features == 3
    assert dense.encoder.weight.shape == (6, 6)
    assert dense.encoder.in_features == 6


def test_without_spec_and_model_the_error_says_what_to_pass(tmp_path):
    checkpoint.save(tmp_path / "net", Tied(3), None, {})
    with pytest.raises(WeightsError, match="as `model`"):
        checkpoint.load(tmp_path / "net")


def test_a_factory_net_comes_back(tmp_path, monkeypatch):
    (tmp_path / "checkpoint_nets.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net(num_classes):\n    width = int(torch.ones(4).sum().item())\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten(), nn.Linear(width * 4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ModelSpec("checkpoint_nets:net", 5, (3, 2, 2))
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 5))
    data = checkpoint.to_bytes(net, spec, {})
    with pytest.raises(WeightsError, match="wants to import and call 'checkpoint_nets:net'.* pass trust=True"):
        checkpoint.from_bytes(data)
    assert "checkpoint_nets" not in sys.modules
    given = checkpoint.from_bytes(data, nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5)))
    assert_equal_nets(given, net, torch.randn(1, 3, 2, 2))
    assert "checkpoint_nets" not in sys.modules
    checkpoint.write(tmp_path / "net", data)
    for back in (checkpoint.from_bytes(data, trust=True), checkpoint.load(tmp_path / "net", trust=True)):
        assert_equal_nets(back, net, torch.randn(1, 3, 2, 2))
    sys.modules.pop("checkpoint_nets")


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the tensors and in the header; padding behind the header alone means nothing."""
    data = checkpoint.to_bytes(narrow_resnet(), RESNET, WIDTHS)
    header = 8 + int.from_bytes(data[:8], "little")
    random = Random(0)
    places = [*random.sample(range(8, header), 60), *random.sample(range(header, len(data)), 20)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << random.randrange(8)
        if place < header and data[place : place + 1] == b" " and data[place:header].isspace():
            continue
        with pytest.raises(WeightsError):
            checkpoint.load(written(tmp_path, bytes(changed)))


def forged(net, changes):
    """A file whose header was changed by someone who also made a fitting digest."""
    data = checkpoint.to_bytes(net, RESNET, WIDTHS)
    header = json.loads(checkpoint._metadata(data, "it")["slimfront"]) | changes
    tensors = safetensors.torch.load(data)
    header["digest"] = checkpoint._digest(header, tensors)
    return safetensors.torch.save(tensors, metadata={"slimfront": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": ["resnet20", 10**12, [3, 32, 32], ""]}, "claims 1000000000000 classes"),
        ({"spec": ["resnet20", 11, [3, 32, 32], ""]}, "claims 11 classes and gives 10 outputs"),
        ({"spec": ["resnet20", 10, [3, 10**9, 32], ""]}, "claims images of"),
        ({"spec": ["resnet20", 10, [1, 32, 32], ""]}, "do not fit each other or images of"),
        ({"spec": ["resnet56", 10, [3, 32, 32], ""]}, "does not belong to this network"),
        ({"spec": ["os:getcwd", 10, [3, 32, 32], ""]}, "wants to import and call 'os:getcwd'"),
        ({"widths": {"conv1": 10**15}}, "claims 1000000000000000 channels of 'conv1', which has 5"),
        ({"widths": {"conv1": 0}}, "damaged header"),
        ({"aliases": {"conv1.weight": "gone"}}, "damaged header"),
        ({"layers": {"conv1": {"kind": "os", "structure": {}}}}, "'conv1' that cannot be built"),
    ],
)
def test_a_header_that_says_what_the_tensors_are_not_is_refused(tmp_path, changes, words):
    with pytest.raises(WeightsError, match=words):
        checkpoint.load(written(tmp_path, forged(narrow_resnet(), changes)))


def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path):
    net = narrow_resnet()
    net.bn1.bias = nn.Parameter(torch.zeros(6))
    with pytest.raises(WeightsError, match="do not fit each other"):
        checkpoint.load(written(tmp_path, checkpoint.to_bytes(net, RESNET, WIDTHS)))


def test_saving_replaces_the_whole_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("old")
    checkpoint.save(path, Tied(3), None, {})
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert checkpoint.read_header(path).spec is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WeightsError, match="file.net cannot be written"):
        checkpoint.save(tmp_path / "file" / "net", Tied(3), None, {})


def written(tmp_path, data):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    return path


def test_files_that_are_no_checkpoint_are_named_with_the_way_out(tmp_path):
    good = checkpoint.to_bytes(narrow_resnet(), RESNET, WIDTHS)
    foreign = safetensors.torch.save({"weight": torch.zeros(2)})
    damaged = safetensors.torch.save({"weight": torch.zeros(2)}, metadata={"slimfront": "{}"})
    other = safetensors.torch.save({"weight": torch.zeros(2)}, metadata={"slimfront": '{"format": "from-the-future"}'})
    cases = {b"": "corrupt", b"not safetensors at all": "corrupt", b"\x02" + b"\0" * 7 + b"[]": "corrupt"}
    cases |= {good[:-10]: "corrupt", good[:100]: "corrupt", foreign: "not the widths", damaged: "damaged header"}
    cases |= {other: "from-the-future"}
    for data, message in cases.items():
        path = written(tmp_path, data)
        with pytest.raises(WeightsError, match=message) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            checkpoint.load(path)


def test_weights_of_another_network_are_refused_with_the_first_difference():
    data = checkpoint.to_bytes(Tied(3), ModelSpec("resnet20", 10, (3, 32, 32)), {})
    with pytest.raises(WeightsError, match="tensors differ, the first is 'bn1.bias'"):
        checkpoint.from_bytes(data)


def test_a_pickle_is_never_read(tmp_path):
    path = tmp_path / "pickle.pt"
    torch.save(Tied(3), path)
    with pytest.raises(WeightsError):
        checkpoint.load(path)
