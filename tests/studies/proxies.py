"""How well the cut network tells the trained one, before any training: python tests/studies/proxies.py.

ResNet-20 on cluttered_digits; the dense network is trained once and cached. `di` cuts it to random width vectors at
equal cost, as a screening pool does. Every vector is measured right after the cut, by each proxy and in one pass over
the validation images, and is then fine-tuned. The table shows the rank correlation (Spearman's) of each proxy with the
test accuracy after fine-tuning, and with the mean over the epochs of its last half, which has less noise.

The default takes under 10 minutes on one core; `--epochs 16` asks the same of a long training. The same command
continues a study that was stopped.
"""

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from di_variants import CPU, Setup, set_up
from harness import Rows, mean_of, print_table, rows_of, seeds_of, study_parser
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from pruning.base import Goal
from pruning.methods.di.method import DenseRankings, DiscriminantInformation
from runners.training.dense import weights_digest
from runners.training.loop import accuracy
from search.searchers.parameters import proportion
from spaces.budget import Budget
from spaces.widths import Widths

SHARES = (8.0, 3.0)  # of the dense FLOPs, in percent
PROXIES = {
    "accuracy": "accuracy",
    "-loss": "loss",
    "-KL(dense || cut)": "divergence",
    "accuracy, 512 images": "accuracy 512",
    "-loss, 512 images": "loss 512",
    "-loss, 256 images": "loss 256",
    "-KL, 512 images": "divergence 512",
}


@dataclass(frozen=True)
class Job:
    """A width vector, by its number, at a share of the dense FLOPs, in percent."""

    percent: float
    vector: int
    seed: int


def widths_of(setup: Setup, job: Job) -> Widths:
    """Return a random width vector inside the share, drawn as the search draws; vector 0 has uniform widths."""
    random = np.random.default_rng([job.vector, round(100 * job.percent)])
    parameters = random.random(len(setup.space.variable)) if job.vector else np.full(len(setup.space.variable), 0.5)
    proportions = [proportion(parameter) for parameter in parameters]
    budget = Budget.parse(f"{job.percent}%").resolve(setup.space.dense_cost)
    return setup.space.fit([share / max(proportions) for share in proportions], [budget])


@torch.no_grad()
def logits_of(setup: Setup, net: nn.Module) -> tuple[Tensor, Tensor]:
    """Return logits, shape (images, classes), and labels of the validation images."""
    net.eval()
    batches = [(net(images), labels) for images, labels in setup.data.val.batches(256, device=CPU)]
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def proxies(logits: Tensor, dense: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the values of the cut network by the names of `PROXIES`; lower is better but for accuracies."""
    found: dict[str, float] = {}
    for name, images in (("", len(labels)), (" 512", 512), (" 256", 256)):
        cut, target, own = logits[:images], functional.log_softmax(dense[:images], 1), labels[:images]
        found[f"accuracy{name}"] = float((cut.argmax(1) == own).float().mean())
        found[f"loss{name}"] = float(functional.cross_entropy(cut, own))
        distance = functional.kl_div(functional.log_softmax(cut, 1), target, reduction="batchmean", log_target=True)
        found[f"divergence{name}"] = float(distance)
    return found


def measure(setup: Setup, job: Job, rankings: DenseRankings, dense: Tensor) -> dict[str, float]:
    """Cut to a width vector and fine-tune; return its proxies and its test accuracies."""
    torch.manual_seed(job.seed)
    widths, found, tests = widths_of(setup, job), {}, []
    method = DiscriminantInformation()
    for snapshot in method.run(setup.net, setup.space, Goal(widths), setup.context(job.seed, rankings)):
        if snapshot.epoch == 0:
            found = proxies(*_with_dense(logits_of(setup, snapshot.net), dense))
        elif 2 * snapshot.epoch > setup.train.epochs:
            tests.append(accuracy(snapshot.net, setup.data.test, device=CPU))
    return {**found, "test": tests[-1], "settled": statistics.fmean(tests)}


def _with_dense(cut: tuple[Tensor, Tensor], dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cut[0], dense, cut[1]


def correlation(found: Sequence[Mapping[str, float]], proxy: str, outcome: str) -> str:
    """Return the rank correlation of a proxy, as higher is better, with an accuracy after training."""
    sign = 1 if proxy.startswith("accuracy") else -1
    ranked = spearmanr([sign * values[proxy] for values in found], [values[outcome] for values in found])
    return f"{ranked.statistic:.2f}"


def averaged(rows: Rows, percent: float, vector: int, seeds: range) -> dict[str, float]:
    """Return the values of a vector as means over the seeds of its training."""
    own = [row for seed in seeds if (row := rows.of(Job(percent, vector, seed))) is not None]
    return {name: mean_of(own, name) for name in own[0]}


def main() -> None:
    parser = study_parser("proxies", __doc__, seeds=1)
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--vectors", type=int, default=16, help="width vectors at each share")
    parser.add_argument("--dense-epochs", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setup, seeds = set_up(chosen.epochs, chosen.dense_epochs), seeds_of(chosen)
    rows = rows_of(chosen, dense=weights_digest(setup.net)[:12], epochs=chosen.epochs)
    rankings = DiscriminantInformation().prepare(setup.net, setup.space, setup.context(0))
    dense, _ = logits_of(setup, setup.net)
    lines = []
    for percent in SHARES:
        for vector in range(chosen.vectors):
            for job in (Job(percent, vector, seed) for seed in seeds):
                row = rows.measured(job, functools.partial(measure, setup, job, rankings, dense))
                print(f"{job}: -loss {-row['loss']:.2f}, test {row['test']:.1%}", flush=True)
        found = [averaged(rows, percent, vector, seeds) for vector in range(chosen.vectors)]
        accuracies = [100 * values["test"] for values in found]
        print(f"{percent:g}% of FLOPs: test {min(accuracies):.1f} to {max(accuracies):.1f}%", flush=True)
        for name, proxy in PROXIES.items():
            cells = [correlation(found, proxy, outcome) for outcome in ("test", "settled")]
            lines.append([f"{percent:g}%", name, *cells])
    title = f"Rank correlation of proxies with {chosen.epochs} epochs, {chosen.vectors} width vectors each"
    print_table(title, ["FLOPs", "proxy", "test", "last half"], lines, seeds)


if __name__ == "__main__":
    main()
