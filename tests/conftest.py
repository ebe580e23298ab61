"""What every test can rely on: one torch thread, and a cache folder of its own instead of the user's."""

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from runners.evaluation.context import SearchContext

# Two threads in each of two processes on two cores are many times slower than one in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Pages are as wide as these say, which a shell, or readline in a process that starts this one, may have set.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMFRONT_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def accelerator() -> "torch.device":
    """CUDA, or MPS; where there is neither, the tests that ask for it are skipped.

    SLIMFRONT_TEST_DEVICE=cpu lets the processor stand in, which shows that the tests themselves work.
    """
    import torch

    if named := os.environ.get("SLIMFRONT_TEST_DEVICE"):
        return torch.device(named)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # is read once, by the first product of matrices
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    pytest.skip("no CUDA and no MPS device here")


@pytest.fixture(scope="session")
def tiny_search_context() -> "SearchContext":
    """A search context of a net with two free groups of 8 channels and 96 images of 4 classes; made of library types
    only, so that any worker process can unpickle it. A trial of one epoch takes some milliseconds."""
    import torch
    from torch import nn

    from runners.config import TrainConfig
    from runners.data.loading import ImageData
    from runners.data.splits import TensorSplit
    from runners.evaluation.context import SearchContext
    from runners.training.compute_format import PLAIN
    from spaces.tracing.tracer import trace

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 4
    images = torch.randint(0, 128, (96, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in range(4):  # a bright quarter tells the class
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, row : row + 4, column : column + 4] += 100
    split = TensorSplit(images, labels, (0.4,), (0.2,), (8, 8))
    train, val = split.subset(torch.arange(64)), split.subset(torch.arange(64, 96))
    data = ImageData("quarters", train, val, val, train, train, 4, (1, 8, 8), "quarters")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()
    space = trace(net, torch.zeros(1, 1, 8, 8))
    config = TrainConfig(epochs=1, batch_size=16, device="cpu", precision="float32")
    return SearchContext(net, space, data, config, threads=1, compute_format=PLAIN)


@pytest.fixture(scope="session")
def ray_of_two() -> Iterator[None]:
    """A Ray with two CPUs, started once for all tests, as `RayRunner` starts one for a search."""
    import ray

    from runners.config import RunnerConfig
    from runners.ray.runner import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runners.ray.runner.fitting_workers", lambda config: 2)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # counts only towards a cluster of the user's
        with connected(RunnerConfig()):
            assert ray.cluster_resources()["CPU"] == 2
            yield
