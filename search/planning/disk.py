"""The bytes that a search is expected to write.

Measured on searches of 4 and 16 trials of a network of 12 tensors and of 6 trials of a ResNet-20: the report is nearly
all plotly.js, and MLflow keeps a second copy of it; an exported program takes its weights and some 2 kB for every
tensor.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pruning.base import METHODS
from pruning.traits import yields_intermediates
from runners.evaluation.intermediate import MOST, PER_EPOCH
from search.environment import Environment, file_to_download
from search.planning.time import FRONT_SHARE
from search.schedulers.asha import expected
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign
from search.storage.run_folder import DENSE
from spaces.space import uniform_ratios

HEADER = 100  # bytes of a safetensors file per tensor, for its name, type and place
PROGRAM = 2_200  # bytes of a program per tensor, for its graph
REPORT = 4_900_000  # report.html and front.png
RESULT, RESULT_TRIAL = 5_000, 1_500  # result.json and config.yaml, and what a trial adds
STUDY, STUDY_TRIAL = 110_000, 4_000  # a training segment is a trial of the study
MLFLOW, MLFLOW_TRIAL = 950_000, 8_000
STEPS = 16  # at which the sizes of networks are averaged over log cost, where there are no targets


@dataclass(frozen=True)
class DiskPart:
    """Files of one kind.

    Attributes:
        size: bytes, estimated; 0 when they are there already or go elsewhere.
        place: a path, or why nothing is written.
        extra: whether they are written in some searches only.
    """

    what: str
    size: int
    place: str
    extra: bool = False


def forecast_disk(environment: Environment, candidates: CandidateSpace) -> tuple[DiskPart, ...]:
    """Estimate what the search writes, part by part."""
    config, folder, rungs = environment.config, environment.folder, environment.problem.rungs
    trials, front, epochs = config.trials, FRONT_SHARE * config.trials, config.train.epochs
    sizes = _checkpoint_sizes(environment, candidates)
    graph = PROGRAM * len(environment.net.state_dict())
    exported = 2 * sum(sizes) / len(sizes) + graph  # weights, and once more in the program
    (largest,) = _net_sizes(environment, candidates, [1.0])
    segments = sum(expected(rungs, trials, round(front))) if rungs else trials
    server = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    tracked = MLFLOW + MLFLOW_TRIAL * trials + REPORT + 2 * largest + graph
    kept = folder / DENSE  # from which a resumed search takes its dense network
    parts = [
        _dense_part(environment),
        _unless_there("dense weights for --resume", environment, kept, "there"),
        DiskPart("checkpoints of the trials", int(sum(sizes)), str(folder / "trials")),
        DiskPart("front, with programs", int(max(1, front) * exported), str(folder / "front")),
        DiskPart("report", REPORT + RESULT + RESULT_TRIAL * trials, str(folder)),
        _unless_elsewhere("study", STUDY + STUDY_TRIAL * segments, str(folder / "study.db"), config.storage),
        _unless_elsewhere("MLflow", tracked, f"{folder / 'mlflow.db'}, mlartifacts", server),
    ]
    if methods := _methods_with_intermediates(environment):
        count = (trials - len(InitialDesign(candidates).baselines(trials))) * min(MOST, PER_EPOCH * epochs)
        what = f"intermediate networks of {', '.join(methods)}"
        parts.append(DiskPart(what, int(count * largest), str(folder / "trials"), extra=True))
    return tuple(parts)


def dense_bytes(environment: Environment) -> int:
    """Return the size of the dense network's file."""
    state = environment.net.state_dict().values()
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in state) + HEADER * len(state)


def _checkpoint_sizes(environment: Environment, candidates: CandidateSpace) -> list[float]:
    """Return the bytes of the network of every trial; networks that will be proposed have their mean size."""
    design, trials, low = InitialDesign(candidates), environment.config.trials, candidates.lowest_fraction
    points = (*design.baselines(trials), *design.uniform(trials))
    proposed = list(candidates.cost_coverage.by_fraction) or [low ** ((step + 0.5) / STEPS) for step in range(STEPS)]
    mean_proposed = sum(_net_sizes(environment, candidates, proposed)) / len(proposed)
    known = _net_sizes(environment, candidates, [point.parameters["budget_fraction"] for point in points])
    return known + [mean_proposed] * (trials - len(points))


def _net_sizes(environment: Environment, candidates: CandidateSpace, fractions: Sequence[float]) -> list[float]:
    """Return the bytes of networks of uniform widths at these fractions of the budget."""
    space, full = environment.problem.space, dense_bytes(environment)
    width_ratios, header = uniform_ratios(space), HEADER * len(environment.net.state_dict())
    costs = [space.cost(space.fit(width_ratios, candidates.budgets_at(fraction))) for fraction in fractions]
    return [header + (full - header) * cost.params / space.dense_cost.params for cost in costs]


def _dense_part(environment: Environment) -> DiskPart:
    what, file, weights = "dense weights", environment.dense_file, environment.config.weights
    if file is not None:
        return _unless_there(what, environment, file, "cached")
    download = file_to_download(environment.spec, weights)
    if download is not None:
        return DiskPart(what, dense_bytes(environment), f"downloaded to {download}")
    return DiskPart(what, 0, f"given: {weights}")


def _unless_there(what: str, environment: Environment, file: Path, why: str) -> DiskPart:
    size, place = (0, f"{why}: {file}") if file.exists() else (dense_bytes(environment), str(file))
    return DiskPart(what, size, place)


def _unless_elsewhere(what: str, size: float, place: str, elsewhere: str) -> DiskPart:
    return DiskPart(what, 0, elsewhere) if elsewhere else DiskPart(what, int(size), place)


def _methods_with_intermediates(environment: Environment) -> list[str]:
    """Return the methods that may yield networks inside the budgets before they end."""
    epochs, fixed = environment.config.train.epochs, environment.problem.fixed
    methods = {name: METHODS[name](**fixed.get(name, {})) for name in environment.problem.methods}
    return [name for name, method in methods.items() if yields_intermediates(method, epochs)]
