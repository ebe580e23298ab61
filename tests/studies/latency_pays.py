"""Does a search by latency pay, beside one by FLOPs? python tests/studies/latency_pays.py, resumable.

A cell is a network, an image set and a device. For every limit, a share of the dense network's latency on the device,
there are two searches with the same dense weights, images, learning rate and training in all:

- by latency: `--objective accuracy,latency --budget 50%latency`
- by FLOPs: `--budget N`, where N are the FLOPs of the uniform widths of that latency, which is what users take who
  measure a few uniform networks on their device

Then every network whose weights a search has kept is measured on the device in turns with the dense network, from the
most accurate on validation down, until the upper end of an interval is inside the limit; that network is read on test
once. A network whose interval holds the limit is measured again, as in a search. So a search by FLOPs is cut off at the
same measured latency. Every seed has its own split and dense network.

A limit that the smallest network is over is said to be out of reach.

Devices are `cpu` (eager, one thread), `onnxruntime`, and `stepN`, which is tests/stepped_device.py with steps of N
channels. ResNet-20 meets steps of 8: for steps of 32 it is too narrow, as its smallest network takes 60% there.
`--short` takes one seed of one cell with few images and epochs.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from cell_runs import BATCH, NETWORKS, Setup, format_of, network_of
from fronts import finished_search, trained_epochs
from harness import Rows, lead, mean_and_error, print_table, rows_of, seeds_of, study_parser
from latency_predictors import config_of

from pruning import checkpoint
from runners.cache import cache_root
from runners.latency.devices import make_meter
from runners.latency.meter import Meter
from runners.latency.prediction.model_building import at_widths
from runners.training.dense import DenseRecipe, cached_file, trained_net
from runners.training.scoring import accuracy
from runners.trial import TrialResult
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.space import SearchSpace, uniform_ratios
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

CELLS = (
    "resnet20/glyphs/cpu",
    "resnet20/glyphs/onnxruntime",
    "resnet20/glyphs/step8",
    "mobilenet_v2/glyphs/cpu",
    "mobilenet_v2/glyphs/onnxruntime",
    "mobilenet_v2/glyphs/step32",
)
SHORT = "resnet20/cluttered_digits/step8"
AXES = ("latency", "flops")
READINGS = 3  # at most, of a network while its interval holds the limit
HALVINGS = 10  # of the interval in which the FLOPs of uniform widths at the limit are looked for


@dataclass(frozen=True)
class Search:
    """A search under one limit.

    Attributes:
        cell: NETWORK/SET/DEVICE.
        share: limit on the latency, in percent of the dense network's.
        epochs: of training in all.
    """

    cell: str
    axis: str
    share: float
    epochs: int
    rate: float
    seed: int

    @property
    def images(self) -> str:
        """The cell without its device: network and image set."""
        return self.cell.rpartition("/")[0]

    @property
    def device(self) -> str:
        return self.cell.rpartition("/")[2]


@dataclass(frozen=True, eq=False)
class Board:
    """The dense network of a seed, its space, and a meter of the device beside it."""

    recipe: DenseRecipe
    net: torch.nn.Module
    space: SearchSpace
    meter: Meter

    @classmethod
    def of(cls, job: Search, setup: Setup) -> "Board":
        recipe = replace(setup.recipe(job.images, job.seed), compute_format=format_of(network_of(job.cell)))
        net = trained_net(recipe, cache_root()).cpu().eval()
        shape = recipe.data.input_shape
        space = trace(build(recipe.spec), torch.zeros(1, *shape), spec=recipe.spec)
        return cls(recipe, net, space, make_meter(config_of(job.device), net, shape))

    def uniform_flops(self, share: float) -> int:
        """Return the most FLOPs of uniform widths whose latency is inside a share of the dense network's."""
        low, high = self.space.smallest_cost.flops, self.space.dense_cost.flops
        with self.meter.ratios() as ratio_of:
            for _ in range(HALVINGS):
                middle = math.isqrt(low * high)
                widths = self.space.fit(uniform_ratios(self.space), [Budget("flops", middle)])
                inside = ratio_of(at_widths(self.net, self.space, widths)) <= share / 100
                low, high = (middle, high) if inside else (low, middle)
        return low

    def least_share(self) -> float:
        """Return the latency of the smallest network in percent of the dense one's."""
        with self.meter.ratios() as ratio_of:
            return 100 * ratio_of(at_widths(self.net, self.space, self.space.smallest))

    def ratio_inside(self, label: str, net: torch.nn.Module, share: float) -> float | None:
        """Return the latency of a network over that of the dense one; None where it is not clearly inside the limit."""
        for _ in range(READINGS):
            reading = self.meter.read_at(label, net, self.meter.first_batch)
            if reading.low is None or reading.high is None or reading.seconds is None or reading.ratio is None:
                raise SystemExit(f"{label} was not measured: {reading.refused}")
            low, high = (100 * reading.ratio * end / reading.seconds for end in (reading.low, reading.high))
            if high <= share:
                return reading.ratio
            if low > share:
                break
        return None


def flags_of(job: Search, setup: Setup, board: Board) -> list[str]:
    """Return the flags of a search."""
    network = NETWORKS[network_of(job.cell)]
    flags = ["--model", network.model, "--weights", str(cached_file(board.recipe, cache_root()))]
    flags += ["--data", setup.data_name(job.images), "--image-size", str(network.side), "--lr", f"{job.rate:g}"]
    flags += ["--batch-size", str(BATCH), "--seed", str(job.seed), "--device", "cpu"]
    flags += ["--train-budget", f"{job.epochs}epochs"]
    if job.axis == "flops":
        return [*flags, "--budget", f"{board.uniform_flops(job.share)}flops", "--latency-device", "none"]
    flags += ["--budget", f"{job.share:g}%latency", "--objective", "accuracy,latency"]
    config = config_of(job.device)
    if config.command:
        return [*flags, "--latency-command", config.command, "--latency-format", config.format]
    return [*flags, "--latency-device", config.device, "--latency-engine", config.engine]


def run_search(job: Search, setup: Setup) -> dict[str, Any]:
    """Run a search, or go on with one that was stopped, and return its best network inside the limit."""
    board = Board.of(job, setup)
    words = f"{job.cell} {job.axis} {job.share:g} {job.epochs}epochs {setup.images}images seed{job.seed}"
    folder = setup.folder / "searches" / words.replace("/", "-").replace(" ", "-")
    result = finished_search(folder, flags_of(job, setup, board))
    kept = [network for network in networks_of(result) if (folder / network.path).is_file()]
    for tried, network in enumerate(sorted(kept, key=lambda one: -(one.accuracy or 0.0)), start=1):
        net = checkpoint.load(folder / network.path, board.net)
        ratio = board.ratio_inside(network.label, net, job.share)
        if ratio is not None:
            return {
                "val": network.accuracy,
                "test": accuracy(net, board.recipe.data.test, device=torch.device("cpu")),
                "ratio": ratio,
                "flops": (network.cost.flops if network.cost else 0) / board.space.dense_cost.flops,
                "tried": tried,
                "kept": len(kept),
                "epochs": trained_epochs(result),
                "minutes": result.seconds / 60,
            }
    raise SystemExit(f"{job}: none of its {len(kept)} networks is inside the limit")


def networks_of(result: SearchResult) -> list[TrialResult]:
    return [network for trial in result.results for network in trial.networks if network.path and network.accuracy]


def lines_of(cell: str, share: float, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return a line per axis: accuracy, latency and FLOPs of the network that validation chose inside the limit."""

    def of(axis: str, name: str) -> list[float]:
        return [row[name] for row in rows[axis]]

    lines = []
    for axis in AXES:
        ahead = lead(of("latency", "test"), of("flops", "test"), 1, 100) if axis == "latency" else ""
        figures = [mean_and_error(of(axis, "test"), 1, 100), ahead, mean_and_error(of(axis, "val"), 1, 100)]
        shares = [f"{100 * statistics.fmean(of(axis, name)):.1f}%" for name in ("ratio", "flops")]
        lines.append([cell, f"{share:g}%", axis, *figures, *shares, f"{statistics.fmean(of(axis, 'epochs')):.0f}"])
    return lines


def compare(cell: str, chosen: argparse.Namespace, rows: Rows, setup: Setup) -> list[list[str]]:
    """Run the searches of a cell, and return its lines."""
    lines = []
    first = Search(cell, AXES[0], 0.0, chosen.epochs, chosen.rate, chosen.first_seed)
    least = Board.of(first, setup).least_share()
    print(f"{cell}: the smallest network takes {least:.0f}% of the dense one's time", flush=True)
    shares = [share for share in map(float, chosen.shares.split(",")) if share > least]
    for seed in seeds_of(chosen):  # whole seeds first, so that a study that is stopped has comparisons
        for share in shares:
            for axis in AXES:
                job = Search(cell, axis, share, chosen.epochs, chosen.rate, seed)
                row = rows.measured(job, lambda job=job: run_search(job, setup))
                print(f"{job}: test {100 * row['test']:.1f}% in {row['minutes']:.1f} minutes", flush=True)
    for share in shares:
        of_axis = {
            axis: [Search(cell, axis, share, chosen.epochs, chosen.rate, seed) for seed in seeds_of(chosen)]
            for axis in AXES
        }
        found = {axis: [row for job in jobs if (row := rows.of(job))] for axis, jobs in of_axis.items()}
        lines += lines_of(cell, share, found)
    return lines


def main() -> None:
    parser = study_parser("latency_pays", __doc__, seeds=3)
    parser.add_argument("--cells", default=",".join(CELLS), help="NETWORK/SET/DEVICE, separated by commas")
    parser.add_argument("--shares", default="50,25", help="limits in percent of the dense network's latency")
    parser.add_argument("--epochs", type=int, default=24, help="of training in all, of every search")
    parser.add_argument("--rate", type=float, default=0.12, help="learning rate")
    parser.add_argument("--images", type=int, default=2000, help="training images, of which a fifth is for validation")
    parser.add_argument("--dense-epochs", type=int, default=0, help="of every dense network; default: its own number")
    parser.add_argument("--short", action="store_true", help="one seed of one cell with few images and epochs")
    chosen = parser.parse_args()
    if chosen.short:
        chosen.seeds, chosen.cells, chosen.epochs, chosen.images, chosen.dense_epochs = 1, SHORT, 12, 600, 20
    torch.set_num_threads(1)
    setup = Setup(chosen.images, chosen.dense_epochs, cache_root() / "studies" / "latency_pays")
    rows = rows_of(chosen, images=chosen.images, dense_epochs=chosen.dense_epochs)
    head = ("cell", "limit", "search by", "test", "lead", "validation", "latency", "FLOPs", "epochs")
    for cell in chosen.cells.split(","):
        lines = compare(cell, chosen, rows, setup)
        title = f"{cell}: test accuracy in %, mean ± standard error; lead of the search by latency, paired by seed"
        print_table(title, head, lines, seeds_of(chosen))


if __name__ == "__main__":
    sys.exit(main())
