"""The datasets known by name: their images, and what is said when they cannot be downloaded."""

import pickle
import socket
from pathlib import Path

import pytest
import torch

from runners.config import DataConfig
from runners.data.augmentation import Augmentation
from runners.data.builtin import _scanned_digits, check_on_disk
from runners.data.clutter import clutter
from runners.data.loading import load_data
from runners.data.splits import DataError

CPU = torch.device("cpu")


def test_digits_are_real_images_of_32x32_in_three_equal_channels(digits):
    images, labels = next(digits.train.batches(16, device=CPU))
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1150, 288, 359)
    assert (digits.num_classes, digits.input_shape) == (10, (3, 32, 32))


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = load_digits()
    images, labels = _scanned_digits()
    assert torch.equal(16 * images[:, 0], torch.from_numpy(expected.images).float())
    assert labels.tolist() == expected.target.tolist()


@pytest.mark.parametrize(("name", "counts"), [("cluttered_digits", [6000, 2000]), ("coloured_digits", [1250, 500])])
def test_made_digits_of_train_and_test_come_from_different_digits(name, counts, monkeypatch):
    used, asked = [], []

    def spy(images, labels, count, seed, settings):
        used.append({image.numpy().tobytes() for image in images})
        asked.append(count)
        return clutter(images, labels, 40, seed, settings)

    monkeypatch.setattr("runners.data.builtin.clutter", spy)
    load_data(DataConfig(name=name), seed=0)
    assert asked == counts
    assert not used[0] & used[1]


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
