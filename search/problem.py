"""Problem: the search space, budgets, targets and fixed settings of a search, resolved for one network; data only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from configs.parsing import AUTO
from configs.schema import RunConfig
from pruning.base import EVERY, METHODS, PruningError
from pruning.settings import Setting, declared_settings, parse_settings
from pruning.traits import follows_sgd, without_classes
from runners.training.task import Task
from spaces.budget import Budget
from spaces.errors import ConfigError
from spaces.space import SearchSpace, uniform_ratios
from spaces.targets import absolute_targets

UNIFORM, OWN = "uniform", "own"  # widths of baselines
_ABILITIES = {  # allocation -> attribute of a method, what methods with it do, what methods without it do
    "search": ("takes_widths", "work at widths that the search chooses", "finds widths itself"),
    "method": ("finds_widths", "find widths itself", "works at given widths"),
}


@dataclass(frozen=True)
class Baseline:
    """A method, with the values of `--set` or its defaults, that every search is compared with.

    Attributes:
        method: its name; it runs whatever `--method` says.
        widths: `UNIFORM` (every layer narrowed by the same factor) or `OWN` (found by the method within the budgets).
    """

    method: str
    widths: str


# Cutting by L2 norm needs nothing of a network but its weights, so it works where another method may fail. `di` at its
# defaults is the strongest method that is used once (docs/measured.md).
BASELINES = (Baseline("l2", UNIFORM), Baseline("di", OWN), Baseline("di", UNIFORM))
BASELINE_METHODS = tuple(dict.fromkeys(baseline.method for baseline in BASELINES))


@dataclass(frozen=True)
class Problem:
    """What a search optimizes, and within which budgets.

    Attributes:
        config: the settings of the run.
        space: the widths that may vary, and their exact cost.
        budgets: absolute, a share of the dense latency once that is measured (`with_dense_latency`); every network of
            the front is inside all of them.
        targets: absolute budgets on one quantity, the largest first; the search reports the best network within each.
        fixed: method -> setting -> value, of the settings that are not searched.
    """

    config: RunConfig
    space: SearchSpace
    budgets: tuple[Budget, ...]
    targets: tuple[Budget, ...] = ()
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def resolve(cls, config: RunConfig, space: SearchSpace, classifies: bool = True) -> "Problem":
        """Resolve the budgets, targets and method settings of a config for a network.

        Args:
            classifies: whether images have classes; without, methods that use them get the settings that do not.

        Raises:
            BudgetError: no budget, or one under the smallest network; a target out of reach.
            ConfigError: no method of the run can follow `--allocation`, or `--search-settings` names one without any.
            SettingError: a fixed setting that does not exist or cannot take its value.
            PruningError: a method or its settings need classes, and there are none.
            UnknownNameError: a method that is in no table.
        """
        _check_allocation(config.methods, config.allocation)
        _check_optimizer(config)
        budgets = tuple(budget.resolve(space.dense_cost) for budget in config.budgets)
        space.fit(uniform_ratios(space), budgets)  # raises for a budget that no network meets
        targets = absolute_targets(config.target_budgets, budgets, space)
        settings = method_settings(config.methods)
        _check_searched(config, settings)
        fixed = {name: parse_settings(name, values, settings) for name, values in config.fixed_settings.items()}
        return cls(config, space, budgets, targets, fixed if classifies else _without_classes(config, fixed))

    def with_dense_latency(self, seconds: float) -> "Problem":
        """Return the problem with absolute latency budgets, for a dense network of this measured latency."""
        return replace(self, budgets=tuple(budget.resolve_latency(seconds) for budget in self.budgets))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that the search chooses among."""
        return self.config.methods

    @property
    def axis(self) -> str:
        """Cost that the front minimizes, "flops" or "latency"."""
        return self.config.axis

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which trials pause, the last the whole training; empty when trials never pause."""
        return self.config.rung_epochs

    @property
    def latency_limit(self) -> float:
        """Lowest latency budget in seconds; infinite when no budget limits latency."""
        return min((budget.limit for budget in self.budgets if budget.quantity == "latency"), default=float("inf"))

    @property
    def needs_latency(self) -> bool:
        """Whether latency is limited or an objective, so that networks are measured during the search."""
        return needs_latency(self.config, self.budgets)


def for_task(config: RunConfig, task: Task) -> RunConfig:
    """Return the config without the distillation of the final training, where outputs are no logits of classes.

    Raises:
        ConfigError: a setting that classification alone has.
    """
    if task.classifies:
        return config
    train = config.train
    asked = {
        "--mixup": train.mixup > 0,
        "--distill-weight": train.distill_weight > 0,
        "--search-training distill-weight": any(s.name == "distill_weight" for s in config.searched_training),
        "--final-distill-weight": _distils(config),
        f"--augment {config.data.augment}": bool({"mixup", "cutmix"} & set(config.data.augmentations or ())),
    }
    for flag in (flag for flag, present in asked.items() if present):
        raise ConfigError(f"{flag} is for classification, and --task {train.task} has no classes; leave it out")
    return replace(config, final_distill_weight="0")  # "auto" would teach


def _distils(config: RunConfig) -> bool:
    """Tell whether the user asks for distillation in the final training."""
    weights = config.final_distillation
    return weights is not None and config.final_distill_weight.strip() != AUTO and weights.later > 0


def _without_classes(config: RunConfig, fixed: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Return the fixed settings of all methods, with those that make them do without classes.

    Raises:
        PruningError: a method cannot do without, or a setting that was given needs them.
    """
    found = {name: dict(values) for name, values in fixed.items()}
    for name in dict.fromkeys((*config.methods, *BASELINE_METHODS)):
        given = METHODS[name](**fixed.get(name, {}))
        suited = without_classes(given)
        for setting in declared_settings(METHODS[name]):
            value = getattr(suited, setting.name)
            if value == getattr(given, setting.name):
                continue
            if setting.name in fixed.get(name, {}):
                raise PruningError(
                    f"--set {name}.{setting.name}={getattr(given, setting.name)} needs classes, and --task "
                    f"{config.train.task} has none; leave it out"
                )
            found.setdefault(name, {})[setting.name] = value
    return found


def needs_latency(config: RunConfig, budgets: Iterable[Budget]) -> bool:
    """Return whether a budget limits latency or latency is an objective."""
    return config.axis == "latency" or any(budget.quantity == "latency" for budget in budgets)


def method_settings(methods: Sequence[str]) -> dict[str, tuple[Setting, ...]]:
    """Return the declared settings of every method of a search and of the baselines, by method."""
    return {name: declared_settings(METHODS[name]) for name in dict.fromkeys((*methods, *BASELINE_METHODS))}


def _check_searched(config: RunConfig, settings: Mapping[str, Sequence[Setting]]) -> None:
    """Raise ConfigError for a method named by `--search-settings` of which no setting can be searched."""
    for name in config.searched_settings:
        if config.search_settings != EVERY and not any(setting.searchable for setting in settings[name]):
            raise ConfigError(
                f"--search-settings names {name}, and no setting of {name} can be searched; leave it out "
                f"(`python -m search methods {name}` shows the ranges of its settings)"
            )


def _check_optimizer(config: RunConfig) -> None:
    """Raise ConfigError for methods that act on the steps of SGD, under another optimizer."""
    following = [name for name in config.methods if follows_sgd(METHODS[name])]
    if config.train.optimizer != "sgd" and following:
        others = [name for name in config.methods if name not in following] or ["di"]
        raise ConfigError(
            f"--optimizer is {config.train.optimizer}, and the steps of SGD are what {' and '.join(following)} acts "
            f"on; take --method {','.join(others)}"
        )


def _check_allocation(methods: Sequence[str], allocation: str) -> None:
    """Raise ConfigError for an allocation that no method can follow; it is enough that one method can follow it."""
    if allocation not in _ABILITIES:
        return
    ability, wanted, instead = _ABILITIES[allocation]
    if any(getattr(METHODS[name], ability) for name in methods):
        return
    unable = ", ".join(f"{name} only {instead}" for name in methods)
    raise ConfigError(
        f"--allocation is {allocation!r} and no method of the run can {wanted}: {unable}; "
        "leave --allocation at 'any', or add a method that can to --method"
    )
