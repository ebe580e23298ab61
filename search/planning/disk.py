"""What a search will write, in bytes, before it does.

Measured on searches of 4 and 16 trials of a net of 12 tensors and of 6 trials of a ResNet-20: the report is nearly all
plotly.js, and MLflow keeps a second copy of it; an exported program takes its weights and some 2 kB for every tensor.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pruning.base import METHODS
from pruning.traits import yields_intermediates
from runners.evaluation.intermediate import MOST, PER_EPOCH
from search.planning.time import FRONT_SHARE
from search.problem import Setup, dense_file, file_to_download, study_settings
from search.schedulers.asha import expected
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import Starts
from search.storage.run_folder import DENSE
from spaces.space import uniform_ratios

HEADER = 100  # bytes of a safetensors file per tensor, for its name, type and place
PROGRAM = 2_200  # of a program per tensor, for its graph
REPORT = 4_900_000  # report.html and front.png
RESULT, RESULT_TRIAL = 5_000, 1_500  # result.json and config.yaml, and what a trial adds
STUDY, STUDY_TRIAL = 110_000, 4_000  # a leg of a trial is a trial of its own there
MLFLOW, MLFLOW_TRIAL = 950_000, 8_000
STEPS = 16  # at which the sizes of networks are averaged over log cost, where there are no targets


@dataclass(frozen=True)
class DiskPart:
    """One thing that is written.

    Attributes:
        size: bytes, estimated; 0 when it is there already or goes elsewhere.
        place: a path, or why nothing is written.
        extra: whether it is written in some searches only.
    """

    what: str
    size: int
    place: str
    extra: bool = False


def forecast_disk(setup: Setup) -> tuple[DiskPart, ...]:
    """Estimate what the search writes, part by part."""
    folder, trials = setup.folder, setup.config.trials
    candidates = CandidateSpace(study_settings(setup), setup.space, setup.budgets)
    starts = Starts(candidates)
    baselines = starts.baselines(trials)
    planned = [*baselines, *starts.warm_starts(trials)]
    fractions = [each.parameters["budget_fraction"] for each in planned]
    low = candidates.lowest_fraction
    spread = list(candidates.spread.by_fraction) or [low ** ((step + 0.5) / STEPS) for step in range(STEPS)]
    sizes = [*_net_sizes(setup, candidates, fractions)]
    sizes += [sum(_net_sizes(setup, candidates, spread)) / len(spread)] * (trials - len(planned))
    tensors = len(setup.net.state_dict())
    mean = sum(sizes) / len(sizes)
    exported = 2 * mean + PROGRAM * tensors  # weights of their own, and those in the program
    largest = max(_net_sizes(setup, candidates, [1.0]))
    parts = [
        _dense_part(setup),
        _kept_dense_part(setup),
        DiskPart("checkpoints of the trials", int(sum(sizes)), str(folder / "trials")),
        DiskPart("front, with programs", int(max(1, FRONT_SHARE * trials) * exported), str(folder / "front")),
        DiskPart("report", REPORT + RESULT + RESULT_TRIAL * trials, str(folder)),
        _study_part(setup),
        _mlflow_part(setup, int(2 * largest + PROGRAM * tensors)),
    ]
    if passing := _passing(setup, candidates.methods):
        count = (trials - len(baselines)) * min(MOST, PER_EPOCH * setup.config.train.epochs)
        what = f"nets that {', '.join(passing)} may pass on the way"
        parts.append(DiskPart(what, int(count * largest), str(folder / "trials"), extra=True))
    return tuple(parts)


def dense_bytes(setup: Setup) -> int:
    """Return the size of the dense network's file."""
    state = setup.net.state_dict().values()
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in state) + HEADER * len(state)


def _net_sizes(setup: Setup, candidates: CandidateSpace, fractions: Sequence[float]) -> list[float]:
    """Return the bytes of networks of uniform widths at these fractions of the budget."""
    space, full = setup.space, dense_bytes(setup)
    width_ratios, header = uniform_ratios(space), HEADER * len(setup.net.state_dict())
    costs = [space.cost(space.fit(width_ratios, candidates.budgets_at(fraction))) for fraction in fractions]
    return [header + (full - header) * cost.params / space.dense_cost.params for cost in costs]


def _dense_part(setup: Setup) -> DiskPart:
    what, file = "dense weights", dense_file(setup)
    if file is None:
        download = file_to_download(setup.spec, setup.config.weights)
        if download is not None:
            return DiskPart(what, dense_bytes(setup), f"downloaded to {download}")
        return DiskPart(what, 0, f"given: {setup.config.weights}")
    if file.exists():
        return DiskPart(what, 0, f"cached: {file}")
    return DiskPart(what, dense_bytes(setup), str(file))


def _kept_dense_part(setup: Setup) -> DiskPart:
    """Return the copy that a resumed search takes its dense network from."""
    what, file = "dense weights for --resume", setup.folder / DENSE
    return DiskPart(what, 0, f"there: {file}") if file.exists() else DiskPart(what, dense_bytes(setup), str(file))


def _study_part(setup: Setup) -> DiskPart:
    what, storage = "study", setup.config.storage
    trials, rungs = setup.config.trials, setup.config.rung_epochs
    segments = sum(expected(rungs, trials, round(FRONT_SHARE * trials))) if rungs else trials
    size = int(STUDY + STUDY_TRIAL * segments)
    return DiskPart(what, 0, storage) if storage else DiskPart(what, size, str(setup.folder / "study.db"))


def _mlflow_part(setup: Setup, chosen: int) -> DiskPart:
    what, server = "MLflow", setup.config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if server:
        return DiskPart(what, 0, server)
    size = MLFLOW + MLFLOW_TRIAL * setup.config.trials + REPORT + chosen
    return DiskPart(what, size, f"{setup.folder / 'mlflow.db'}, mlartifacts")


def _passing(setup: Setup, methods: Sequence[str]) -> list[str]:
    """Return the methods that may pass networks inside the budgets before they end."""
    epochs = setup.config.train.epochs
    return [name for name in methods if yields_intermediates(METHODS[name](**setup.fixed.get(name, {})), epochs)]
