import sys

import pytest
import torch

from pruning import checkpoint
from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from spaces.errors import ModelError, UnknownNameError, WeightsError
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo import models as zoo

timm = pytest.importorskip("timm", reason="the extra [timm]")

NAME = "timm/lcnet_035"  # small, with depthwise convolutions and gates
SHAPE = (1, 32, 32)


@pytest.fixture
def without_cache(monkeypatch):
    """A cache of the hub without files."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


@pytest.mark.parametrize(("name", "near"), [("timm/resnet19", "timm/resnet18"), ("timm/resnet18.a9_in1k", "a1_in1k")])
def test_unknown_names_and_tags_give_the_nearest(name, near):
    with pytest.raises(UnknownNameError, match=f"'{name}'.*{near}"):
        zoo.build(ModelSpec(name, 10, SHAPE))


def test_widening_is_refused_by_name():
    with pytest.raises(ModelError, match=f"--widen 1.5 .*{NAME}"):
        zoo.build(ModelSpec(NAME, 10, SHAPE, widen=1.5))


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'slimfront\[timm\]'"):
        zoo.default_input_shape(NAME)


def test_input_shapes_are_those_of_timm_and_networks_for_one_size_are_built_for_that_of_the_images():
    assert zoo.default_input_shape("timm/inception_v3") == (3, 299, 299)
    assert zoo.build(ModelSpec("timm/visformer_tiny", 7, (3, 64, 64))).patch_embed1.img_size == (32, 32)


def test_a_narrow_network_comes_back_bit_equal_from_its_checkpoint():
    spec, image = ModelSpec(NAME, 7, SHAPE), torch.rand(2, *SHAPE)
    dense = zoo.build(spec).eval()
    space = trace(dense, image, spec=spec)
    assert [group.name for group in space.groups if group.fixed] == ["classifier"]
    scores = {group.name: torch.rand(group.width) for group in space.variable}
    narrow = slice_channels(dense, space, select_channels(space, scores, space.smallest)).eval()
    back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, spec, space.smallest)).eval()
    with torch.no_grad():
        assert back(image).shape == (2, 7)
        assert torch.equal(back(image), narrow(image))


def test_weights_of_the_hub_fit_other_channels_and_classes(monkeypatch, without_cache):
    published = timm.create_model("lcnet_050").state_dict()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    state = zoo.pretrained(ModelSpec("timm/lcnet_050", 7, SHAPE)).state_dict()
    torch.testing.assert_close(state["conv_stem.weight"], published["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(state["conv_head.weight"], published["conv_head.weight"])
    assert state["classifier.weight"].shape[0] == 7


def test_without_a_network_one_line_says_what_to_do(monkeypatch, without_cache):
    def refuse(*_, **__):
        raise OSError("Name or service not known\nin a second line")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(WeightsError, match="timm/lcnet_050.*Name or service not known.*HF_HOME") as caught:
        zoo.pretrained(ModelSpec("timm/lcnet_050", 10, SHAPE))
    assert "\n" not in str(caught.value)


def test_other_published_weights_are_named_by_tag():
    with pytest.raises(WeightsError, match=r"timm/NAME\.TAG"):
        zoo.pretrained(ModelSpec("timm/lcnet_050", 10, SHAPE), "IMAGENET1K_V1")
