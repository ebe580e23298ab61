"""The parameters of a trial by name, and the proportion that a width parameter stands for.

budget_fraction: share of the scaled budget (that of the targets when there are some, else flops when there is one,
    or one on latency, else params), log scale, so that fronts spread evenly in log cost; with targets it is always
    one of theirs.
method: when there are several; chosen last, by `search.searchers.method_choice`.
train.SETTING: the fine-tuning settings that are searched; baselines have none.
METHOD.SETTING: the searchable settings of that method that are not fixed.
allocation: "search" (the widths below) or "method" (the method finds widths inside the budgets); only for methods
    that can do both.
relative_width.GROUP: in [0, 1], the share of its dense width that a group keeps, relative to the other groups. 0.5 is
    the middle, and all groups at 0.5 are uniform widths.
"""

import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import BaseTrial, FrozenTrial, create_trial

from pruning.settings import Setting

BUDGET_FRACTION, METHOD, ALLOCATION = "budget_fraction", "method", "allocation"
WIDTH = "relative_width."  # begins the names of the width parameters
_EARLIER_WIDTH = "width."  # the same in studies of 0.1 before its release

# A width parameter x stands for the proportion P ** (t * |t|), t = 2x - 1, from 1/P to P for P = MAX_PROPORTION, so no
# group gets under a quarter of the share of another. It is flat around the middle: random draws stay near uniform
# widths, which are strong: over a closed-form search of 20 groups, hypervolume gained on the uniform baselines grew by
# a quarter when the spread of random draws fell from 2.5 to 1.5, and TPE's did not fall.
MAX_PROPORTION = 2.0
MIDDLE = 0.5
MAX_LOG2_PROPORTION = math.log2(MAX_PROPORTION)  # by which a proportion may differ from uniform


def suggest_setting(trial: BaseTrial, name: str, setting: Setting) -> Any:
    """Have a trial choose the value of a searchable setting as the parameter `name`."""
    if setting.choices:
        return trial.suggest_categorical(name, setting.choices)
    low, high = setting.low or 0, setting.high or 0
    if isinstance(setting.default, int):
        return trial.suggest_int(name, int(low), int(high), log=setting.log)
    return trial.suggest_float(name, float(low), float(high), log=setting.log)


def with_present_names(trial: FrozenTrial) -> FrozenTrial:
    """Return a stored trial with the width parameters that an earlier version stored as "width.GROUP" renamed."""
    if not any(name.startswith(_EARLIER_WIDTH) for name in trial.params):
        return trial

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            WIDTH + name.removeprefix(_EARLIER_WIDTH) if name.startswith(_EARLIER_WIDTH) else name: value
            for name, value in values.items()
        }

    return create_trial(
        state=trial.state,
        values=trial.values,
        params=renamed(trial.params),
        distributions=renamed(trial.distributions),
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
    )


def proportion(parameter: float) -> float:
    """Return the proportion, from 1 / P to P, of a width parameter in [0, 1]; P is MAX_PROPORTION."""
    t = 2 * parameter - 1
    return float(MAX_PROPORTION ** (t * abs(t)))


def width_parameter(log2: float) -> float:
    """Return the width parameter of a proportion given as its log2; a proportion out of range takes its end."""
    t = max(-1.0, min(1.0, log2 / MAX_LOG2_PROPORTION))
    return MIDDLE + math.copysign(math.sqrt(abs(t)), t) / 2
