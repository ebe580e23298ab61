import subprocess
import sys
import textwrap

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn

from spaces.errors import ModelError, UnknownNameError, WeightsError
from spaces.space import ModelSpec
from spaces.zoo import models as zoo
from spaces.zoo.cifar import CIFAR_NETS


def flops(net, input_shape):
    analysis = FlopCountAnalysis(net.eval(), torch.zeros(1, *input_shape))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


# Convolutions and heads counted by hand for ResNet-56 and LeNet; the others are the published figures of the nets.
@pytest.mark.parametrize(
    ("name", "expected_flops", "expected_parameters"),
    [
        ("cifar_resnet18", 556_659_712, 11_173_962),
        ("cifar_vgg16_bn", 313_755_136, 14_724_042),
        ("densenet40", 269_354_368, 1_019_722),
        ("lenet5", 2_293_000, 431_080),
        ("resnet20", 41_218_688, 272_474),
        ("resnet56", 126_841_472, 855_770),
        ("resnet110", 255_275_648, 1_730_714),
    ],
)
def test_cifar_nets_have_their_published_size(name, expected_flops, expected_parameters):
    shape = zoo.default_input_shape(name)
    net = zoo.build(ModelSpec(name, 10, shape))
    assert flops(net, shape) == expected_flops
    assert parameters(net) == expected_parameters


def test_every_cifar_name_has_a_net():
    assert set(zoo.CIFAR_NAMES) == set(CIFAR_NETS)


@pytest.mark.parametrize("name", zoo.CIFAR_NAMES)
def test_cifar_nets_take_other_channels_and_classes(name):
    net = zoo.build(ModelSpec(name, 7, (1, 32, 32))).eval()
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_lenet_takes_mnist_and_cifar_images():
    assert zoo.build(ModelSpec("lenet5", 10, (1, 28, 28)))(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert zoo.build(ModelSpec("lenet5", 10, (3, 32, 32)))(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(("name", "side"), [("lenet5", 15), ("cifar_vgg16_bn", 31), ("densenet40", 3)])
def test_images_too_small_for_a_net_are_refused_with_the_least_size(name, side):
    with pytest.raises(ModelError, match=f"{side + 1}x{side + 1}"):
        zoo.build(ModelSpec(name, 10, (3, side, side)))


def test_cifar_convolutions_are_he_initialised():
    net = zoo.build(ModelSpec("cifar_vgg16_bn", 10, (3, 32, 32)))
    weight = net.features[-4].weight  # 512 filters of 3x3: standard deviation sqrt(2 / 4608)
    assert weight.std().item() == pytest.approx((2 / 4608) ** 0.5, rel=0.01)


def test_names_are_all_cnns_of_torchvision_and_the_cifar_nets():
    names = zoo.model_names()
    assert {"resnet50", "alexnet", "convnext_tiny", "shufflenet_v2_x1_0", "resnet20"} <= set(names)
    assert not any(name.startswith(("vit", "swin", "maxvit")) for name in names)
    assert names == sorted(names)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5"])
def test_torchvision_nets_take_other_channels_and_classes(name):
    net = zoo.build(ModelSpec(name, 7, (1, 64, 64))).eval()
    assert net(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name):
    net = zoo.build(ModelSpec(name, 5, (3, 96, 96))).train()
    assert net(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_natural_input_shapes():
    assert zoo.default_input_shape("resnet50") == (3, 224, 224)
    assert zoo.default_input_shape("inception_v3") == (3, 299, 299)
    assert zoo.default_input_shape("lenet5") == (1, 28, 28)
    assert zoo.default_input_shape("cifar_resnet18") == (3, 32, 32)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownNameError, match="'resnet51'.*resnet5"):
        zoo.build(ModelSpec("resnet51", 10, (3, 32, 32)))


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "maxvit_t"])
def test_transformers_are_refused(name):
    with pytest.raises(ModelError, match="no CNN"):
        zoo.build(ModelSpec(name, 10, (3, 224, 224)))


@pytest.mark.parametrize(("classes", "shape"), [(0, (3, 32, 32)), (10, (3, 0, 32)), (10, (3, 32))])
def test_impossible_arguments_are_refused(classes, shape):
    with pytest.raises(ModelError):
        zoo.build(ModelSpec("resnet20", classes, shape))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module in the current directory, which is not on the import path."""
    (tmp_path / "own_nets.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def plain():
                return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))

            def sized(num_classes, input_shape=(1, 8, 8), width=4):
                return nn.Sequential(nn.Conv2d(input_shape[0], width, 3), nn.Flatten(), nn.LazyLinear(num_classes))

            def free(**arguments):
                return nn.Linear(arguments["input_shape"][0], arguments["num_classes"])

            def no_net():
                return 3

            def demanding(width):
                return nn.Linear(width, width)

            number = 3
            """
        )
    )
    (tmp_path / "own_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield "own_nets"
    sys.modules.pop("own_nets", None)


def test_factories_get_the_arguments_they_take(own_module):
    assert isinstance(zoo.build(ModelSpec(f"{own_module}:plain", 2, (1, 8, 8))), nn.Sequential)
    assert zoo.build(ModelSpec(f"{own_module}:sized", 5, (2, 8, 8)))(torch.zeros(1, 2, 8, 8)).shape == (1, 5)
    assert zoo.build(ModelSpec(f"{own_module}:free", 5, (2, 8, 8))).in_features == 2


def test_a_factory_says_its_natural_input_shape(own_module):
    assert zoo.default_input_shape(f"{own_module}:sized") == (1, 8, 8)
    assert zoo.default_input_shape(f"{own_module}:plain") == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:net", "No module named 'no_such_module'"),
        ("own_nets:missing", "has no attribute 'missing'"),
        ("own_nets:number", "int"),
        ("own_nets:no_net", "returned a int"),
        ("own_nets:demanding", "missing 1 required positional argument.*mend"),
        ("own_broken:net", "ZeroDivisionError"),
        (":net", "package.module:factory"),
        ("own_nets:", "package.module:factory"),
    ],
)
def test_factories_that_cannot_be_used_are_named(own_module, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        zoo.build(ModelSpec(name, 2, (3, 8, 8)))
    assert repr(name) in str(caught.value)


def test_nets_without_published_weights_say_so():
    with pytest.raises(WeightsError, match="no published weights"):
        zoo.pretrained(ModelSpec("resnet20", 10, (3, 32, 32)))


def test_weights_that_cannot_be_fetched_say_where_they_are_expected(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(WeightsError, match="squeezenet1_1.*no route to host") as caught:
        zoo.pretrained(ModelSpec("squeezenet1_1", 1000, (3, 224, 224)))
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_file_in_torchvisions_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for content in (b"", b"no weights"):
        (tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="sound file"):
            zoo.pretrained(ModelSpec("squeezenet1_1", 1000, (3, 224, 224)))


def test_published_weights_have_a_place_before_they_are_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = zoo.published_file(ModelSpec("squeezenet1_1", 10, (3, 64, 64)))
    assert file == tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightsError, match="no weights IMAGENET1K_V7 of 'squeezenet1_1', but IMAGENET1K_V1"):
        zoo.published_file(ModelSpec("squeezenet1_1", 10, (3, 64, 64)), "IMAGENET1K_V7")
    with pytest.raises(WeightsError, match="'resnet20' has no published weights"):
        zoo.published_file(ModelSpec("resnet20", 10, (3, 32, 32)))


@pytest.fixture
def published(monkeypatch):
    """Stand in for the published weights of a net with those of a fresh one."""

    def publish(name):
        donor = zoo.build(ModelSpec(name, 1000, (3, 64, 64))).eval()
        monkeypatch.setattr(zoo, "_published_state", lambda *_: donor.state_dict())
        return donor

    return publish


def test_pretrained_nets_give_the_published_logits(published):
    donor = published("squeezenet1_1")
    net = zoo.pretrained(ModelSpec("squeezenet1_1", 1000, (3, 64, 64))).eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(image), donor(image))


def test_pretrained_nets_get_a_fresh_classifier_for_other_classes(published):
    donor = published("resnet18")
    net = zoo.pretrained(ModelSpec("resnet18", 5, (3, 64, 64)))
    assert net.fc.weight.shape == (5, 512)
    assert torch.equal(net.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_pretrained_nets_see_grey_images_as_their_three_equal_colours(published):
    donor = published("resnet18")
    net = zoo.pretrained(ModelSpec("resnet18", 1000, (1, 64, 64))).eval()
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(net(image), donor(image.expand(-1, 3, -1, -1)))


def test_pretrained_inception_converts_images_as_torchvision_does(published):
    donor = published("inception_v3")
    net = zoo.pretrained(ModelSpec("inception_v3", 1000, (3, 80, 80))).eval()
    donor.transform_input = True
    image = torch.randn(1, 3, 80, 80)
    torch.testing.assert_close(net(image), donor(image), rtol=1e-4, atol=1e-5)


def test_importing_the_zoo_is_light():
    code = "import sys, spaces.zoo.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_that_torchvision_does_not_have_are_named_with_those_it_has():
    with pytest.raises(WeightsError, match=r"no weights IMAGENET1K_V3 of 'resnet50', but IMAGENET1K_V1, IMAGENET1K_V2"):
        zoo.pretrained(ModelSpec("resnet50", 1000, (3, 64, 64)), "IMAGENET1K_V3")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_of_nets_with_auxiliary_heads_are_loaded_without_the_heads(name, monkeypatch):
    donor = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=True).eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: donor.state_dict())
    net = zoo.pretrained(ModelSpec(name, 1000, (3, 80, 80)))
    assert not [key for key in net.state_dict() if "aux" in key.lower()]
    assert torch.equal(net.fc.weight, donor.fc.weight)
