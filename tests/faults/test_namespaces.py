"""Searches on a Ray of machines that share neither address nor folder with the driver, and whose links fail."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from namespaces import PROJECT, Machine, Network, RayCluster, missing, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

NETS = """
from torch import nn

def make(num_classes, input_shape):
    first, second = nn.Conv2d(input_shape[0], 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(128, num_classes))
"""
IMAGES = """
from pathlib import Path
import torch
from torch.utils.data import TensorDataset

def load(config, seed):
    images, labels = torch.load(Path(__file__).parents[1] / "images.pt")
    return TensorDataset(images[400:], labels[400:]), TensorDataset(images[:400], labels[:400])
"""
LONG = "--epochs 4 --rungs none --final-epochs none".split()
TELLS = re.compile(r"\] \d+/\d+ trial \d+ ")  # the line of a trial that ends


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder of the driver's: a package with a network and a dataset, and the file of the latter beside it."""
    folder = Path(tempfile.mkdtemp(prefix="slimfront-driver-"))
    (folder / "mine").mkdir()
    for name, text in (("__init__", ""), ("nets", NETS), ("images", IMAGES)):
        (folder / "mine" / f"{name}.py").write_text(text)
    labels = torch.arange(4000) % 4
    images = torch.rand(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for label in range(4):  # a slightly brighter quarter tells the class
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, row : row + 4, column : column + 4] += 0.2
    torch.save((images, labels), folder / "images.pt")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.fixture(scope="module")
def cluster(network: Network, folder: Path) -> RayCluster:
    """A driver at the head, and two nodes with a processor each."""
    cluster = RayCluster(network, network.machine("driver", [PROJECT, folder]))
    for name in ("node1", "node2"):
        cluster.join(network.machine(name))
    return cluster


class Search:
    """A search that runs on a machine."""

    def __init__(self, machine: Machine, folder: Path, name: str, *flags: str) -> None:
        self.out, self._log = folder / name, folder / f"{name}.log"
        named = ("--model", "mine.nets:make", "--data", "mine.images:load") if "--data" not in flags else ()
        command = (sys.executable, "-m", "search", *named, "--budget", "50%", "--dense-epochs", "1", "--out", name)
        environment = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        with self._log.open("w") as log:
            self.process = machine.start(
                *command, *flags, folder=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def told(self) -> int:
        """How many trials have ended."""
        return len(TELLS.findall(self.output))

    def wait_for(self, trials: int) -> None:
        wait_until(lambda: self.told >= trials or self.process.poll() is not None, 600, f"{trials} trials")
        assert self.process.poll() is None, self.output

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self.process.wait(900)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.output) from None

    def numbers(self) -> list[int]:
        """Return the numbers of the trials that are complete, as result.json has them."""
        results = json.loads((self.out / "result.json").read_text())["results"]
        return sorted(result["trial"]["number"] for result in results if result["state"] == "complete")


def test_code_and_data_that_only_the_driver_has_work_on_the_nodes(
    network: Network, cluster: RayCluster, folder: Path
) -> None:
    for name in ("node1", "node2"):
        assert not network.machines[name].run("sh", "-c", f"ls -d {PROJECT} {folder} 2>/dev/null || true")
    search = Search(cluster.head, folder, "code", "--ray-address", cluster.address, "--trials", "4", "--epochs", "1")
    assert search.end() == 0, search.output
    assert search.numbers() == [0, 1, 2, 3]


def test_a_folder_of_images_that_nodes_lack_is_named_before_the_first_trial(cluster: RayCluster, folder: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (folder / "photos" / split / label).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (32, 32), (number, 9, 9)).save(folder / "photos" / split / label / f"{number}.png")
    flags = ("--model", "lenet5", "--data", "imagefolder:photos", "--ray-address", cluster.address)
    search = Search(cluster.head, folder, "photos-run", *flags)
    assert search.end() == 2, search.output
    assert "is missing on 2 of 3 nodes of the cluster: node1, node2; put the images there" in search.output
    assert search.told == 0


def test_a_link_that_is_down_for_20_s_loses_nothing(network: Network, cluster: RayCluster, folder: Path) -> None:
    flags = ("--ray-address", cluster.address, "--trials", "8", *LONG)
    search = Search(cluster.head, folder, "short", *flags)
    search.wait_for(2)
    network.pull("node1")
    time.sleep(20)
    network.plug("node1")
    assert search.end() == 0, search.output
    assert search.numbers() == list(range(8))
    print(search.output)


def test_a_node_that_joins_late_is_used(network: Network, cluster: RayCluster, folder: Path) -> None:
    flags = ("--ray-address", cluster.address, "--trials", "12", *LONG)
    search = Search(cluster.head, folder, "late", *flags)
    search.wait_for(1)
    late = network.machine("late")
    cluster.join(late)
    wait_until(lambda: "ray::Worker" in late.run("ps", "ax"), 120, "a trial on the node that joined")
    assert search.end() == 0, search.output
    assert search.numbers() == list(range(12))


def test_trials_of_a_node_whose_link_stays_down_are_tried_again_elsewhere(
    network: Network, cluster: RayCluster, folder: Path
) -> None:
    flags = ("--ray-address", cluster.address, "--trials", "8", *LONG)
    search = Search(cluster.head, folder, "long", *flags)
    search.wait_for(1)
    network.pull("node2")
    assert search.end() == 0, search.output
    assert search.numbers() == list(range(8))
    assert re.search(r"trial \d+ lost its worker", search.output)


def test_a_driver_that_loses_the_head_ends_with_the_front_and_the_way_on(
    network: Network, cluster: RayCluster, folder: Path
) -> None:
    desk = network.machine("desk", [PROJECT, folder])
    cluster.join(desk, f"--address={cluster.address}", "--num-cpus=0")
    flags = ("--ray-address", "auto", "--trials", "40", *LONG)
    search = Search(desk, folder, "cut", *flags)
    search.wait_for(4)
    network.pull("desk")
    assert search.end() == 4, search.output
    assert "--resume" in search.output
    assert len(search.numbers()) >= 4
    assert os.listdir(search.out / "front")
