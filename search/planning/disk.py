"""The bytes that a search is expected to write.

Measured on searches of 4 and 16 trials of a network of 12 tensors and of 6 trials of a ResNet-20: the report is nearly
all plotly.js, and MLflow keeps a second copy of it; an exported program takes its weights and some 2 kB for every
tensor.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

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
    config, folder = environment.config, environment.folder
    trials, tensors = config.trials, len(environment.net.state_dict())
    design = InitialDesign(candidates)
    baselines = design.baselines(trials)
    fractions = [point.parameters["budget_fraction"] for point in (*baselines, *design.uniform(trials))]
    low = candidates.lowest_fraction
    proposed = list(candidates.cost_coverage.by_fraction) or [low ** ((step + 0.5) / STEPS) for step in range(STEPS)]
    sizes = _net_sizes(environment, candidates, fractions)
    mean_proposed = sum(_net_sizes(environment, candidates, proposed)) / len(proposed)
    sizes += [mean_proposed] * (trials - len(fractions))
    exported = 2 * sum(sizes) / len(sizes) + PROGRAM * tensors  # their weights, and once more in the program
    largest = max(_net_sizes(environment, candidates, [1.0]))
    parts = [
        _dense_part(environment),
        _kept_dense_part(environment),
        DiskPart("checkpoints of the trials", int(sum(sizes)), str(folder / "trials")),
        DiskPart("front, with programs", int(max(1, FRONT_SHARE * trials) * exported), str(folder / "front")),
        DiskPart("report", REPORT + RESULT + RESULT_TRIAL * trials, str(folder)),
        _study_part(environment),
        _mlflow_part(environment, int(2 * largest + PROGRAM * tensors)),
    ]
    if methods := _methods_with_intermediates(environment):
        count = (trials - len(baselines)) * min(MOST, PER_EPOCH * config.train.epochs)
        what = f"intermediate networks of {', '.join(methods)}"
        parts.append(DiskPart(what, int(count * largest), str(folder / "trials"), extra=True))
    return tuple(parts)


def dense_bytes(environment: Environment) -> int:
    """Return the size of the dense network's file."""
    state = environment.net.state_dict().values()
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in state) + HEADER * len(state)


def _net_sizes(environment: Environment, candidates: CandidateSpace, fractions: Sequence[float]) -> list[float]:
    """Return the bytes of networks of uniform widths at these fractions of the budget."""
    space, full = environment.problem.space, dense_bytes(environment)
    width_ratios, header = uniform_ratios(space), HEADER * len(environment.net.state_dict())
    costs = [space.cost(space.fit(width_ratios, candidates.budgets_at(fraction))) for fraction in fractions]
    return [header + (full - header) * cost.params / space.dense_cost.params for cost in costs]


def _dense_part(environment: Environment) -> DiskPart:
    what, file = "dense weights", environment.dense_file
    if file is None:
        weights = environment.config.weights
        download = file_to_download(environment.spec, weights)
        if download is not None:
            return DiskPart(what, dense_bytes(environment), f"downloaded to {download}")
        return DiskPart(what, 0, f"given: {weights}")
    return (
        DiskPart(what, 0, f"cached: {file}") if file.exists() else DiskPart(what, dense_bytes(environment), str(file))
    )


def _kept_dense_part(environment: Environment) -> DiskPart:
    """Return the copy that a resumed search takes its dense network from."""
    what, file = "dense weights for --resume", environment.folder / DENSE
    return DiskPart(what, 0, f"there: {file}") if file.exists() else DiskPart(what, dense_bytes(environment), str(file))


def _study_part(environment: Environment) -> DiskPart:
    what, storage = "study", environment.config.storage
    trials, rungs = environment.config.trials, environment.problem.rungs
    segments = sum(expected(rungs, trials, round(FRONT_SHARE * trials))) if rungs else trials
    size = int(STUDY + STUDY_TRIAL * segments)
    return DiskPart(what, 0, storage) if storage else DiskPart(what, size, str(environment.folder / "study.db"))


def _mlflow_part(environment: Environment, chosen: int) -> DiskPart:
    what, config = "MLflow", environment.config
    server = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if server:
        return DiskPart(what, 0, server)
    size = MLFLOW + MLFLOW_TRIAL * config.trials + REPORT + chosen
    return DiskPart(what, size, f"{environment.folder / 'mlflow.db'}, mlartifacts")


def _methods_with_intermediates(environment: Environment) -> list[str]:
    """Return the methods that may yield networks inside the budgets before they end."""
    epochs, fixed = environment.config.train.epochs, environment.problem.fixed
    methods = {name: METHODS[name](**fixed.get(name, {})) for name in environment.problem.methods}
    return [name for name, method in methods.items() if yields_intermediates(method, epochs)]
