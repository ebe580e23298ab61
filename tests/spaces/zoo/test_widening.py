import pytest
import torch
from torch import nn

from pruning import checkpoint
from spaces.counting import count_cost
from spaces.errors import ModelError, WeightsError
from spaces.space import ModelSpec
from spaces.zoo import models as zoo
from spaces.zoo.cifar import CIFAR_NETS
from spaces.zoo.widening import widen


def spec(name, factor, shape=(3, 32, 32), output=""):
    return ModelSpec(name, 10, shape, output, factor)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("lenet5", lambda f: f * 20 * 75 + f * f * 20 * 50 * 25 + f * f * 50 * 25 * 500 + f * 500 * 10),
        # Convolutions of three stages; the first of a stage halves, and a projection takes its place in the shortcut.
        (
            "resnet20",
            lambda f: (
                f * 16 * 27 + f * f * 9 * (6 * 256 + 512 + 5 * 1024 + 2048 + 5 * 4096) + f * f * (512 + 2048) + f * 640
            ),
        ),
    ],
)
def test_weights_grow_with_the_square_of_the_factor_but_at_the_image_and_the_output(name, weights):
    for factor in (1.0, 1.5, 2.0):
        net = zoo.build(spec(name, factor))
        assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == weights(factor)


@pytest.mark.parametrize("name", ["densenet40", "cifar_vgg16_bn", "mobilenet_v2", "resnext50_32x4d", "squeezenet1_0"])
def test_a_wide_net_gives_its_outputs_and_costs_more(name):
    shape = (3, 32, 32) if name in CIFAR_NETS else (3, 64, 64)
    plain, wide = (zoo.build(spec(name, factor, shape)) for factor in (1.0, 1.5))
    assert wide.eval()(torch.zeros(2, *shape)).shape == (2, 10)
    least, most = (count_cost(net, shape).params for net in (plain, wide))
    assert 1.4 * least < most < 2.3 * least


def test_a_factor_under_one_narrows_and_widths_are_rounded():
    net = zoo.build(spec("resnet20", 0.3))
    assert [net.conv1.out_channels, net.fc.in_features] == [5, 19]


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("convnext_tiny", 2.0, "layer_scale"),
        ("densenet121", 1.3, "take a factor that keeps all widths whole"),
        ("resnet20", 0.0, "over 0"),
        ("resnet20", 65.0, "at most 64"),
        ("os:getcwd", 2.0, "takes no argument widen"),
    ],
)
def test_what_cannot_be_widened_is_refused_by_name(name, factor, message):
    with pytest.raises(ModelError, match=message) as refused:
        zoo.build(spec(name, factor, (3, 64, 64)))
    assert name in str(refused.value)


def test_published_weights_are_of_the_own_width():
    with pytest.raises(WeightsError, match="at its own width"):
        zoo.pretrained(spec("resnet18", 2.0))


def test_a_factory_with_the_argument_is_asked_for_the_width(tmp_path, monkeypatch):
    text = "from torch import nn\ndef make(num_classes, widen=1): return nn.Conv2d(3, int(8 * widen), 3)\n"
    (tmp_path / "own_wide_nets.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert zoo.build(spec("own_wide_nets:make", 1.5)).out_channels == 12


def test_depthwise_and_grouped_convolutions_keep_their_kind():
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=4), nn.Flatten()]
    net = widen(nn.Sequential(*layers, nn.Linear(64, 5)), 1.5, 5, (3, 8, 8), "own")
    found = [(layer.in_channels, layer.out_channels, layer.groups) for layer in list(net)[:3]]
    assert found == [(3, 12, 1), (12, 12, 12), (12, 24, 4)]
    assert (net[4].in_features, net[4].out_features) == (96, 5)


def test_a_checkpoint_builds_the_wide_net_again():
    wide = spec("lenet5", 1.5)
    net = zoo.build(wide)
    data = checkpoint.to_bytes(net, wide, {})
    assert checkpoint.header_of(data).spec == wide
    back = checkpoint.from_bytes(data)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in net.state_dict().items())
