"""Reading a folder of JPEG files, measured alternately with torchvision's reference loader at as many processes.

    pytest tests/benchmarks/test_image_files.py --benchmark-only -s

The reference is that of torchvision's references/classification: `ImageFolder`, random crop, flip, a normalised float
tensor for each image, and a DataLoader with kept processes. The images of this project leave their process as bytes.
"""

import os
import pickle
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from runners.config import DataConfig
from runners.data.folder_index import ImageFiles, index_folder
from runners.data.loading import load_data
from runners.data.source import MEAN, STD

IMAGES = int(os.environ.get("SLIMFRONT_BENCHMARK_IMAGES", "512"))
FILES = int(os.environ.get("SLIMFRONT_BENCHMARK_FILES", "20000"))
WORKERS = int(os.environ.get("SLIMFRONT_BENCHMARK_WORKERS", "2"))
ROUNDS, SIDE, BATCH = 5, 224, 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEAST = 0.9  # of the images per second of the reference


def write_photographs(folder: Path, count: int) -> Path:
    """Write JPEGs of 500x375, as most of ImageNet's are, of two classes."""
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "val"):
        for label, photograph in enumerate(photographs):
            place = folder / name / str(label)
            place.mkdir(parents=True)
            for number in range(count // 2 if name == "train" else 1):
                left, top = torch.randint(0, 40, (2,), generator=generator).tolist()
                part = photograph.crop((left, top, left + 600, top + 380)).resize((500, 375))
                part.save(place / f"{number}.jpg", quality=95)
    return folder


def reference(folder: Path) -> Callable[[], int]:
    """Return a function that reads all images once as torchvision's reference does."""
    steps = [
        v2.RandomResizedCrop(SIDE, interpolation=InterpolationMode.BILINEAR, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True),
        v2.Normalize(MEAN, STD),
        v2.ToPureTensor(),
    ]
    loader = DataLoader(
        ImageFolder(str(folder / "train"), v2.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        pin_memory=DEVICE.type == "cuda",
        persistent_workers=True,
    )
    return lambda: sum(len(images.to(DEVICE, non_blocking=True)) for images, _ in loader)


def ours(folder: Path) -> Callable[[], int]:
    """Return a function that reads all images once, with a seed of its own each time."""
    config = DataConfig(
        name=f"imagefolder:{folder}", image_size=SIDE, workers=WORKERS, val_share=0.01, min_crop_area=0.08
    )
    split, seeds = load_data(config, 0).train, iter(range(10**6))
    read = lambda: split.batches(BATCH, device=DEVICE, shuffle_seed=next(seeds), augment=True)  # noqa: E731
    return lambda: sum(len(images) for images, _ in read())


def test_images_per_second_beside_the_reference(benchmark, tmp_path: Path) -> None:
    readers = {"ours": ours(write_photographs(tmp_path, IMAGES)), "reference": reference(tmp_path)}
    rates: dict[str, list[float]] = {name: [] for name in readers}

    def rounds() -> None:
        for number in range(ROUNDS + 1):
            for name, read in readers.items():
                begin = time.perf_counter()
                images = read()
                if number:  # the first one starts the processes
                    rates[name].append(images / (time.perf_counter() - begin))

    benchmark.pedantic(rounds, rounds=1)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(*rates.values(), strict=True))
    benchmark.extra_info["ratio"] = ratio
    medians = {name: f"{statistics.median(found):.0f}" for name, found in rates.items()}
    print(f"\n{medians} images per second with {WORKERS} processes on {DEVICE.type}: {ratio:.2f} of the reference")
    assert ratio >= LEAST


def test_the_second_start_on_a_large_folder(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound on the time, which is that of the drive; what counts is that no file is opened."""
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    photograph = write_photographs(tmp_path / "few", 2) / "train" / "0" / "0.jpg"
    classes = [f"{label:03d}" for label in range(100)]
    for name in classes:
        (tmp_path / "many" / name).mkdir(parents=True)
        own = shutil.copy(photograph, tmp_path / "many" / name / "n.JPEG")  # a file has at most 65,000 links
        for number in range(1, FILES // len(classes)):
            os.link(own, tmp_path / "many" / name / f"n{number:08d}.JPEG")
    begin, begin_cpu = time.perf_counter(), time.process_time()
    index_folder(tmp_path / "many", classes)
    first, first_cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    monkeypatch.setattr("runners.data.folder_index._shorter_side", None)
    index = benchmark.pedantic(lambda: index_folder(tmp_path / "many", classes), rounds=3)
    again = statistics.median(benchmark.stats.stats.data)
    million = 1e6 / len(index)
    sent = len(pickle.dumps(ImageFiles(tmp_path / "many", tuple(classes), index.content, index)))
    print(
        f"\n{len(index)} files: {first:.2f} s at first ({first_cpu:.2f} s of CPU), then {again:.2f} s; per million "
        f"{first * million:.0f} s, then {again * million:.1f} s; {sent} bytes are sent to a worker"
    )
