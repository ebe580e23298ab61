"""The rules a RunConfig keeps, checked before any heavy library is loaded.

What only the data, the network or the device can answer is checked by the packages that own them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from configs.duration import parse_duration
from configs.resuming import check_resumed
from configs.rungs import rungs_of
from configs.schema import ALLOCATIONS, OBJECTIVES, SAMPLERS, ConfigError, RunConfig, setting_key
from configs.screening import parse_screen
from configs.search_training import parse_search_training
from pruning.base import METHODS, parse_methods
from runners.base import DTYPES, ENGINES, PADDING_MODES, SCALES, SCHEDULES, schedule_problem
from spaces.budget import Budget, parse_budgets
from spaces.registry import unknown_name
from spaces.targets import parse_targets, with_targets

PRECISIONS = ("auto", "float32")

_Rule = tuple[str, Callable[[Any], bool], str]  # field, what holds, the rule in words
_RULES: dict[str, tuple[_Rule, ...]] = {
    "": (
        ("trials", lambda v: v >= 1, "at least 1"),
        ("confirm", lambda v: v >= 1, "at least 1, which trains nothing again; 3 gives means and deviations"),
        ("lowest_fraction", lambda v: 0 < v <= 1, "a share of the budget in (0, 1]"),
        ("seed", lambda v: 0 <= v < 2**32, "a whole number from 0 to 4294967295"),
        ("objective", lambda v: v in OBJECTIVES, "one of " + " or ".join(OBJECTIVES)),
        ("model", bool, "a model name or package.module:factory"),
    ),
    "space": (
        ("divisor", lambda v: v >= 0, "a whole number from 1, or 0 for the default"),
        ("floor", lambda v: 0 < v <= 1, "a share of the dense width in (0, 1]"),
    ),
    "data": (
        ("name", bool, "a dataset name, imagefolder:PATH or package.module:factory"),
        ("image_size", lambda v: v >= 0, "a side in pixels, or 0 for what is natural for the set"),
        ("padding_mode", lambda v: v in PADDING_MODES, "one of " + ", ".join(PADDING_MODES)),
        ("scale", lambda v: v in SCALES, "one of " + ", ".join(SCALES)),
        ("min_crop_area", lambda v: 0 < v <= 1, "a share of the area in (0, 1]"),
        ("val_share", lambda v: 0 < v < 1, "a share strictly between 0 and 1"),
    ),
    "train": (
        ("epochs", lambda v: v >= 0, "0 or more"),
        ("dense_epochs", lambda v: v >= 0, "0 or more"),
        ("batch_size", lambda v: v >= 1, "at least 1"),
        ("learning_rate", lambda v: 0 < v < float("inf"), "a positive number"),
        ("dense_learning_rate", lambda v: 0 < v < float("inf"), "a positive number"),
        ("momentum", lambda v: 0 <= v < 1, "in [0, 1)"),
        ("weight_decay", lambda v: 0 <= v < float("inf"), "0 or more"),
        ("bias_lr_mult", lambda v: 0 < v < float("inf"), "a positive number"),
        ("label_smoothing", lambda v: 0 <= v < 1, "in [0, 1)"),
        ("distill_weight", lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("distill_temperature", lambda v: 0 < v < float("inf"), "a positive number"),
        ("mixup", lambda v: 0 <= v < float("inf"), "0 or more"),
        ("clip_grad_norm", lambda v: 0 <= v < float("inf"), "0 or more"),
        ("schedule", lambda v: v in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
        ("precision", lambda v: v in PRECISIONS, "one of " + ", ".join(PRECISIONS)),
    ),
    "runner": (
        ("cpus_per_trial", lambda v: v >= 1, "at least 1"),
        ("gpus_per_trial", lambda v: 0 <= v < float("inf"), "0 or more"),
    ),
    "latency": (
        ("batch", lambda v: v and min(v) >= 1, "numbers of images from 1, as in 1,8"),
        ("dtype", lambda v: v in DTYPES, "one of " + ", ".join(DTYPES)),
        ("engine", lambda v: v in ENGINES, "one of " + ", ".join(ENGINES)),
    ),
}


TRAINING_RUNNERS = ("auto", "local", "ray")  # "simulated" trains nothing, so it yields no networks


def validate(config: RunConfig) -> tuple[Budget, ...]:
    """Check every rule that needs neither data nor network; return the budgets, relative ones unresolved.

    The largest target is one of them, unless there is a budget on its quantity.

    Raises:
        SlimfrontError: the first rule that does not hold.
    """
    budgets = with_targets(_budgets(config), parse_targets(config.targets))
    for section, rules in _RULES.items():
        values = getattr(config, section) if section else config
        for name, holds, rule in rules:
            value = getattr(values, name)
            if not holds(value):
                raise ConfigError(f"--{setting_key(section, name).replace('_', '-')} is {value!r} and must be {rule}")
    rungs_of(config)
    parse_screen(config.screen, config.train.epochs)
    if config.time_limit:
        parse_duration("--time-limit", config.time_limit)
    _check_schedules(config)
    parse_search_training(config.search_training, config.train)
    if config.sampler not in SAMPLERS:
        raise unknown_name("sampler", config.sampler, list(SAMPLERS))
    if config.allocation not in ALLOCATIONS:
        raise unknown_name("allocation", config.allocation, list(ALLOCATIONS))
    if config.runner.name not in TRAINING_RUNNERS:
        raise unknown_name("runner", config.runner.name, list(TRAINING_RUNNERS))
    methods = parse_methods(config.method)
    if not methods:
        raise ConfigError(f"--method {config.method!r} names no method; known: {', '.join(sorted(METHODS))}")
    for text in config.set:
        split_setting(text, methods)
    check_resumed(config)
    return budgets


def _check_schedules(config: RunConfig) -> None:
    trainings = {"": config.train}
    if not config.weights:
        trainings["dense net: "] = config.train.for_dense()
    for what, train in trainings.items():
        problem = schedule_problem(train)
        if problem:
            raise ConfigError(what + problem)


def split_setting(text: str, methods: Sequence[str]) -> tuple[str, str, str]:
    """Split "METHOD.SETTING=VALUE" into its three parts.

    Raises:
        ConfigError: another form, or a method that this run does not use.
    """
    left, equals, value = text.partition("=")
    method, dot, name = left.strip().partition(".")
    if not (equals and dot and method and name and value.strip()):
        raise ConfigError(f"--set {text!r} is not METHOD.SETTING=VALUE, as in {methods[0]}.SETTING=VALUE")
    if method not in (*methods, "l2"):
        parse_methods(method)
        raise ConfigError(f"--set {text!r} is for method {method!r}, which this run does not use; add it to --method")
    return method, name, value.strip()


def _budgets(config: RunConfig) -> tuple[Budget, ...]:
    texts = config.budget
    if isinstance(texts, str):
        raise ConfigError(f"budget {texts!r} is one text and must be a sequence of them, as in budget=({texts!r},)")
    if not texts and config.targets.strip():
        return ()
    return parse_budgets(texts)
