"""Datasets that a user's function returns: what is taken as it is meant, and what is refused before any training."""

import random
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import collected
from torch.utils.data import Subset, TensorDataset

from runners.config import DataConfig
from runners.data import user_sets
from runners.data.loading import cut, load_data
from runners.data.source import Shape
from runners.data.splits import DataError
from runners.data.user_sets import user_source
from search.cli import main

CPU = torch.device("cpu")


class Samples:
    """A dataset of the samples that a function of their index returns."""

    def __init__(self, sample, count: int = 12) -> None:
        self.sample, self.count = sample, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.sample(index)


def pixel(index: int) -> torch.Tensor:
    """An image of bytes of 3x6x6 that holds its index."""
    return torch.full((3, 6, 6), index, dtype=torch.uint8)


def made(sample, config: DataConfig | None = None, shape: Shape | None = None, count: int = 12, test=None):
    parts = Samples(sample, count), test or Samples(lambda index: (pixel(index), index % 2))
    config = config or DataConfig(name="own:make")
    return cut(user_source("own:make", parts, config, shape), config, 0)


PLAIN = collected(made(lambda index: (pixel(index), index % 2)).train)
Named = namedtuple("Named", "image label")


@pytest.mark.parametrize(
    "sample",
    [
        lambda i: {"image": pixel(i), "label": i % 2},
        lambda i: {"img": pixel(i), "fine_label": i % 2, "path": "a"},
        lambda i: {"photo": pixel(i), "kind": i % 2},
        lambda i: (pixel(i), i % 2, i),
        lambda i: (pixel(i), i % 2, {"path": "a"}),
        lambda i: [pixel(i), i % 2],
        lambda i: Named(pixel(i), i % 2),
        lambda i: (pixel(i).numpy(), np.int64(i % 2)),
        lambda i: (pixel(i).permute(1, 2, 0).numpy(), i % 2),
        lambda i: (pixel(i).permute(1, 2, 0), torch.tensor(i % 2)),
        lambda i: (pixel(i)[0].numpy(), torch.tensor([i % 2])),
        lambda i: (pixel(i)[:1], float(i % 2)),
        lambda i: (pixel(i)[None], torch.eye(2)[i % 2]),
        lambda i: (pixel(i).long(), bool(i % 2)),
        lambda i: (pixel(i)[0].numpy().astype(np.uint16) * 256, i % 2),
        lambda i: (Image.new("RGB", (6, 6), (i, i, i)), i % 2),
        lambda i: (Image.new("L", (6, 6), i), i % 2),
        lambda i: (Image.new("RGBA", (6, 6), (i, i, i, 255)), i % 2),
        lambda i: (Image.fromarray(np.full((6, 6), i * 256, dtype=np.uint16)), i % 2),
    ],
)
def test_samples_of_many_forms_are_the_same_images(sample) -> None:
    data = made(sample, shape=(3, 6, 6))
    assert torch.allclose(collected(data.train), PLAIN, atol=1e-5)
    assert (data.num_classes, data.input_shape) == (2, (3, 6, 6))


def bad(wrong, at: int = 7):
    """Return samples of which one is wrong."""
    return lambda index: wrong if index == at else (pixel(index), index % 2)


def raising(index: int):
    if index == 7:
        raise KeyError("path")
    return pixel(index), index % 2


def spoilt(value: float):
    images = torch.zeros(12, 3, 6, 6)
    images[7, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (bad("a.png"), "sample 7 is 'a.png'; it must be (image, class), or a dict with 'image' and 'label'"),
        (bad({"path": "a.png", "size": "b"}), "sample 7 is a dict with 'path', 'size'; it must be (image, class)"),
        (bad((3, pixel(3), 0)), "sample 7 is a tuple of 3 (int, Tensor, int); it must be (image, class)"),
        (bad((pixel(3), "cat")), "sample 7 has class 'cat'; it must be a whole number from 0"),
        (bad((pixel(3), -1)), "sample 7 has class -1; it must be a whole number from 0"),
        (bad((pixel(3), 10**30)), "sample 7 has class 10"),
        (bad((pixel(3), 0.5)), "sample 7 has class 0.5; it must be a whole number from 0"),
        (bad((pixel(3), None)), "sample 7 has class None; it must be a whole number from 0"),
        (bad((pixel(3), torch.tensor([0.2, 0.8]))), "sample 7 has class an array of shape (2,)"),
        (
            bad((pixel(3), 5)),
            "train sample 7 has class 5, and no image has class 2; every class from 0 to the highest must have",
        ),
        (lambda i: (pixel(i), 1 + i % 2), "train sample 1 has class 2, and no image has class 0; every class from 0"),
        (lambda i: (pixel(i), 0), "train has images of one class"),
        (bad((torch.zeros(5, 6, 6, dtype=torch.uint8), 0)), "sample 7 has 5 channels; the network reads 3"),
        (bad((torch.zeros(3, 6, 6), 0)), "sample 7 is an image of floats, others of bytes"),
        (bad((pixel(3).long() + 300, 0)), "sample 7 has pixels from 303 to 303 of torch.int64; give uint8 from 0"),
        (bad((np.zeros((3, 6, 6), dtype=complex), 0)), "sample 7 has pixels of complex128"),
        (bad((torch.zeros(2, 2, 3, 6, 6), 0)), "sample 7 has an image of shape (2, 2, 3, 6, 6); it must be (C, H, W)"),
        (lambda i: (spoilt(float("nan"))[i], i % 2), "sample 7 has 1 of 108 pixels that are NaN or infinite"),
        (lambda i: (spoilt(float("inf"))[i], i % 2), "sample 7 has 1 of 108 pixels that are NaN or infinite"),
        (raising, "sample 7 cannot be read (KeyError: 'path'); it must be (image, class), or a dict"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named_with_what_was_expected(sample, message: str) -> None:
    with pytest.raises(DataError) as error:
        made(sample)
    assert str(error.value).startswith("own:make train ")
    assert message in str(error.value)


def test_a_class_of_the_test_images_that_training_lacks_is_named() -> None:
    with pytest.raises(DataError, match="own:make test sample 5 has class 5; the classes of training are 0 to 1"):
        made(bad((pixel(1), 1)), test=Samples(lambda index: (pixel(index), index if index > 4 else 0)))


def test_sizes_that_change_are_scaled_to_one() -> None:
    sizes = made(lambda i: (torch.zeros(3, 33 + i, 50, dtype=torch.uint8), i % 2))
    assert sizes.input_shape == (3, 32, 32)
    assert collected(sizes.train).shape == (len(sizes.train), 3, 32, 32)
    floats = made(lambda i: (torch.full((3, 8 + i % 2, 8), 0.1 * i), i % 2), DataConfig(name="own:make", image_size=8))
    assert collected(floats.train).shape[1:] == (3, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (spoilt(float("nan")), torch.arange(12) % 2, "own:make train sample 7 has 1 of 108 pixels that are NaN"),
        (spoilt(0.0).numpy().astype(complex), torch.arange(12) % 2, "has pixels of complex128"),
        (spoilt(0.0), torch.arange(12) - 1, "own:make train sample 0 has class -1"),
        (spoilt(0.0), torch.arange(11), "images of shape (12, 3, 6, 6) and labels of shape (11,)"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_alike(images, labels, message: str) -> None:
    with pytest.raises(DataError) as error:
        user_source("own:make", ((images, labels), (images, labels)), DataConfig(), None)
    assert message in str(error.value)


def test_arrays_may_have_channels_last_or_be_grey_or_a_tensor_dataset() -> None:
    images, labels = torch.stack([pixel(index) for index in range(12)]), torch.arange(12) % 2
    forms = [
        (images.permute(0, 2, 3, 1).numpy(), labels.numpy()),
        (images[:, 0].numpy(), labels[:, None]),
        TensorDataset(images, labels),
        [images, torch.eye(2)[labels]],
    ]
    for form in forms:
        found = user_source("own:make", (form, form), DataConfig(), (3, 6, 6)).train
        assert torch.equal(found.images, images)
        assert torch.equal(found.labels, labels)


def test_listed_classes_are_believed_only_where_they_are_those_of_the_samples(monkeypatch) -> None:
    monkeypatch.setattr(user_sets, "SURVEY_SECONDS", 0.0)
    monkeypatch.setattr(user_sets, "MANY", 50)  # so that processes read them
    dataset = Samples(lambda index: (pixel(index), index % 2), count=120)
    dataset.targets = [index % 2 for index in range(120)]
    read = []
    dataset.sample = lambda index: read.append(index) or (pixel(index), index % 2)
    assert user_source("own:make", (dataset, dataset), DataConfig(), None).train.labels.tolist() == dataset.targets
    assert len(set(read)) < 70
    dataset.targets = [2 * label for label in dataset.targets]  # which a target_transform makes 0 and 1
    subset = Subset(dataset, list(range(1, 120)))
    labels = user_source("own:make", (subset, dataset), DataConfig(), None).train.labels
    assert labels.tolist() == [index % 2 for index in range(1, 120)]
    dataset.sample = lambda index: (pixel(index), index % 2 // (index != 101))
    with pytest.raises(DataError, match=r"train sample 101 cannot be read \(ZeroDivisionError"):
        user_source("own:make", (dataset, dataset), DataConfig(), None)


def test_a_users_images_are_changed_only_when_asked() -> None:
    sample = lambda index: (torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(index)), index % 2)  # noqa: E731
    train = made(sample).train
    assert torch.equal(collected(train, shuffle_seed=3, augment=True), collected(train, shuffle_seed=3))


class Transformed(Samples):
    """A dataset with a transform, as those of torchvision have."""

    def __init__(self, transform, count: int = 24) -> None:
        super().__init__(lambda index: (self.transform(pixel(index)), index % 2), count)
        self.transform = transform

    def __getitem__(self, index: int):
        return self.transform(pixel(index)), index % 2


def noisy(image: torch.Tensor) -> torch.Tensor:
    return image + torch.randint(0, 9, (3, 6, 6), dtype=torch.uint8) + random.randrange(9) + int(np.random.randint(9))


def same(image: torch.Tensor) -> torch.Tensor:
    return image


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_random_transform_serves_for_training_alone(wrapped: bool) -> None:
    train, test = Transformed(noisy), Transformed(same)
    if wrapped:
        train, test = Subset(train, range(24)), Subset(test, range(20))
    data = cut(user_source("own:make", (train, test), DataConfig(), None), DataConfig(), 0)
    plain = cut(user_source("own:make", (Transformed(same), test), DataConfig(), None), DataConfig(), 0)
    for part in ("val", "probe", "calibration", "test"):
        assert torch.equal(collected(getattr(data, part)), collected(getattr(plain, part)))
        assert torch.equal(getattr(data, part).labels, getattr(plain, part).labels)
    first = collected(data.train, shuffle_seed=1, augment=True)
    assert torch.equal(first, collected(data.train, shuffle_seed=1, augment=True))
    assert not torch.equal(first, collected(plain.train, shuffle_seed=1))


def test_a_random_transform_that_would_touch_validation_or_test_is_refused() -> None:
    noise = Samples(lambda index: (noisy(pixel(index)), index % 2))
    plain = Samples(lambda index: (pixel(index), index % 2))
    with pytest.raises(DataError, match=r"train gives other images at a second reading.*return \(train, val, test\)"):
        user_source("own:make", (noise, plain), DataConfig(), None)
    for parts in ((plain, noise), (plain, noise, plain)):
        with pytest.raises(DataError, match="gives other images at a second reading; it must give the same, so leave"):
            user_source("own:make", parts, DataConfig(), None)
    data = cut(
        user_source("own:make", {"train": noise, "validation": plain, "test": plain}, DataConfig(), None),
        DataConfig(),
        0,
    )
    assert torch.equal(data.val.labels, torch.arange(12) % 2)
    assert torch.equal(collected(data.probe), collected(data.probe))


class Filed(Samples):
    """A dataset whose images lie in one file, which it opens when it is first read, or at once."""

    def __init__(self, path: Path, at_once: bool) -> None:
        super().__init__(None, 120)
        self.path, self.file = path, open(path, "rb") if at_once else None

    def __getitem__(self, index: int):
        self.file = self.file or open(self.path, "rb")
        self.file.seek(108 * index)
        pixels = np.frombuffer(self.file.read(108), dtype=np.uint8).reshape(3, 6, 6)
        return pixels, index % 2, self.file.close() if self.file.closed else None


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("at_once", [False, True])
def test_a_dataset_of_one_file_is_read_by_processes_only_where_each_opens_its_own(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.stack([pixel(index) for index in range(120)])
    (tmp_path / "images.bin").write_bytes(images.numpy().tobytes())
    monkeypatch.setattr("runners.data.reading.READ_HERE", 8)
    dataset = Filed(tmp_path / "images.bin", at_once)
    train = user_source("own:make", (dataset, dataset), DataConfig(workers=2), None).train
    assert (dataset.file is None) != at_once
    expected = collected(user_source("own:make", ((images, torch.arange(120) % 2),) * 2, DataConfig(), None).train)
    mean, std = (torch.tensor(values)[:, None, None] for values in (train.mean, train.std))
    for limit in (6, None, 6):
        assert torch.allclose(collected(train, limit=limit) * std + mean, expected[:limit] * 0.25 + 0.5, atol=1e-5)
    assert ("no other can read them (cannot pickle" in caplog.text) == at_once
    assert (dataset.file is None) != at_once


def test_the_fingerprint_covers_what_the_dataset_yields_and_all_labels() -> None:
    first = made(lambda index: (pixel(index), index % 2)).fingerprint
    assert made(lambda index: (pixel(index), index % 2)).fingerprint == first
    assert made(lambda index: (pixel(index) + 1, index % 2)).fingerprint != first
    assert made(lambda index: (pixel(index), int(index > 5))).fingerprint != first


def test_a_class_with_one_image_is_trained_on() -> None:
    for seed in range(6):
        source = user_source(
            "own:make", (Samples(lambda i: (pixel(i), 2 if i == 3 else i % 2)),) * 2, DataConfig(), None
        )
        data = cut(source, DataConfig(val_share=0.6), seed)
        assert data.train.labels.unique().tolist() == [0, 1, 2]


FACTORIES = """
import torch
def tensors(config, seed):
    return (torch.rand(20, 3, 8, 8), torch.arange(20) % 2), (torch.rand(6, 3, 8, 8), torch.arange(6) % 2)
class Pairs:
    def __len__(self): return 10
    def __getitem__(self, index):
        if index >= 10: raise IndexError
        return torch.full((3, 8, 8), float(index)), index % 2
def datasets(config, seed):
    return Pairs(), Pairs()
def whole(config, seed):
    from runners.data.loading import load_data
    from runners.config import DataConfig
    return load_data(DataConfig("digits"), seed)
def wrong(config, seed):
    return 3
def many(config, seed):
    import dataclasses
    split = tensors(config, seed)[0][0]
    from runners.data.splits import TensorSplit
    split = TensorSplit(split, torch.arange(20), (0.0,) * 3, (1.0,) * 3, (8, 8))
    return dataclasses.replace(whole(config, seed), train=split, num_classes=3)
def other(config, seed):
    import dataclasses
    return dataclasses.replace(whole(config, seed), input_shape=(1, 8, 8))
def empty(config, seed):
    return (torch.rand(0, 3, 8, 8), torch.arange(0)), Pairs()
def loader(config, seed):
    return torch.utils.data.DataLoader(Pairs()), Pairs()
def arrays(config, seed):
    return tensors(config, seed)[0]
def raises(config, seed):
    return {}["path"]
value = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_images"
    sys.modules.pop("own_images", None)


def test_a_users_function_may_return_tensors_datasets_or_image_data(factories):
    tensors = load_data(DataConfig(name=f"{factories}:tensors"), seed=0)
    assert (len(tensors.train), len(tensors.val), len(tensors.test)) == (16, 4, 6)
    assert (tensors.num_classes, tensors.input_shape) == (2, (3, 8, 8))
    datasets = load_data(DataConfig(name=f"{factories}:datasets"), seed=0)
    assert collected(datasets.test)[:, 0, 0, 0].tolist() == list(range(10))
    assert load_data(DataConfig(name=f"{factories}:whole"), seed=0).name == "digits"
    changed = [load_data(DataConfig(name=f"{factories}:datasets", **{setting: value}), seed=0).fingerprint
               for setting, value in (("augment", "none"), ("workers", 0), ("augment", "flip"))]  # fmt: skip
    assert [fingerprint == datasets.fingerprint for fingerprint in changed] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_images:wrong", "returned int; it must return"),
        ("own_images:many", "own_images:many train sample 3 has class 3; the classes of training are 0 to 2"),
        ("own_images:other", r"other train has images of shape \(3, 32, 32\); its input_shape is \(1, 8, 8\)"),
        ("own_images:empty", "own_images:empty train holds no images; fill it"),
        ("own_images:loader", "returned a DataLoader for train, without a length or an image by its index"),
        ("own_images:arrays", "arrays train sample 0 is an array of shape .*; it must be"),
        ("own_images:raises", "raised KeyError: 'path'; it must return"),
        ("own_images:missing", "cannot be loaded"),
        ("own_images:value", "is a int; it must be a function"),
        ("no_such_module:make", "cannot be loaded"),
    ],
)
def test_a_users_function_that_does_not_give_images_is_refused(factories, name, message):
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name=name), seed=0)


def test_a_wrong_sample_ends_the_command_with_code_2_and_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_images.py").write_text(
        "import torch\n"
        "def make(config, seed):\n"
        "    images = torch.zeros(12, 3, 8, 8)\n"
        "    images[7] = float('nan')\n"
        "    part = [(image, index % 2) for index, image in enumerate(images)]\n"
        "    return part, part\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = f"--budget 50% --model tiny_nets:residual --data bad_images:make --out {tmp_path / 'run'}"
    assert main(flags.split()) == 2
    assert capsys.readouterr().err == (
        "error: bad_images:make train sample 7 has 192 of 192 pixels that are NaN or infinite; all must be finite\n"
    )
    assert not (tmp_path / "run").exists()
