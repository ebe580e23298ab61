"""RunConfig: everything a search needs to know, composed of the option types of the packages below."""

from dataclasses import dataclass, field

from runners.base import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from spaces.errors import SlimfrontError
from spaces.space import SpaceConfig

OBJECTIVES = ("accuracy,flops", "accuracy,latency")
SAMPLERS = ("structured", "tpe", "nsga2", "gp", "random")
ALLOCATIONS = ("any", "search", "method")


# Settings whose flag is not their own name: `latency.device` is --latency-device, `data.name` is --data.
_FLAGS = {("data", "name"): "data", ("runner", "name"): "runner"}


def setting_key(section: str, name: str) -> str:
    """Return the name that a setting has outside of its section: that of its flag, with underscores."""
    return _FLAGS.get((section, name), f"latency_{name}" if section == "latency" else name)


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
        targets: several budgets on one quantity that one search answers, such as 0.1,0.3,0.5gflops or 8,20,50%: trials
            are drawn to them in equal shares and the best network at each is reported, beside uniform widths there.
            Without a budget on their quantity the largest is the budget. Empty spreads the trials over the whole range.
        objective: what the front trades against accuracy, "accuracy,flops" or "accuracy,latency" (as measured).
        model: a zoo name such as resnet20 or mobilenet_v2, or "package.module:factory".
        weights: "DEFAULT" or a name such as IMAGENET1K_V1 for torchvision's, a file, or empty to train the dense net
            once and cache it.
        method: comma-separated methods that the search chooses among, going for what pays; "auto" is di, aofp and csgd,
            "all" every method and arm. Uniform widths by L2 norm always run beside them.
        set: fixed method settings, "METHOD.SETTING=VALUE".
        search_training: fine-tuning settings that are searched with the widths, of lr, distill-weight and epochs, as in
            lr,epochs or lr=0.002:0.05,epochs=1:4; without a range a quarter to four times the set rate, 0 to 0.9, 1 to
            the set epochs. The control arm keeps the set values. Empty searches none.
        allocation: who chooses widths, "search" or "method"; "any" tries both with methods that can do either. Methods
            that cannot do what is asked for do what they can, as long as another one of the run can.
        lowest_fraction: least share of the budget that is tried; 1 tries the whole budget only.
        trials: how many candidates are trained.
        rungs: epochs after which trials pause and the better half by non-dominated rank goes on from its weights, as in
            1,2,4; the last rung is all epochs. "auto" takes a third of them, a ninth and so on, and none under 3 epochs
            or 8 trials; "none" trains every trial at once.
        screen: how many candidates are cut and compared on validation before any training for each one that is trained,
            with methods whose cut needs none (di, l2 and the other scores). "auto" takes as many as cost at most a
            quarter of the training, up to 8; 1 or "none" trains every candidate.
        time_limit: such as 90s, 30m, 1h30m or 2h, from the start and the dense training included; then no trial begins,
            running ones end at their next report, and the front so far is the result. Empty sets no limit.
        confirm: how often each network of the front is trained again from the dense one, with fresh seeds, for the mean
            and deviation of its test accuracy, beside uniform widths at the chosen one's FLOPs; 1 trains none again.
        sampler: "structured" learns what tilts over stages and wider streams are worth before it tells single groups
            apart, and starts from measured sensitivities too; "tpe", "nsga2", "gp" and "random" are Optuna's.
        seed: determines the split, the sampler and, with the candidate, each trial.
        out: run folder; empty takes a fresh one under ./runs.
        resume: run folder to go on with: its trials count, its settings hold. Flags on top may change what makes no
            trial another: budget or targets (answered from the old trials; those replace these), trials, time_limit,
            confirm, sampler, lowest_fraction, runner and device.
        storage: Optuna storage URL; empty takes SQLite in the run folder.
        tracking_uri: MLflow server; empty takes MLFLOW_TRACKING_URI, else SQLite in the run folder.
    """

    budget: tuple[str, ...] = ()
    targets: str = ""
    objective: str = "accuracy,flops"
    model: str = "cifar_resnet18"
    weights: str = ""
    method: str = "auto"
    set: tuple[str, ...] = ()
    search_training: str = ""
    allocation: str = "any"
    lowest_fraction: float = 0.03
    trials: int = 20
    rungs: str = "auto"
    screen: str = "auto"
    time_limit: str = ""
    confirm: int = 1
    sampler: str = "structured"
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
