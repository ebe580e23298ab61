"""Images that are read when a batch needs them, in this process or in others."""

import os
import pickle
import signal
import time

import pytest
import torch
from tiny_images import collected, write_images

from runners.config import DataConfig
from runners.data import reading
from runners.data.augmentation import Augmentation
from runners.data.loading import load_data
from runners.data.reading import Decoder, ImageReader, Item, LazySplit
from runners.data.splits import DataError

CPU = torch.device("cpu")


class Numbered:
    """Images of 3x4x4 that hold their index, the process that read them, and a random number."""

    def __getitem__(self, index):
        if index == 66:
            raise DataError("sample 66 is bad; repair it")
        return torch.stack([torch.full((4, 4), float(index)), torch.full((4, 4), float(os.getpid())), torch.rand(4, 4)])


def numbered(workers: int, count: int = 60, **settings) -> LazySplit:
    decoder = Decoder(Numbered(), (0.0,) * 3, (4, 4), byte=False, **settings)
    labels = torch.arange(count) % 3
    return LazySplit(ImageReader(decoder, workers), torch.arange(count), labels, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(reading, "READ_HERE", 8)


def test_batches_do_not_depend_on_the_processes_that_read_them():
    here, others = numbered(0), numbered(2, augmentation=Augmentation(flip=True))
    here = here.with_augmentation(Augmentation(flip=True))
    for settings in ({}, {"shuffle_seed": 4}, {"shuffle_seed": 4, "augment": True}, {"limit": 31}):
        first, second = (collected(split, **settings)[:, [0, 2]] for split in (here, others))
        assert torch.equal(first, second)


@pytest.mark.parametrize("mixing", [(), ("mixup", "cutmix")])
def test_batches_after_those_that_are_left_out_are_the_same_and_read_no_other_image(mixing, monkeypatch):
    split = numbered(0, augmentation=Augmentation(flip=True, mixing=mixing, classes=3 if mixing else 0))
    settings = {"device": torch.device("cpu"), "shuffle_seed": 4, "augment": True}
    whole = list(split.batches(8, **settings, limit=44))
    read, image = [], Numbered.__getitem__
    monkeypatch.setattr(Numbered, "__getitem__", lambda self, index: read.append(index) or image(self, index))
    later = list(split.batches(8, **settings, limit=44, skip=3))
    assert len(read) == 20
    for batch, own in zip(whole[3:], later, strict=True):
        assert all(torch.equal(*parts) for parts in zip(batch, own, strict=True))


def test_processes_are_kept_from_one_reading_to_the_next_and_shared_by_subsets():
    split = numbered(2)
    first = collected(split)[:, 1].unique()
    assert len(first) == 2
    assert os.getpid() not in first.tolist()
    assert torch.equal(collected(split.subset(torch.arange(50)), shuffle_seed=1, augment=True)[:, 1].unique(), first)
    assert collected(split, limit=5)[:, 1].unique().tolist() == [os.getpid()]


def test_a_reading_inside_another_and_one_that_was_left_early_are_whole():
    split, order = numbered(2), list(range(60))
    outer = split.batches(5, device=CPU)
    begun = next(outer)[0]
    assert collected(split)[:, 0, 0, 0].tolist() == order
    rest = torch.cat([begun, *(images for images, _ in outer)])
    assert rest[:, 0, 0, 0].tolist() == order
    left = split.batches(5, device=CPU)
    next(left)
    left.close()
    assert collected(split)[:, 0, 0, 0].tolist() == order


def test_processes_end_at_once_with_the_split_that_was_left_early():
    split = numbered(1)
    pid = int(collected(split)[0, 1, 0, 0])
    left = split.batches(5, device=CPU)
    next(left)
    left.close()
    begin = time.monotonic()
    del left, split
    assert time.monotonic() - begin < 4
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_generators_of_the_reader_stay_as_they_were():
    for workers in (0, 1):
        before = torch.get_rng_state()
        collected(numbered(workers), shuffle_seed=1, augment=True)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_without_a_traceback(workers):
    split = numbered(workers, count=70)
    with pytest.raises(DataError) as error:
        collected(split)
    assert str(error.value) == "sample 66 is bad; repair it"
    assert len(collected(split, limit=60)) == 60


def test_a_process_that_was_killed_is_an_error_with_the_way_out():
    split = numbered(1)
    pid = int(collected(split)[0, 1, 0, 0])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads images ended .*; lower --data-workers, or take 0"):
        collected(split)
    assert len(collected(split)) == 60


def test_a_split_is_pickled_without_its_processes():
    split = numbered(1)
    expected = collected(split)[:, [0, 2]]
    assert torch.equal(collected(pickle.loads(pickle.dumps(split)))[:, [0, 2]], expected)


def test_a_picture_is_scaled_to_its_shorter_side_and_cropped(tmp_path):
    from PIL import Image

    class Wide:
        def __getitem__(self, index):
            wide = Image.new("RGB", (40, 20), (10, 20, 30))
            wide.paste((250, 0, 0), (0, 0, 9, 20))  # outside of the middle
            return wide

    image = Decoder(Wide(), (0.5,) * 3, (20, 20)).read(Item(0, 0, augment=False))[0]
    assert image.shape == (3, 20, 20)
    assert image.flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]
    assert Decoder(Wide(), (0.5,), (8, 8)).read(Item(0, 0, augment=False))[0].shape == (1, 8, 8)


def test_an_image_damaged_behind_its_head_is_named_when_read(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 3}, side=64)
    data = load_data(DataConfig(name=f"imagefolder:{tmp_path}"), seed=0)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"\.png cannot be read as an image"):
        collected(data.train)


@pytest.mark.gpu
def test_batches_on_an_accelerator_are_those_on_the_processor(accelerator):
    split = numbered(2)
    for settings in ({}, {"shuffle_seed": 4, "augment": True}):
        found = [images.cpu() for images, _ in split.batches(7, device=accelerator, **settings)]
        assert torch.equal(torch.cat(found)[:, [0, 2]], collected(split, **settings)[:, [0, 2]])
