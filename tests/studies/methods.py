"""All methods and baselines beside each other, and torch-pruning: python tests/studies/methods.py, resumable.

In every cell, a network on an image set that no network here gets right altogether, each method is used once at 50%,
20% and 8% of the FLOPs, with uniform widths and, where it can, with widths of its own. All runs of a seed start from
the same dense weights and have the same images, training loop, learning rate and number of epochs, a method's own
training included; each is on one thread. Every seed has its own split and its own dense network.

Networks, images and trainings are those of `equal_training.py`, in rows of its own: all rows of a table are by one
version. The learning rate is chosen like there: for uniform L2, by validation, at the first seed. Test images are read
once for each network. Seeds come one after the other, so a study that is stopped has whole seeds: `--seeds 1` prints
the first.

By the time of an epoch the default takes about 11 hours on two quiet cores, of which four fifths go to the long
training; `--short`, one seed of one cell at 20% after two epochs, about 10 minutes. `--only "aofp, uniform;kse"` trains
some lines alone, and `--show` prints what is on file.
"""

import argparse
import itertools

import peers
import torch
from cell_runs import ARMS, Run, Setup
from equal_training import BASELINE, Study
from harness import lead, mean_and_error, mean_of, print_table, rows_of, seeds_of, study_parser

from runners.cache import cache_root

CELLS = ("resnet20/cluttered_digits", "vgg16_bn/glyphs")
NAMES = (*ARMS, *peers.TORCH_PRUNING)


def entry(study: Study, runs: list[Run], baseline: list[Run]) -> str:
    """Return mean test accuracy ± standard error, and the lead over the baseline, paired by seed."""
    own, other = ([row["test"] for run in some if (row := study.rows.of(run))] for some in (runs, baseline))
    if len(own) < len(runs):
        return ""
    text = mean_and_error(own, 1, 100)
    return text + (f" ({lead(own, other, 1, 100)})" if runs != baseline and len(other) == len(own) else "")


def show(study: Study, cell: str, epochs: int, rate: float) -> None:
    """Print the lines of a cell that have runs of all seeds, the most accurate at the last target first."""

    def runs(name: str, target: float) -> list[Run]:
        return [Run(cell, name, target, epochs, rate, seed) for seed in study.seeds]

    table: list[tuple[float, list[str]]] = []
    for name in NAMES:
        rows = {target: [row for run in runs(name, target) if (row := study.rows.of(run))] for target in study.targets}
        if all(len(found) < len(study.seeds) for found in rows.values()):
            continue
        line = [name, *(entry(study, runs(name, target), runs(BASELINE, target)) for target in study.targets)]
        line.append(" / ".join(f"{100 * mean_of(found, 'val'):.1f}" if found else "-" for found in rows.values()))
        line.append(" / ".join(f"{mean_of(found, 'seconds'):.0f}" if found else "-" for found in rows.values()))
        timed = [[row for row in found if "latency_ratio" in row] for found in rows.values()]
        line.append(" / ".join(f"{mean_of(found, 'latency_ratio'):.2f}" for found in timed if found))
        last = rows[study.targets[-1]]
        table.append((mean_of(last, "test") if last else 0.0, line))
    table.sort(key=lambda scored: -scored[0])
    shares = [f"test at {target:g}%" for target in study.targets]
    title = (
        f"{cell} after {epochs} epochs at a learning rate of {rate:g}. Test accuracy in %, mean ± standard error; in "
        f"brackets the lead over {BASELINE!r}, paired by seed"
    )
    head = ["method", *shares, "validation", "seconds", "latency over dense"]
    print_table(title, head, [line for _, line in table], study.seeds)


def parsed() -> argparse.Namespace:
    parser = study_parser("methods", __doc__, seeds=3)
    parser.add_argument("--cells", default=",".join(CELLS), help="NETWORK/SET, separated by commas")
    parser.add_argument("--only", default="", help=f"lines to train, separated by semicolons, of: {'; '.join(NAMES)}")
    parser.add_argument("--targets", default="50,20,8", help="percent of the dense FLOPs")
    parser.add_argument("--epochs", default="2,16", help="of every run, separated by commas")
    parser.add_argument("--images", type=int, default=2000, help="training images, of which a fifth is for validation")
    parser.add_argument("--dense-epochs", type=int, default=0, help="of every dense network; default: its own number")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--show", action="store_true", help="print the tables of the runs on file, and train nothing")
    parser.add_argument("--short", action="store_true", help="one seed of one cell at 20%% after two epochs")
    chosen = parser.parse_args()
    if chosen.short:
        chosen.seeds, chosen.cells, chosen.targets, chosen.epochs = 1, CELLS[0], "20", "2"
    unknown = [name for name in _wanted(chosen.only) if name not in NAMES]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is no line; choose of: {'; '.join(NAMES)}")
    return chosen


def _wanted(only: str) -> list[str]:
    return [name.strip() for name in only.split(";") if name.strip()]


def main() -> None:
    chosen = parsed()
    torch.set_num_threads(1)  # as in the processes that train, for the compute format
    targets = tuple(sorted((float(target) for target in chosen.targets.split(",")), reverse=True))
    setup = Setup(chosen.images, chosen.dense_epochs, cache_root() / "studies" / "equal_training")
    rows = rows_of(chosen, images=chosen.images, dense_epochs=chosen.dense_epochs)
    study = Study(setup, rows, seeds_of(chosen), targets, 0, (), chosen.workers)
    cells, lengths = chosen.cells.split(","), [int(epochs) for epochs in chosen.epochs.split(",")]
    for cell in cells:
        study.dense(cell)
    for epochs, cell in itertools.product(lengths, cells):
        rate = study.rate(cell, epochs)
        if not chosen.show:
            study.train(cell, _wanted(chosen.only) or NAMES, epochs, rate)
        show(study, cell, epochs, rate)


if __name__ == "__main__":
    main()
