"""How well the cut network tells the trained one, before any training: python tests/studies/proxies.py.

ResNet-20; the dense network is trained once and cached. `di` cuts it to random width vectors at equal cost, as a
screening pool does. Every vector is measured right after the cut by each proxy, and is then fine-tuned. The table shows
the rank correlation (Spearman's) of each proxy with the test accuracy after fine-tuning, as a mean over its last half:

    accuracy, -loss          on the validation images
    -KL(dense || cut)        on the validation images
    explained                share of the variance of the dense network's logits that the last features of the cut
                             network explain, on training images: the proxy of a search

The default takes under 10 minutes on one core; `--seeds 2` trains every vector twice and shows how well one training
tells the other; `--epochs 16` asks the same of a long training. The same command continues a study that was stopped.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from di_variants import CPU, Setup, set_up
from harness import Rows, print_table, rows_of, seeds_of, study_parser
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import Goal
from pruning.methods.di.method import DenseRankings, DiscriminantInformation
from runners.evaluation.proxy import PROXY_IMAGES, explained, last_features, proxy_target
from runners.training.dense import weights_digest
from runners.training.scoring import accuracy
from search.searchers.parameters import proportion
from spaces.budget import Budget
from spaces.widths import Widths

SHARES = (8.0, 3.0)  # of the dense FLOPs, in percent
PROXIES = ("accuracy", "-loss", "-KL(dense || cut)", f"explained, {PROXY_IMAGES // 2} images", "explained")


@dataclass(frozen=True)
class Cut:
    """A width vector, by its number, at a share of the dense FLOPs, in percent."""

    percent: float
    vector: int

    def widths(self, setup: Setup) -> Widths:
        """Return random widths inside the share, drawn as the search draws; vector 0 has uniform widths."""
        groups = len(setup.space.variable)
        random = np.random.default_rng([self.vector, round(100 * self.percent)])
        proportions = [proportion(value) for value in (random.random(groups) if self.vector else np.full(groups, 0.5))]
        budget = Budget.parse(f"{self.percent}%").resolve(setup.space.dense_cost)
        return setup.space.fit([share / max(proportions) for share in proportions], [budget])


@dataclass(frozen=True)
class Job(Cut):
    """The training of a width vector."""

    seed: int


@dataclass(frozen=True)
class Study:
    """The parts that all measurements share.

    Attributes:
        logits: of the dense network on the validation images.
        target: its logits on the images of the proxy.
    """

    setup: Setup
    rows: Rows
    rankings: DenseRankings
    logits: Tensor
    target: Tensor

    def proxies(self, cut: Cut) -> dict[str, float]:
        """Cut to a width vector and return its proxies, higher is better."""
        setup = self.setup
        net = next(self._snapshots(cut, 0)).net
        logits, labels = logits_of(setup, net)
        dense, log_softmax = functional.log_softmax(self.logits, 1), functional.log_softmax(logits, 1)
        divergence = functional.kl_div(log_softmax, dense, reduction="batchmean", log_target=True)
        features, half = last_features(net, setup.data.calibration, device=CPU), PROXY_IMAGES // 2
        found = [
            float((logits.argmax(1) == labels).float().mean()),
            -float(functional.cross_entropy(logits, labels)),
            -float(divergence),
            explained(features[:half], self.target[:half]),
            explained(features, self.target),
        ]
        return dict(zip(PROXIES, found, strict=True))

    def train(self, job: Job) -> dict[str, float]:
        """Fine-tune a width vector; return its test accuracy, and its mean over the last half of the epochs."""
        epochs, test = self.setup.train.epochs, self.setup.data.test
        last_half = [snapshot for snapshot in self._tested(job, test) if 2 * snapshot[0] > epochs]
        return {"test": last_half[-1][1], "settled": statistics.fmean(tested for _, tested in last_half)}

    def _tested(self, job: Job, test: object) -> list[tuple[int, float]]:
        snapshots = self._snapshots(job, job.seed)
        return [(snapshot.epoch, accuracy(snapshot.net, test, device=CPU)) for snapshot in snapshots if snapshot.epoch]

    def _snapshots(self, cut: Cut, seed: int):
        torch.manual_seed(seed)
        setup = self.setup
        goal, context = Goal(cut.widths(setup)), setup.context(seed, self.rankings)
        return DiscriminantInformation().run(setup.net, setup.space, goal, context)

    def lines(self, percent: float, vectors: int, seeds: Sequence[int]) -> list[list[str]]:
        """Measure what is missing at a share of the FLOPs; return the rows of the table."""
        found: list[Mapping[str, float]] = []
        trained: dict[int, list[float]] = {seed: [] for seed in seeds}
        for vector in range(vectors):
            cut = Cut(percent, vector)
            found.append(self.rows.measured(cut, lambda cut=cut: self.proxies(cut)))
            for seed in seeds:
                job = Job(percent, vector, seed)
                trained[seed].append(self.rows.measured(job, lambda job=job: self.train(job))["settled"])
            print(f"{percent:g}% vector {vector}: test {trained[seeds[0]][-1]:.1%}", flush=True)
        means = [statistics.fmean(values) for values in zip(*trained.values(), strict=True)]
        share, reached = f"{percent:g}%", f"{100 * min(means):.1f} to {100 * max(means):.1f}"
        rows = [[share, reached, name, rank(found_by(found, name), means)] for name in PROXIES]
        if len(seeds) > 1:
            first, second = trained[seeds[0]], trained[seeds[1]]
            rows.append([share, reached, "one training, of another", rank(first, second)])
        return rows


def found_by(found: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [values[name] for values in found]


def rank(proxies: Sequence[float], outcomes: Sequence[float]) -> str:
    """Return the rank correlation of proxies with accuracies after training."""
    return f"{spearmanr(proxies, outcomes).statistic:.2f}"


@torch.no_grad()
def logits_of(setup: Setup, net: nn.Module) -> tuple[Tensor, Tensor]:
    """Return logits, shape (images, classes), and labels of the validation images."""
    net.eval()
    batches = [(net(images), labels) for images, labels in setup.data.val.batches(256, device=CPU)]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def main() -> None:
    parser = study_parser("proxies", __doc__, seeds=1)
    parser.add_argument("--data", default="cluttered_digits")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--vectors", type=int, default=16, help="width vectors at each share")
    parser.add_argument("--dense-epochs", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setup, seeds = set_up(chosen.epochs, chosen.dense_epochs, chosen.data), seeds_of(chosen)
    study = Study(
        setup,
        rows_of(chosen, dense=weights_digest(setup.net)[:12], epochs=chosen.epochs),
        DiscriminantInformation().prepare(setup.net, setup.space, setup.context(0)),
        logits_of(setup, setup.net)[0],
        proxy_target(setup.net, setup.data.calibration, device=CPU),
    )
    lines = [line for percent in SHARES for line in study.lines(percent, chosen.vectors, seeds)]
    title = f"Rank correlation of proxies with {chosen.epochs} epochs, {chosen.vectors} width vectors, {chosen.data}"
    print_table(title, ["FLOPs", "test accuracy, %", "proxy", "rank correlation"], lines, seeds)


if __name__ == "__main__":
    main()
