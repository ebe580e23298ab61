"""The index of a folder of images, and its cache."""

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import collected, write_images

from runners.config import DataConfig
from runners.data import folder_index
from runners.data.folder_index import ImageFiles, index_folder, sample_digest
from runners.data.loading import load_data
from runners.data.splits import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"cat": 3, "dog": 2}, side=40)


def test_files_are_in_the_order_of_their_classes_and_paths(folder: Path) -> None:
    write_images(folder, {"dog/b": 1})
    Image.new("RGB", (64, 64)).save(folder / "dog" / "b0.PNG")
    (folder / "dog" / "notes.txt").write_text("no image")
    index = index_folder(folder, ["cat", "dog"])
    assert [index.path(number).relative_to(folder).as_posix() for number in range(len(index))] == [
        "cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/b/0.png", "dog/b0.PNG",
    ]  # fmt: skip
    assert index.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert index.side == 40


def test_headers_are_read_again_only_when_the_listing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    shorter_side = folder_index._shorter_side
    monkeypatch.setattr(folder_index, "_shorter_side", lambda file: read.append(file) or shorter_side(file))
    first = index_folder(folder, ["cat", "dog"])
    again = index_folder(folder, ["cat", "dog"])
    assert len(read) == 5
    assert (again.content, again.side, again.labels.tolist()) == (first.content, 40, first.labels.tolist())
    assert again.path(4) == first.path(4)
    assert index_folder(folder, ["cat", "cow", "dog"]).labels.tolist() == [0, 0, 0, 2, 2]
    assert len(read) == 10
    index_folder(folder, ["cat", "dog"])
    Image.new("RGB", (40, 40)).save(folder / "cat" / "3.png")
    assert len(index_folder(folder, ["cat", "dog"])) == 6
    read.clear()
    os.utime(folder / "cat" / "0.png", ns=(1, 1))  # written anew in its place
    assert index_folder(folder, ["cat", "dog"]).content != first.content
    assert len(read) == 6


def test_a_reading_process_is_sent_the_folder_not_the_files_and_sees_a_change(folder: Path) -> None:
    index = index_folder(folder, ["cat", "dog"])
    files = ImageFiles(folder, ("cat", "dog"), index.content, index)
    sent = pickle.dumps(files)
    assert b".png" not in sent
    assert pickle.loads(sent)[4].getpixel((0, 0)) == files[4].getpixel((0, 0)) == (80, 1, 0)
    for file in (folder_index.cache_root() / "folders").iterdir():
        file.unlink()  # as on another machine
    assert pickle.loads(sent)[4].getpixel((0, 0)) == (80, 1, 0)
    (folder / "cat" / "0.png").unlink()
    index_folder(folder, ["cat", "dog"])
    with pytest.raises(DataError, match="have changed since the search began"):
        pickle.loads(sent)[0]


def test_a_folder_without_a_cache_is_read_all_the_same(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("no folder")
    assert len(index_folder(folder, ["cat", "dog"])) == 5
    assert f"the cache {cache} cannot be written" in caplog.text


def test_a_damaged_cache_is_made_anew(folder: Path) -> None:
    index_folder(folder, ["cat", "dog"])
    for file in (folder_index.cache_root() / "folders").iterdir():
        file.write_bytes(b"damaged")
    assert len(index_folder(folder, ["cat", "dog"])) == 5


def test_the_fingerprint_covers_content_of_equal_size(tmp_path: Path) -> None:
    found = []
    for value in (1, 2, 2):
        image = Image.new("RGB", (8, 8), (value, 0, 0))
        for part, count in (("a", 6), ("b", 6)):
            (tmp_path / "set" / part).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image.save(tmp_path / "set" / part / f"{number}.bmp")
        found.append(load_data(DataConfig(name=f"imagefolder:{tmp_path / 'set'}"), seed=0).fingerprint)
    assert found[0] != found[1]
    assert found[1] == found[2]
    index = index_folder(tmp_path / "set", ["a", "b"])
    (tmp_path / "set" / "a" / "0.bmp").unlink()
    with pytest.raises(DataError, match=r"0\.bmp cannot be read as an image"):
        sample_digest(index)


def test_images_of_sixteen_bits_are_scaled_not_cut_off(folder: Path) -> None:
    deep = np.full((40, 40), 100 * 256, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "cat" / "0.png")
    index = index_folder(folder, ["cat", "dog"])
    assert ImageFiles(folder, ("cat", "dog"), index.content, index)[0].getpixel((3, 3)) == (100, 100, 100)


def test_images_of_a_folder_are_read_by_other_processes_too_without_another_listing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.data.reading.READ_HERE", 0)
    here, there = (
        load_data(DataConfig(name=f"imagefolder:{folder}", workers=workers), seed=0).train for workers in (0, 1)
    )
    monkeypatch.setattr(folder_index, "_cached", None)
    assert torch.equal(collected(here), collected(there))


def png_that_claims(side: int) -> bytes:
    """The header of a PNG alone."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_460, 12_000, 60_000])
def test_an_image_that_claims_more_pixels_than_memory_holds_is_refused_by_name(folder: Path, side: int) -> None:
    (folder / "dog" / "bomb.png").write_bytes(png_that_claims(side))
    with pytest.raises(
        DataError, match=r"dog/bomb\.png (claims 9,460 x 9,460|claims 12,000|cannot be read as an image)"
    ):
        index_folder(folder, ["cat", "dog"])


@pytest.mark.parametrize("target", ["../../secret.png", "/dev/zero", "nowhere.png"])
def test_a_link_that_leaves_the_folder_is_refused_by_name(folder: Path, target: str) -> None:
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    (folder / "dog" / "link.png").symlink_to(target)
    with pytest.raises(DataError, match=r"dog/link\.png is a link to '.*', which is not in "):
        index_folder(folder, ["cat", "dog"])


def test_a_class_folder_that_is_a_link_out_of_the_folder_is_refused_by_name(folder: Path) -> None:
    write_images(folder.parent / "elsewhere", {"cow": 1})
    (folder / "cow").symlink_to(folder.parent / "elsewhere" / "cow")
    with pytest.raises(DataError, match="images/cow is a link to"):
        index_folder(folder, ["cat", "cow", "dog"])


def test_a_link_inside_the_folder_is_an_image_like_others(folder: Path) -> None:
    (folder / "dog" / "link.png").symlink_to("0.png")
    assert len(index_folder(folder, ["cat", "dog"])) == 6


def test_a_device_or_pipe_that_is_named_like_an_image_is_refused_by_name(folder: Path) -> None:
    os.mkfifo(folder / "dog" / "pipe.png")
    with pytest.raises(DataError, match=r"dog/pipe\.png is named like an image and is no regular file"):
        index_folder(folder, ["cat", "dog"])
