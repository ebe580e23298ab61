"""RunConfig: everything a search needs to know, composed of the option types of the packages below."""

from dataclasses import dataclass, field

from runners.base import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from spaces.errors import SlimfrontError
from spaces.space import SpaceConfig

OBJECTIVES = ("accuracy,flops", "accuracy,latency")
SAMPLERS = ("tpe", "nsga2", "gp", "random")
ALLOCATIONS = ("any", "search", "method")


class ConfigError(SlimfrontError):
    """A setting that cannot be read, is not known, or is out of its range."""


@dataclass(frozen=True)
class RunConfig:
    """One search.

    Attributes:
        budget: hard limits that must all hold, e.g. ("0.5gflops", "1.2mparams"): flops, macs (the same count), params,
            a share such as 50% of the dense FLOPs, or a latency such as 8ms. One multiply-add is one FLOP. Latency is
            that of the first --latency-batch on --latency-device, measured during the search: the upper end of its
            interval must hold. Empty, the device is the training's: cpu:1thread, or cuda:0.
        objective: what the front trades against accuracy, "accuracy,flops" or "accuracy,latency" (as measured).
        model: a zoo name such as resnet20 or mobilenet_v2, or "package.module:factory".
        weights: "DEFAULT" or a name such as IMAGENET1K_V1 for torchvision's, a file, or empty to train the dense net
            once and cache it.
        method: comma-separated methods that the search chooses among, going for what pays; "auto" is di, aofp and csgd,
            "all" every method and arm. Uniform widths by L2 norm always run beside them.
        set: fixed method settings, "METHOD.SETTING=VALUE".
        allocation: who chooses widths, "search" or "method"; "any" tries both with methods that can do either.
        lowest_fraction: least share of the budget that is tried; 1 tries the whole budget only.
        trials: how many candidates are trained.
        time_limit: such as 90s, 30m, 1h30m or 2h, from the start and the dense training included; then no trial begins,
            running ones end at their next report, and the front so far is the result. Empty sets no limit.
        confirm: how often each network of the front is trained again from the dense one, with fresh seeds, for the mean
            and deviation of its test accuracy, beside uniform widths at the chosen one's FLOPs; 1 trains none again.
        sampler: "tpe", "nsga2", "gp" or "random".
        seed: determines the split, the sampler and, with the candidate, each trial.
        out: run folder; empty takes a fresh one under ./runs.
        resume: run folder to go on with: its trials count, its settings hold. Flags on top may change what makes no
            trial another: budget (answered from the old trials), trials, sampler, lowest_fraction, runner and device.
        storage: Optuna storage URL; empty takes SQLite in the run folder.
        tracking_uri: MLflow server; empty takes MLFLOW_TRACKING_URI, else SQLite in the run folder.
    """

    budget: tuple[str, ...] = ()
    objective: str = "accuracy,flops"
    model: str = "cifar_resnet18"
    weights: str = ""
    method: str = "auto"
    set: tuple[str, ...] = ()
    allocation: str = "any"
    lowest_fraction: float = 0.03
    trials: int = 20
    time_limit: str = ""
    confirm: int = 1
    sampler: str = "tpe"
    seed: int = 0
    out: str = ""
    resume: str = ""
    storage: str = ""
    tracking_uri: str = ""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
