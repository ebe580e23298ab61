"""RunConfig: everything a search needs to know, composed of the settings of the packages below, and checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Interval, Predicate

from configs.parsing import (
    AUTO,
    FinalDistillation,
    parse_duration,
    parse_final_distillation,
    parse_final_epochs,
    parse_fixed_settings,
    parse_rungs,
    parse_screen,
    parse_search_settings,
    parse_train_budget,
    parse_trial_timeout,
)
from configs.passwords import with_password
from pruning.base import METHODS, parse_methods
from pruning.settings import Setting
from pruning.traits import wide_epochs
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from runners.search_training import parse_search_training
from spaces.budget import Budget, parse_budgets
from spaces.errors import ConfigError
from spaces.fields import PositiveInt, check_settings
from spaces.registry import unknown_name
from spaces.space import SpaceConfig
from spaces.targets import parse_targets, with_targets

# Of a budget of training; the second of what the dense net leaves. A quarter of 48 epochs pays for the three baselines
# at four targets, and more would be taken from the final training.
DENSE_SHARE, SEARCH_SHARE = 0.4, 0.25
LEVELS = 4  # without targets: at most so many members of the front are trained on
SAMPLERS = ("structured", "tpe", "nsga2", "gp", "random")
ALLOCATIONS = ("any", "search", "method")
TRAINING_RUNNERS = ("auto", "local", "ray")  # "simulated" trains nothing, so it yields no networks


@dataclass(frozen=True)
class RunConfig:
    """The settings of one search; making one checks all of them.

    Attributes:
        budget: hard limit on FLOPs (0.5gflops), MACs (0.5gmacs, the same count), parameters (1.2mparams), the tensors
            that are live at once in the inference of one image (512kb-activations), the file of the network (2mb: that
            of the first --export format, else model.safetensors) or latency (8ms), or a share of what the dense network
            has (50% of its FLOPs, 20%params, 50%activations, 30%size, 50%latency); several limits must all hold. One
            multiply-add is one FLOP. A latency is measured during the search, for the first
            --latency-batch on --latency-device (auto: cpu:1thread, or cuda:0 where training uses it); the upper end of
            its interval must meet the limit.
        targets: several budgets on one quantity that one search answers, such as 0.1,0.3,0.5gflops, 8,20,50% or
            20,50%params: equal shares of the trials aim at each, and the best network at each is reported beside the
            best baseline. Without a budget on their quantity, the largest target is the budget. Empty spreads the
            trials over the whole range.
        objective: what the front trades against accuracy, "accuracy,flops" or "accuracy,latency" (as measured).
        model: a zoo name such as resnet20 or mobilenet_v2, timm/NAME (extra [timm]), or "package.module:factory".
        widen: factor of all widths of a zoo network, rounded: 1.5 trains and prunes a network 1.5 times as wide. A
            factory takes it as its argument widen.
        output: name or index of the output that is trained, for a model that gives a tuple, a dict or an object; empty
            takes the first tensor.
        weights: "DEFAULT" or a name such as IMAGENET1K_V1 for torchvision's ("DEFAULT" for timm's), a file, or empty to
            train the dense net once and cache it.
        method: comma-separated methods among which the search chooses; it prefers methods that reach better networks;
            "auto" is di and, with 2 epochs and more, aofp and csgd, which choose while they train; "all" is every
            method; one of your own is "package.module:Class". The baselines always run beside them: l2 with uniform
            widths, di with its own and with uniform ones.
        set: fixed method settings, "METHOD.SETTING=VALUE".
        search_settings: comma-separated methods of the run whose settings are searched within their ranges, or "all".
            Empty searches none: every setting has its default, or the value of --set.
        search_training: settings of the fine-tuning that are searched with the widths: lr, distill-weight, epochs, as
            in lr,epochs or lr=0.002:0.05,epochs=1:4. Without a range, lr is searched from a quarter to four times --lr,
            distill-weight from 0 to 0.9, epochs from 1 to --epochs. Baselines keep the set values. Empty searches none.
        allocation: what chooses the widths, "search" or "method"; "any" tries both with methods that can do both. A
            method that cannot follow this setting does what it can, if another method of the search can follow it.
        lowest_fraction: least share of the budget that is tried; 1 tries the whole budget only.
        trials: how many candidates are trained.
        rungs: numbers of epochs after which trials pause, as in 1,2,4; the better half by non-dominated rank is trained
            on. The last rung is --epochs. "auto" takes a third of --epochs, a ninth and so on, and no rungs under 3
            epochs or 8 trials; "none" trains every trial to its end.
        screen: how many candidates are cut and compared before any training; only the best of them is trained. It
            serves methods that cut without training (di, l2 and the other scores). "auto" takes as many as cost at most
            a tenth of the training, up to 64; 1 or "none" trains every candidate.
        final_epochs: epochs of final training at each target (without targets: for each of up to four members of the
            front), as a mean: the largest gets three quarters of it, the smallest five quarters. After the trials, the
            best networks are trained on, from the largest target down, and at every target networks cut from the
            finished one above compete with them. "auto" spends as many epochs as the trials had, or what --train-budget
            leaves; "none" ends the search with its trials.
        inherit: whether networks may be cut from a trained network that contains their widths: in screening, where the
            proxy says better, and in the final training from the finished network of the target above; false cuts the
            dense net alone.
        final_distill_weight: weight in [0, 1] of the distillation in the final training, where --distill-weight is 0:
            from the most accurate network at hand, the dense net or one that is finished. "auto" takes 0.5 at the first
            target (0 where the dense net has not learned its training images), and 1 once a network is finished.
        train_budget: epochs of training in all, such as 48epochs: of the dense net where it is trained here (two
            fifths, at least --dense-epochs), of the trials (a quarter of the rest at most: --trials is lowered to
            what that pays for) and of the final training. Empty trains --trials times --epochs, and as much again in
            the end.
        time_limit: longest time of the search, such as 90s, 30m, 1h30m or 2h, the training of the dense net included.
            After it no trial begins, running trials end at their next report, and the front so far is the result. Empty
            sets no limit.
        confirm: number of fresh seeds with which each network of the front is trained again from the dense one, for the
            mean and deviation of its test accuracy, beside the best baseline at the FLOPs of the chosen network; 1
            trains nothing again.
        sampler: "structured" learns a network's structure first (trends over depth and stages, shared channels), then
            its single groups, and starts from measured sensitivities too; "tpe", "nsga2", "gp" and "random" are
            Optuna's.
        seed: number that determines the split, the sampler and, with the candidate, each trial.
        out: run folder; empty takes a fresh one under ./runs.
        resume: run folder of a search to continue with its settings and trials. Flags may change settings on which no
            trial depends: budget or targets (answered from the old trials; either replaces both), trials, time-limit,
            confirm, sampler, lowest-fraction, runner and device.
        storage: Optuna storage URL; empty takes SQLite in the run folder. A password in it is used and never written;
            where *** stands for it, it comes from SLIMFRONT_STORAGE_PASSWORD.
        tracking_uri: MLflow server; empty takes MLFLOW_TRACKING_URI, else SQLite in the run folder. A password is
            treated like that of storage; its variable is SLIMFRONT_TRACKING_PASSWORD.
        export: comma-separated formats in which every network of the front is written beside pt2 and safetensors: onnx
            (extra [onnx]), state_dict, torchscript.
        quantize: int8 writes every network of the front statically quantised too, by ONNX Runtime's tools, as
            model.int8.onnx, scored and timed beside float32 (extra [onnx]); empty quantises nothing.
        experiment: MLflow experiment; empty takes MLFLOW_EXPERIMENT_NAME, else slimfront.
        run_name: name of the search in MLflow; empty takes network, images and budgets.
        log_models: which networks MLflow keeps as models at the end: front, chosen or none.
        register: name in MLflow's model registry under which the chosen network becomes a version, with the alias
            "chosen"; empty registers nothing.
        quiet: print nothing but warnings, errors and the final lines.
        json: print the result as one JSON object on standard output, everything else on standard error.
    """

    budget: tuple[str, ...] = ()
    targets: str = ""
    objective: Annotated[Literal["accuracy,flops", "accuracy,latency"], "one of accuracy,flops or accuracy,latency"] = (
        "accuracy,flops"
    )
    model: Annotated[str, Predicate(bool), "a model name or package.module:factory"] = "cifar_resnet18"
    widen: Annotated[float, Interval(gt=0, le=64), "a factor over 0, at most 64"] = 1.0
    output: str = ""
    weights: str = ""
    method: str = "auto"
    set: tuple[str, ...] = ()
    search_settings: str = ""
    search_training: str = ""
    allocation: str = "any"
    lowest_fraction: Annotated[float, Interval(ge=1e-6, le=1), "a share of the budget in [1e-6, 1]"] = 0.03
    trials: PositiveInt = 12
    rungs: str = "auto"
    screen: str = "auto"
    final_epochs: str = "auto"
    inherit: bool = True
    final_distill_weight: str = "auto"
    train_budget: str = ""
    time_limit: str = ""
    confirm: Annotated[
        int, Interval(ge=1, le=1000), "at least 1 and at most 1000; 1 trains nothing again; 3 gives means"
    ] = 1
    sampler: str = "structured"
    seed: Annotated[int, Interval(ge=0, lt=2**32), "a whole number from 0 to 4294967295"] = 0
    out: str = ""
    resume: str = ""
    storage: str = field(default="", repr=False)  # may hold a password
    tracking_uri: str = field(default="", repr=False)
    export: str = ""
    quantize: Annotated[Literal["", "int8"], "int8, or empty"] = ""
    experiment: str = ""
    run_name: str = ""
    log_models: Literal["front", "chosen", "none"] = "front"
    register: Annotated[str, Predicate(lambda name: not set(name) & set("/:")), "a name without / and :"] = ""
    quiet: bool = False
    json: bool = False
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        """Check every rule that needs neither data nor network, except that there is a budget (see `budgets`).

        Raises:
            SlimfrontError: the first rule that does not hold.
        """
        if isinstance(self.budget, str):
            raise ConfigError(
                f"budget {self.budget!r} is one text and must be a sequence of them, as in budget=({self.budget!r},)"
            )
        # Reading a property raises the error of a text that cannot be parsed.
        if self.budget or self.target_budgets:
            _ = self.budgets
        check_settings(self)
        if self.train_budget:
            self._split_budget(parse_train_budget(self.train_budget))
        if self.register and self.log_models == "none":
            raise ConfigError(
                f"--register {self.register} needs the chosen network as a model, and --log-models is none; "
                "take --log-models chosen"
            )
        if self.train.mixup and "mixup" in (self.data.augmentations or ()):
            raise ConfigError(
                f"--mixup is {self.train.mixup}, and --augment {self.data.augment} mixes images too; keep one of them"
            )
        _ = self.rung_epochs, self.screening_pool, self.time_limit_seconds, self.searched_training, self.final_training
        _ = self.final_distillation, self.trial_timeout_seconds
        if not self.weights:
            self.train.for_dense()
        for kind, name, known in (
            ("sampler", self.sampler, SAMPLERS),
            ("allocation", self.allocation, ALLOCATIONS),
            ("runner", self.runner.name, TRAINING_RUNNERS),
        ):
            if name not in known:
                raise unknown_name(kind, name, list(known))
        _ = self.fixed_settings, self.searched_settings

    def _split_budget(self, epochs: int) -> None:
        """Set the epochs of the dense net and the number of trials that a budget of training pays for.

        Raises:
            ConfigError: not even one trial remains.
        """
        dense = 0 if self.weights else max(self.train.dense_epochs, round(DENSE_SHARE * epochs))
        affordable = int(SEARCH_SHARE * (epochs - dense)) // max(1, self.train.epochs)
        if affordable < 1:
            raise ConfigError(
                f"--train-budget {self.train_budget} leaves {epochs - dense} epochs beside the dense net, and a trial "
                f"with its final training takes {2 * self.train.epochs}; raise it, or lower --epochs or --dense-epochs"
            )
        if not self.weights:
            object.__setattr__(self, "train", replace(self.train, dense_epochs=dense))
        object.__setattr__(self, "trials", min(self.trials, affordable))

    @property
    def network(self) -> str:
        """Name of the network with its factor of widths, such as resnet20 or resnet20-x1.5."""
        return self.model if self.widen == 1 else f"{self.model}-x{self.widen:g}"

    @cached_property
    def final_training(self) -> int:
        """Epochs of final training at each target, or at each of the members of the front that are trained on."""
        given = parse_final_epochs(self.final_epochs, self.train.epochs)
        if given is not None:
            return given
        total = self.trials * self.train.epochs
        if self.train_budget:
            dense = 0 if self.weights else self.train.dense_epochs
            total = parse_train_budget(self.train_budget) - dense - total
        return max(1, total // (len(self.target_budgets) or LEVELS))

    @cached_property
    def final_distillation(self) -> FinalDistillation | None:
        """Weights of distillation in the final training; None keeps that of the trials, where they have one."""
        searched = any(setting.name == "distill_weight" for setting in self.searched_training)
        return None if self.train.distill_weight or searched else parse_final_distillation(self.final_distill_weight)

    @property
    def final_share(self) -> float:
        """Share of the epochs after the dense net's that are for the final training."""
        final = self.final_training_in_all
        return final / (final + self.trials * self.train.epochs) if final else 0.0

    @property
    def final_training_in_all(self) -> int:
        """Epochs of final training at all targets, or at all members of the front that may be trained on."""
        return self.final_training * (len(self.target_budgets) or LEVELS)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, relative ones unresolved; the largest target is one unless its quantity has a budget.

        Raises:
            BudgetError: neither a budget nor a target is given, or two budgets limit one quantity.
        """
        given = parse_budgets(self.budget) if self.budget or not self.target_budgets else ()
        return with_targets(given, self.target_budgets)

    @property
    def size_format(self) -> str:
        """Format of the file whose size counts: the first of `--export`, safetensors without one.

        Empty where no size counts, because no budget limits it and a network would have to be exported for it.
        """
        first = self.export.split(",")[0].strip()
        if not first:
            return "safetensors"
        return first if any(budget.quantity == "size" for budget in self.budgets) else ""

    @cached_property
    def storage_address(self) -> str:
        """The Optuna storage with its password, which may be in the environment; empty for the run folder.

        Raises:
            ConfigError: the password is masked, and the environment has none.
        """
        return with_password("storage", self.storage)

    @cached_property
    def tracking_address(self) -> str:
        """The MLflow server with its password, both of which may be in the environment; empty for the run folder.

        Raises:
            ConfigError: the password is masked, and the environment has none.
        """
        return with_password("tracking_uri", self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))

    @cached_property
    def target_budgets(self) -> tuple[Budget, ...]:
        """The targets, relative ones unresolved, the largest first."""
        return parse_targets(self.targets)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods that the search chooses among."""
        methods = tuple(parse_methods(self.method))
        if self.method.strip() == AUTO and self.train.epochs == 1:
            # One epoch is too short to choose channels by training and to train the narrow network after that.
            methods = tuple(name for name in methods if not wide_epochs(METHODS[name](), 1))
        if not methods:
            raise ConfigError(f"--method {self.method!r} names no method; known: {', '.join(sorted(METHODS))}")
        return methods

    @cached_property
    def fixed_settings(self) -> Mapping[str, Mapping[str, str]]:
        """Method -> setting -> text of its value, of every `set`."""
        return parse_fixed_settings(self.set, self.methods)

    @cached_property
    def searched_settings(self) -> tuple[str, ...]:
        """The names of the methods whose settings are searched."""
        return parse_search_settings(self.search_settings, self.methods)

    @cached_property
    def rung_epochs(self) -> tuple[int, ...]:
        """The epochs a trial has been trained at each of its rungs, the last the whole training; () without rungs."""
        return parse_rungs(self.rungs, self.train.epochs, self.trials, self.search_training)

    @cached_property
    def searched_training(self) -> tuple[Setting, ...]:
        """The fine-tuning settings that are searched, each a field of `train` with its range."""
        return parse_search_training(self.search_training, self.train)

    @cached_property
    def time_limit_seconds(self) -> float:
        """The time limit in seconds; infinite without one."""
        return parse_duration("--time-limit", self.time_limit) if self.time_limit else float("inf")

    @cached_property
    def trial_timeout_seconds(self) -> float | None:
        """Seconds that a trial may give no sign of life; infinite without a limit, None where the forecast says."""
        return parse_trial_timeout(self.runner.trial_timeout)

    @property
    def axis(self) -> str:
        """What the front trades against accuracy, "flops" or "latency"."""
        return self.objective.rpartition(",")[2]

    @cached_property
    def screening_pool(self) -> int | None:
        """Number of candidates that are compared for each one that is trained; None where `--screen` is automatic."""
        return parse_screen(self.screen, self.train.epochs)
