"""Folders of images."""

import pickle

import pytest
import torch
from tiny_images import collected, write_images

from runners.config import DataConfig
from runners.data.loading import load_data
from runners.data.reading import LazySplit
from runners.data.splits import DataError


def test_a_relative_folder_is_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "pets", {"cat": 4, "dog": 4})
    assert len(load_data(DataConfig(name="imagefolder:pets", data_dir=str(tmp_path)), seed=0).train) == 5
    whole = DataConfig(name=f"imagefolder:{tmp_path / 'pets'}", data_dir="/elsewhere")
    assert len(load_data(whole, seed=0).train) == 5


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
