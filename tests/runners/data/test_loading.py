"""Data sets: what is loaded, how it is cut, and what is said when it cannot be."""

import pickle
import socket
import sys
from pathlib import Path

import pytest
import torch

from runners.config import DataConfig
from runners.data.builtin import check_on_disk
from runners.data.clutter import clutter
from runners.data.loading import DATASETS, DataError, ImageData, class_mixed_order, load_data
from runners.data.splits import Augmentation, LazySplit, Split, TensorSplit
from spaces.errors import UnknownNameError

Image = pytest.importorskip("PIL.Image")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig(), seed=0)


def small_split(count: int = 12, **settings) -> TensorSplit:
    images = torch.arange(count * 3 * 4 * 4).remainder(256).to(torch.uint8).reshape(count, 3, 4, 4)
    return TensorSplit(images, torch.arange(count) % 3, (0.5,) * 3, (0.25,) * 3, (4, 4), **settings)


def write_images(folder: Path, classes: dict[str, int], side: int = 8) -> Path:
    for value, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (side, side), (80 * value, index, 0)).save(folder / name / f"{index}.png")
    return folder


def collected(split: Split, **settings) -> torch.Tensor:
    return torch.cat([images for images, _ in split.batches(5, device=CPU, **settings)])


def test_digits_are_real_images_of_32x32_in_three_equal_channels(digits):
    images, labels = next(digits.train.batches(16, device=CPU))
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1150, 288, 359)
    assert (digits.num_classes, digits.input_shape) == (10, (3, 32, 32))


def test_every_split_of_digits_holds_the_classes_in_proportion(digits):
    for split in (digits.train, digits.val, digits.test, digits.probe, digits.calibration):
        counts = torch.bincount(split.labels, minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.015


def test_the_seed_moves_validation_and_leaves_the_test_images(digits):
    other = load_data(DataConfig(), seed=1)
    assert torch.equal(other.test.images, digits.test.images)
    assert not torch.equal(other.val.images, digits.val.images)
    assert other.fingerprint != digits.fingerprint
    assert load_data(DataConfig(), seed=0).fingerprint == digits.fingerprint


def test_no_image_is_in_two_of_train_val_and_test(digits):
    kept = [{image.numpy().tobytes() for image in split.images} for split in (digits.train, digits.val, digits.test)]
    assert sum(map(len, kept)) == len(set().union(*kept))


def test_heldout_and_calibration_are_training_images_apart_from_each_other(digits):
    train, probe, calibration = (
        {image.numpy().tobytes() for image in split.images}
        for split in (digits.train, digits.probe, digits.calibration)
    )
    assert probe <= train
    assert calibration <= train
    assert not probe & calibration


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        (DataConfig(image_size=16), None, (3, 16, 16)),
        (DataConfig(), (1, 28, 28), (1, 28, 28)),
        (DataConfig(image_size=24), (3, 64, 64), (3, 24, 24)),
    ],
)
def test_the_size_asked_for_wins_over_the_networks_over_the_natural(config, shape, expected):
    data = load_data(config, seed=0, input_shape=shape)
    assert data.input_shape == expected
    assert next(data.val.batches(2, device=CPU))[0].shape[1:] == expected


def test_cluttered_digits_are_the_same_every_time_and_of_the_sizes_said():
    source = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    first, classes = clutter(source, labels, 30, seed=4)
    assert first.shape == (30, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, clutter(source, labels, 30, seed=4)[0])
    assert not torch.equal(first, clutter(source, labels, 30, seed=5)[0])
    assert torch.bincount(classes, minlength=10).tolist() == [3] * 10


def test_cluttered_digits_of_train_and_test_come_from_different_digits(monkeypatch):
    used = []

    def spy(images, labels, count, seed):
        used.append({image.numpy().tobytes() for image in images})
        return clutter(images, labels, 40, seed)

    monkeypatch.setattr("runners.data.builtin.clutter", spy)
    load_data(DataConfig(name="cluttered_digits"), seed=0)
    assert len(used) == 2
    assert not used[0] & used[1]


def test_class_mixed_order_keeps_proportions_in_every_stretch():
    labels = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    order = class_mixed_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for start in range(0, 100, 20):
        assert torch.bincount(labels[order[start : start + 20]], minlength=3).tolist() == [6, 12, 2]


def test_batches_are_normalised_shuffled_by_seed_and_limited():
    split = small_split()
    plain = collected(split)
    assert torch.allclose(plain, (split.images / 255 - 0.5) / 0.25, atol=1e-6)
    assert torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=1))
    assert not torch.equal(collected(split, shuffle_seed=1), collected(split, shuffle_seed=2))
    assert [len(labels) for _, labels in split.batches(5, device=CPU, limit=7)] == [5, 2]


def test_augmentation_moves_each_image_by_at_most_its_shift_and_follows_the_seed():
    images = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 200
    moved = Augmentation(shift=2)(images, torch.Generator().manual_seed(0))
    spots = moved.flatten(1).argmax(1)
    rows, columns = spots // 9, spots % 9
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1) > 0).sum(1).tolist() == [1] * 64
    assert {rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()} == {2, 6}
    assert torch.equal(moved, Augmentation(shift=2)(images, torch.Generator().manual_seed(0)))


def test_half_scales_bytes_to_minus_one_to_one_in_every_part(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, {"a": 4, "b": 4})
    for name in ("digits", f"imagefolder:{tmp_path}"):
        natural, half = (load_data(DataConfig(name=name, scale=scale), seed=0) for scale in ("set", "half"))
        assert natural.fingerprint != half.fingerprint
        for part in ("train", "val", "test", "probe", "calibration"):
            before, after = getattr(natural, part), getattr(half, part)
            std, mean = (torch.tensor(each)[:, None, None] for each in (before.std, before.mean))
            torch.testing.assert_close(collected(after), 2 * (collected(before) * std + mean) - 1, rtol=1e-4, atol=1e-4)


def test_a_zero_border_is_black_and_moves_as_far_as_a_mirrored_one():
    images = torch.full((64, 1, 6, 6), 200, dtype=torch.uint8)
    images[:, :, 2, 3] = 100
    zero, mirrored = (
        Augmentation(shift=2, padding_mode=padding_mode)(images, torch.Generator().manual_seed(0))
        for padding_mode in ("constant", "reflect")
    )
    assert zero.shape == images.shape
    assert set(zero.unique().tolist()) == {0, 100, 200}
    assert set(mirrored.unique().tolist()) == {100, 200}
    inside = zero > 0
    assert torch.equal(zero[inside], mirrored[inside])
    assert inside[:, 0].sum((1, 2)).tolist() == [
        int(columns * rows)
        for columns, rows in zip(inside[:, 0].any(1).sum(1), inside[:, 0].any(2).sum(1), strict=True)
    ]


def test_a_crop_keeps_the_least_area_at_least():
    from runners.data.splits import _random_box

    generator = torch.Generator().manual_seed(0)
    for least in (0.08, 0.5, 1.0):
        areas = [box[2] * box[3] / 100**2 for box in (_random_box(100, 100, least, generator) for _ in range(200))]
        assert least * 0.7 < min(areas) < least * 1.2  # a box longer than the image is cut off
        assert max(areas) <= 1


def test_a_relative_folder_is_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "pets", {"cat": 4, "dog": 4})
    assert len(load_data(DataConfig(name="imagefolder:pets", data_dir=str(tmp_path)), seed=0).train) == 5
    whole = DataConfig(name=f"imagefolder:{tmp_path / 'pets'}", data_dir="/elsewhere")
    assert len(load_data(whole, seed=0).train) == 5


def test_flipping_mirrors_about_half_of_the_images():
    images = torch.arange(4.0).expand(200, 1, 4, 4)
    flipped = Augmentation(flip=True)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 3
    assert 70 < flipped.sum() < 130


def test_a_folder_of_classes_is_split_by_seed(tmp_path):
    write_images(tmp_path, {"cat": 10, "dog": 20})
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)
    other = load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (19, 5, 6)
    assert data.test.labels.tolist().count(0) == 2
    assert torch.equal(data.test.indices, other.test.indices)
    assert not torch.equal(data.val.indices, other.val.indices)
    assert data.input_shape == (3, 32, 32)


def test_a_given_val_folder_is_the_test_set_unless_there_is_a_test_folder(tmp_path):
    for part, count in (("train", 10), ("val", 3)):
        write_images(tmp_path / part, {"cat": count, "dog": count})
    config = DataConfig(name=f"imagefolder:{tmp_path}", image_size=8)
    data = load_data(config, seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    write_images(tmp_path / "test", {"cat": 1, "dog": 2})
    data = load_data(config, seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 6, 3)


def test_folder_images_are_read_normalised_and_augmented_by_seed(tmp_path):
    write_images(tmp_path, {"cat": 5, "dog": 5}, side=12)
    split = load_data(DataConfig(name=f"imagefolder:{tmp_path}", image_size=8), seed=0).train
    assert isinstance(split, LazySplit)
    red = collected(split)[:, 0, 0, 0]
    assert torch.allclose(red, (split.labels * 80 / 255 - 0.485) / 0.229, atol=1e-5)
    first = collected(split, shuffle_seed=1, augment=True)
    assert first.shape == (len(split), 3, 8, 8)
    assert torch.equal(first, collected(split, shuffle_seed=1, augment=True))
    restored = pickle.loads(pickle.dumps(split))
    assert torch.equal(collected(restored), collected(split))


def test_one_threads_batches_equal_many_threads(tmp_path):
    from runners.data.splits import _read_ahead

    def read(position: int) -> torch.Tensor:
        return torch.tensor([position])

    order = torch.arange(23)
    for threads in (1, 4):
        found = [images for _, images in _read_ahead(read, torch.split(order, 4), threads)]
        assert torch.equal(torch.cat(found)[:, 0], order)


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "no class folders"), ({"cat": 3}, "holds one class, 'cat'"), ({"cat": 3, "dog": 0}, "dog holds no images")],
)
def test_folders_without_enough_classes_are_refused(tmp_path, classes, message):
    write_images(tmp_path, classes)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)


def test_a_missing_folder_is_named_with_the_layout_wanted(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*is not a folder; imagefolder: needs PATH/train/CLASS"):
        load_data(DataConfig(name=f"imagefolder:{tmp_path / 'nowhere'}"), seed=0)


def test_a_class_in_val_that_train_lacks_is_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 3, "dog": 3})
    write_images(tmp_path / "val", {"cat": 1, "owl": 1})
    with pytest.raises(DataError, match=r"'owl', which train/ lacks"):
        load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)


def test_a_file_that_is_no_image_is_named_when_loading(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image"):
        load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)


def test_an_image_damaged_behind_its_head_is_named_when_read(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 3}, side=64)
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        collected(data.train)


def test_a_set_that_is_not_on_disk_and_cannot_be_fetched_says_where_it_looked(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    root = tmp_path / "made" / "on the way"
    for name in ("cifar10", "cifar100", "mnist"):
        with pytest.raises(DataError, match=rf"{name} is not in .*on the way and cannot be fetched .*data-dir"):
            load_data(DataConfig(name=name, data_dir=str(root)), seed=0)
    assert list(tmp_path.iterdir()) == []


def test_what_would_be_fetched_is_known_without_fetching(tmp_path):
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("mnist", "MNIST")):
        config = DataConfig(name=name, data_dir=str(tmp_path))
        with pytest.raises(
            DataError, match=f"{name} is not in .* would have to be fetched; .*'{folder}' with --data-dir"
        ):
            check_on_disk(config)
        (tmp_path / folder).mkdir()
        check_on_disk(config)
    check_on_disk(DataConfig(name="digits"))


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write CIFAR-10's layout with 10 images a file, and have torchvision expect the checksums of these files."""
    import hashlib

    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(value: int) -> object:
        return {"data": torch.full((10, 3072), value, dtype=torch.uint8).numpy(), "labels": list(range(10))}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{n}", batch(n)) for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(9))])
    meta = write("batches.meta", {"label_names": [str(n) for n in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]})


def test_cifar_is_read_from_its_own_layout(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    data = load_data(DataConfig(name="cifar10", data_dir=str(tmp_path)), seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 10, 10)
    assert data.train.images.dtype == torch.uint8
    assert data.test.images.unique().tolist() == [9]
    assert data.train.augmentation == Augmentation(shift=4, flip=True)


def test_damaged_cifar_files_are_refused_with_the_way_out(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"incomplete or damaged .*delete that folder"):
        load_data(DataConfig(name="cifar10", data_dir=str(tmp_path)), seed=0)


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
    return load_data(DataConfig(), seed)
def wrong(config, seed):
    return 3
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_images:wrong", "returned int; it must return"),
        ("own_images:missing", "cannot be loaded"),
        ("own_images:value", "is a int; it must be a function"),
        ("no_such_module:make", "cannot be loaded"),
    ],
)
def test_a_users_function_that_does_not_give_images_is_refused(factories, name, message):
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name=name), seed=0)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean cifar10"):
        load_data(DataConfig(name="cifar"), seed=0)
    assert set(DATASETS) == {"digits", "cluttered_digits", "cifar10", "cifar100", "mnist"}
