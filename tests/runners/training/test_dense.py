"""The dense network: trained once, cached, or read from a file that may be wrong."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runners.config import DataConfig, TrainConfig
from runners.data.loading import ImageData, Source, cut
from runners.data.splits import TensorSplit
from runners.learning_curve import LearningCurve
from runners.training.compute_format import ComputeFormat
from runners.training.dense import DenseRecipe, cached_curve, given_net, load_weights, trained_net, weights_digest
from runners.training.scoring import accuracy
from spaces.errors import WeightsError
from spaces.space import ModelSpec

CONFIG = TrainConfig(batch_size=8, dense_epochs=1, precision="float32", device="cpu")

SPEC = ModelSpec("own_net:make", num_classes=2, input_shape=(3, 8, 8))


@pytest.fixture(autouse=True)
def _own_net(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes=2):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def data() -> ImageData:
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = TensorSplit(images, torch.arange(40) % 2, (0.5,) * 3, (0.3,) * 3, (8, 8))
    return cut(Source(split, split, 2, (3, 8, 8)), DataConfig(name="own"), seed=0)


def untrained() -> nn.Module:
    from own_net import make  # type: ignore[import-not-found]

    return make()


def trained(data, folder, *, config=CONFIG, seed=0, weights="", calls=None):
    def on_epoch(epoch: int, reached: float) -> None:
        assert 0 <= reached <= 1
        if calls is not None:
            calls.append(epoch)

    recipe = DenseRecipe(SPEC, data, config, seed)
    net = given_net(SPEC, weights) if weights else trained_net(recipe, folder, on_epoch=on_epoch)
    return net, weights_digest(net)


def test_the_second_call_loads_what_the_first_has_trained(data, tmp_path):
    calls: list[int] = []
    net, digest = trained(data, tmp_path / "cache", calls=calls)
    again, same = trained(data, tmp_path / "cache", calls=calls)
    assert calls == [1]
    assert digest == same == weights_digest(net) == weights_digest(again)
    assert not net.training
    assert not again.training
    assert len(list((tmp_path / "cache" / "dense").glob("*.safetensors"))) == 1


def test_the_learning_curve_is_cached_with_the_network(data, tmp_path):
    recipe = DenseRecipe(SPEC, data, dataclasses.replace(CONFIG, dense_epochs=3), 0)
    assert cached_curve(recipe, tmp_path) is None
    seen: list[float] = []
    net = trained_net(recipe, tmp_path, on_epoch=lambda epoch, reached: seen.append(reached))
    expected = LearningCurve(tuple(seen), accuracy(net, data.probe, device=torch.device("cpu")), len(data.val))
    assert cached_curve(recipe, tmp_path) == expected
    assert expected.epochs == 3
    trained_net(recipe, tmp_path)
    assert cached_curve(recipe, tmp_path) == expected


def test_every_input_of_the_dense_training_has_a_cache_entry_of_its_own(data, tmp_path):
    trained(data, tmp_path)
    trained(data, tmp_path, seed=1)
    trained(data, tmp_path, config=dataclasses.replace(CONFIG, dense_lr=0.01))
    trained(dataclasses.replace(data, fingerprint="other"), tmp_path)
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) == 4
    trained(
        data, tmp_path, config=dataclasses.replace(CONFIG, epochs=9, lr=0.5, distill_weight=0.3, model_ema_decay=0.9)
    )
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) == 4


def test_networks_of_different_precision_have_cache_entries_of_their_own(data):
    recipe = DenseRecipe(SPEC, data, CONFIG, 0)
    low, half, exact, channels_last = (
        dataclasses.replace(recipe, compute_format=ComputeFormat(*settings)).key()
        for settings in ((torch.bfloat16, False), (torch.float16, False), (None, False), (None, True))
    )
    assert len({low, half, exact}) == 3
    assert exact == channels_last
    declared = dataclasses.replace(CONFIG, precision="float16")
    assert dataclasses.replace(recipe, train=declared, compute_format=ComputeFormat(torch.bfloat16)).key() == low
    assert dataclasses.replace(recipe, train=declared).key() != recipe.key()


def test_a_damaged_cache_file_is_replaced(data, tmp_path):
    _, digest = trained(data, tmp_path)
    (file,) = (tmp_path / "dense").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert trained(data, tmp_path)[1] == digest
    assert trained(data, tmp_path, calls=(calls := []))[1] == digest
    assert calls == []


def test_training_leaves_the_global_generator_alone(data, tmp_path):
    before = torch.random.get_rng_state()
    trained(data, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel", "safetensors"])
def test_weights_come_from_every_usual_kind_of_file(data, tmp_path, wrap):
    source = untrained()
    state = source.state_dict()
    file = tmp_path / ("net.safetensors" if wrap == "safetensors" else "net.pt")
    if wrap == "safetensors":
        save_file(state, file)
    elif wrap == "parallel":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, file)
    else:
        torch.save(state if wrap == "plain" else {wrap: state, "epoch": 3}, file)
    assert trained(data, tmp_path / "cache", weights=str(file))[1] == weights_digest(source)
    assert not (tmp_path / "cache").exists()


def test_a_missing_weights_file_is_named(data, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pt is not a file"):
        trained(data, tmp_path, weights=str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_corrupt_weights_file_is_named(data, tmp_path, name):
    (tmp_path / name).write_bytes(b"these are no weights at all")
    with pytest.raises(WeightsError, match=rf"{name} cannot be read as weights"):
        trained(data, tmp_path, weights=str(tmp_path / name))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save(untrained(), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_weights(untrained(), tmp_path / "whole.pt")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        load_weights(untrained(), tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"4.weight": torch.zeros(10, 4)}, r"4\.weight has shape \(10, 4\), the network needs \(2, 4\); take the file"),
        ({"4.weight": None}, r"4\.weight of shape \(2, 4\) is missing \(1 of 9 tensors are\)"),
        ({"fc.weight": torch.zeros(3)}, r"fc\.weight of shape \(3,\) belongs to no layer"),
    ],
)
def test_weights_of_another_network_name_the_first_tensor_that_differs(tmp_path, change, message):
    state = {name: value for name, value in (untrained().state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(untrained(), tmp_path / "net.pt")
