"""What a search is expected to take, estimated before it begins: wall time, epochs of training, and bytes of disk.

The bytes were measured on searches of 4 and 16 trials of a network of 12 tensors and of 6 trials of a ResNet-20: the
report is nearly all plotly.js, and MLflow keeps a second copy of it; an exported program takes its weights and some
2 kB for every tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.passwords import masked
from configs.schema import LEVELS, RunConfig
from pruning.base import METHODS
from pruning.settings import Setting
from pruning.traits import screenable, wide_epochs, yields_intermediates
from runners.cache import is_cached
from runners.evaluation.intermediate import MOST, PER_EPOCH
from runners.evaluation.proxy import PROXY_IMAGES
from runners.evaluation.screening import automatic_pool_size, screen_images
from runners.training.scoring import BATCHNORM_IMAGES
from search.environment import LEARNED_IMAGES, Environment, Plan, file_to_download
from search.problem import BASELINES
from search.results.pareto import counted
from search.schedulers.asha import CALIBRATION_TRIALS, expected, expected_epochs
from search.schedulers.final_training import split_epochs
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign, sensing_images
from search.storage.run_folder import DENSE
from search.time_left import FinalCost, Work, time_share
from spaces.space import uniform_ratios

FRONT_SHARE = 0.4  # of the trials: networks on the front (README: 6 of 20, 12 of 24)
LATENCY_SECONDS = 45.0  # for the dense network, the smallest one and the latency model, unless that is cached
TIMING_SECONDS = 1.5  # for each reading of a network on an idle machine
SECONDS_BEFORE = 10.0  # for imports and the start of Ray
SECONDS_AFTER = 10.0  # for export and report
STATISTICS_IMAGES = 512  # of the dense network, for the moments that di takes
STATISTICS_PASSES = 2  # forward passes that take as long as those moments of an image
NARROW_READ = 0.35  # time of a network of the front as a share of the dense one's
TIMING_SHARE, LEAST_TIMING = 0.1, 5.0  # of the run's time so far that timing the front takes at most; seconds
HEADER = 100  # bytes of a safetensors file per tensor, for its name, type and place
PROGRAM = 2_200  # bytes of a program per tensor, for its graph
REPORT = 2_100_000  # report.html and front.png
RESULT, RESULT_TRIAL = 5_000, 1_500  # result.json and config.yaml, and what a trial adds
STUDY, STUDY_TRIAL = 110_000, 4_000  # a training segment is a trial of the study
MLFLOW, MLFLOW_TRIAL = 950_000, 8_000
STEPS = 16  # at which the sizes of networks are averaged over log cost, where there are no targets


@dataclass(frozen=True)
class TimeForecast:
    """Estimated seconds of wall time.

    Attributes:
        dense: for the dense network; 0 when its weights are given or cached.
        trials: for all trials, with as many at once as there are workers.
        around: for everything else.
        final: for the final training, of one network after the other, each with all threads of this machine.
        trial: for a whole trial that trains the dense network.
        work: the parts, for the time that is left of a running search.
    """

    dense: float
    trials: float
    around: float = SECONDS_BEFORE + SECONDS_AFTER
    final: float = 0.0
    trial: float = 0.0
    work: Work = Work()

    @property
    def total(self) -> float:
        """The whole search, time limit aside."""
        return self.dense + self.trials + self.final + self.around


def plan(
    environment: Environment,
    candidates: CandidateSpace,
    dense_seconds: float | None = None,
    forecast: TimeForecast | None = None,
) -> Plan:
    """Return the search with what it is expected to take.

    Args:
        dense_seconds: latency of the dense network, once measured.
        forecast: of the time; None makes it here.
    """
    forecast = forecast or forecast_time(environment, candidates)
    epochs = forecast_epochs(environment.config) if environment.problem.rungs else 0.0
    return Plan(environment, forecast.total, epochs, dense_seconds, forecast.trial, forecast.work)


def forecast_epochs(config: RunConfig) -> float:
    """Estimate the epochs of training of all trials together."""
    if rungs := config.rung_epochs:
        return expected_epochs(rungs, config.trials, exempt_from_rungs(config))
    return float(config.train.epochs * config.trials)


def exempt_from_rungs(config: RunConfig) -> int:
    """Estimate how many trials are trained to the last rung: baselines, calibration trials, and the front.

    The front is not, where the final training trains it on.
    """
    targets = len(config.target_budgets)
    baselines = min(config.trials, len(BASELINES) * targets if targets else config.trials // 2)
    front = 0 if config.final_training else round(FRONT_SHARE * config.trials)
    return baselines + CALIBRATION_TRIALS + front


def forecast_time(environment: Environment, candidates: CandidateSpace) -> TimeForecast:
    """Estimate the wall time from timed training steps of the dense network, by images, epochs and mean FLOPs."""
    config, data, file, steps = environment.config, environment.data, environment.dense_file, environment.steps
    train, faster = config.train, steps.alone_seconds / steps.worker_seconds if steps.worker_seconds else 1.0
    epochs = 0 if file is None or is_cached(file) else train.dense_epochs
    dense = epochs * (len(data.train) * steps.alone_seconds + len(data.val) * steps.forward_seconds * faster)
    trial = _trial_seconds(environment, candidates)
    # A confirmation trains to the end at once; trials that end at a rung take their share.
    share = forecast_epochs(config) / (train.epochs * config.trials) if train.epochs else 1.0
    share += _retrainings(config) / config.trials
    shares = _trial_shares(environment, candidates)
    trials = sum(shares) * trial * share / environment.workers
    epoch = len(data.train) * steps.worker_seconds + len(data.val) * steps.forward_seconds
    epoch *= 1.0 if config.runner.cluster else faster
    cost = final_cost(environment)
    final_epochs = _final_trainings(environment, candidates, cost)
    final = final_epochs * epoch
    closing = SECONDS_AFTER + _images_at_the_end(environment) * steps.forward_seconds * faster
    around = SECONDS_BEFORE + closing + _images_before(environment) * steps.forward_seconds * faster
    if environment.problem.needs_latency:
        around += LATENCY_SECONDS + TIMING_SECONDS * config.trials
    elif config.latency.measures:
        wanted = len(config.latency.batch) * TIMING_SECONDS * (1 + FRONT_SHARE * config.trials)
        timing = min(wanted, max(LEAST_TIMING, TIMING_SHARE * (dense + trials + final + around)))
        around, closing = around + timing, closing + timing
    work = Work(tuple(share * trial for share in shares), train.epochs, epoch, final_epochs, cost, closing)
    return TimeForecast(dense, trials, around, final, trial, work)


def _trial_seconds(environment: Environment, candidates: CandidateSpace) -> float:
    """Estimate the seconds of a whole trial that would train the dense network, with its share of the screening."""
    config, data, steps = environment.config, environment.data, environment.steps
    epochs, calibration = config.train.epochs, len(data.calibration)
    forward = BATCHNORM_IMAGES + min(PROXY_IMAGES, calibration) + (epochs + 1) * len(data.val)
    images, pool = epochs * len(data.train), screening_pool_size(environment, candidates)
    if pool > 1:
        screened = screened_trials(candidates, config.trials) / config.trials
        images += round(starts_of(config) * pool * screen_images(calibration) * screened)
    return images * steps.worker_seconds + forward * steps.forward_seconds


def _images_before(environment: Environment) -> float:
    """Estimate how many images the dense network sees before the first trial: statistics, accuracies, sensitivities."""
    data, calibration = environment.data, len(environment.data.calibration)
    statistics = STATISTICS_PASSES * min(STATISTICS_IMAGES, calibration) + min(PROXY_IMAGES, calibration)
    accuracies = len(data.val) + min(LEARNED_IMAGES, calibration)
    sensitivities = sensing_images(environment) * (1 + len(environment.problem.space.variable))
    return statistics + accuracies + sensitivities


def _images_at_the_end(environment: Environment) -> float:
    """Estimate how many images the dense network would see in the time of the test images of the front."""
    config = environment.config
    return (1 + FRONT_SHARE * config.trials * NARROW_READ + _retrainings(config)) * len(environment.data.test)


def _final_trainings(environment: Environment, candidates: CandidateSpace, cost: FinalCost) -> float:
    """Estimate the epochs of the dense network that would take as long as the final training."""
    coverage = candidates.cost_coverage
    levels = list(coverage.by_fraction)
    if not levels:  # the front is spread from where the initial trials begin
        widest = InitialDesign(candidates).widest_fraction
        levels = [widest * (coverage.lowest / widest) ** (step / (LEVELS - 1)) for step in range(LEVELS)]
    base = coverage.base / getattr(environment.problem.space.dense_cost, coverage.quantity)
    shares = sorted((fraction * base for fraction in levels), reverse=True)
    epochs, heir = split_epochs(environment.config.final_training, len(levels)), environment.config.inherit
    if not any(epochs):
        return 0.0
    return sum(
        cost.dense_epochs(count, share, shares[0] if place else 1.0, heir=heir and bool(place))
        for place, (count, share) in enumerate(zip(epochs, shares, strict=True))
    )


def final_cost(environment: Environment) -> FinalCost:
    """Estimate what the final training of a network costs besides its own steps.

    Around the training of a network that is cut from a finished one there are statistics of the finished network, the
    cut, and readings before and after.
    """
    data, steps, calibration = environment.data, environment.steps, len(environment.data.calibration)
    passes = STATISTICS_PASSES * min(STATISTICS_IMAGES, calibration) + min(BATCHNORM_IMAGES, calibration)
    passes += 2 * len(data.val)
    epoch = len(data.train) * steps.worker_seconds + len(data.val) * steps.forward_seconds
    weights = environment.config.final_distillation
    taught = max(weights.first, weights.later) > 0 if weights else environment.config.train.distill_weight > 0
    teacher = len(data.train) * steps.forward_seconds / epoch if taught else 0.0
    return FinalCost(passes * steps.forward_seconds / epoch, teacher)


def screening_pool_size(environment: Environment, candidates: CandidateSpace) -> int:
    """Return how many candidates are compared before training for each one that is trained; 1 for none."""
    config, data = environment.config, environment.data
    if (asked := config.screening_pool) is not None:
        return asked
    trained_images = (forecast_epochs(config) + config.final_training_in_all) * len(data.train)
    pools = starts_of(config) * screened_trials(candidates, config.trials)
    return automatic_pool_size(trained_images, pools, len(data.calibration))


def starts_of(config: RunConfig) -> int:
    """Return from how many networks a candidate of a screening pool is cut: the dense one, and a trained one."""
    return 2 if config.inherit else 1


def screened_trials(candidates: CandidateSpace, trials: int) -> float:
    """Return about how many trials will be the winner of a screening pool: proposals with methods that allow it."""
    proposed = trials - len(InitialDesign(candidates).points(trials))
    return proposed * len(screenable_methods(candidates)) / len(candidates.methods)


def screenable_methods(candidates: CandidateSpace) -> list[str]:
    """Return the methods whose candidates can be compared before training."""
    return [name for name in candidates.methods if screenable(METHODS[name], candidates.problem.fixed.get(name, {}))]


def mean_epochs(searched: Sequence[Setting], epochs: int) -> float:
    """Return how many epochs a proposed trial trains on average: the set ones, unless epochs are searched.

    Whole numbers from a to b on a log scale are drawn from [a - 1/2, b + 1/2].
    """
    for setting in searched:
        if setting.name == "epochs" and setting.low and setting.high:
            return (setting.high - setting.low + 1) / math.log((setting.high + 0.5) / (setting.low - 0.5))
    return float(epochs)


def _retrainings(config: RunConfig) -> float:
    """Estimate the trainings of the confirmation: of the front, and of a baseline beside it or at each target."""
    baselines = max(1, len(config.target_budgets))
    return config.confirm * (baselines + FRONT_SHARE * config.trials) if config.confirm > 1 else 0.0


def _trial_shares(environment: Environment, candidates: CandidateSpace) -> list[float]:
    """Estimate the time of every trial, in their order, as a share of one that trains the dense network.

    The initial design is known. The other trials are spread evenly over the targets or over log cost, and over methods
    as if all of them were equally good: in proportion to one over their time (see `search.searchers.method_choice`).
    """
    problem, trials, epochs = environment.problem, environment.config.trials, environment.config.train.epochs
    dense = problem.space.dense_cost
    limits = [budget.limit / getattr(dense, budget.quantity) for budget in counted(problem.budgets)]
    share_allowed = min([1.0, *limits])

    def share_of(name: str, fraction: float) -> float:
        method = METHODS[name](**problem.fixed.get(name, {}))
        wide = wide_epochs(method, epochs) / max(1, epochs)
        return float(wide + (1 - wide) * time_share(fraction * share_allowed))

    points = InitialDesign(candidates).points(trials)
    known = [share_of(point.method, point.parameters["budget_fraction"]) for point in points]
    speeds = [1 / share_of(name, candidates.cost_coverage.mean) for name in candidates.methods]
    longer = mean_epochs(candidates.training, epochs) / max(1, epochs)
    return known + [longer * len(speeds) / sum(speeds)] * (trials - len(points))


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
    storage, server = masked(config.storage_address), masked(config.tracking_address)
    tracked = MLFLOW + MLFLOW_TRIAL * trials + REPORT + 2 * largest + graph
    kept = folder / DENSE  # from which a resumed search takes its dense network
    parts = [
        _dense_part(environment),
        _unless_there("dense weights for --resume", environment, kept, "there"),
        DiskPart("checkpoints of the trials", int(sum(sizes)), str(folder / "trials")),
        DiskPart("front, with programs", int(max(1, front) * exported), str(folder / "front")),
        DiskPart("report", REPORT + RESULT + RESULT_TRIAL * trials, str(folder)),
        _unless_elsewhere("study", STUDY + STUDY_TRIAL * segments, str(folder / "study.db"), storage),
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
    trials, low = environment.config.trials, candidates.lowest_fraction
    points = InitialDesign(candidates).points(trials)
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
    size, place = (0, f"{why}: {file}") if is_cached(file) else (dense_bytes(environment), str(file))
    return DiskPart(what, size, place)


def _unless_elsewhere(what: str, size: float, place: str, elsewhere: str) -> DiskPart:
    return DiskPart(what, 0, elsewhere) if elsewhere else DiskPart(what, int(size), place)


def _methods_with_intermediates(environment: Environment) -> list[str]:
    """Return the methods that may yield networks inside the budgets before they end."""
    epochs, fixed = environment.config.train.epochs, environment.problem.fixed
    methods = {name: METHODS[name](**fixed.get(name, {})) for name in environment.problem.methods}
    return [name for name, method in methods.items() if yields_intermediates(method, epochs)]
