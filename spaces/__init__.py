"""The channels of a network that may vary, and the exact cost of every choice; `trace` is what a reader looks at first.

The names below are imported when they are first used, so that `import spaces` stays light.
"""

from typing import TYPE_CHECKING

from spaces.lazy import attach

if TYPE_CHECKING:
    from spaces.budget import Budget, parse_budgets
    from spaces.cost import Cost, CostModel
    from spaces.counting import count_cost
    from spaces.errors import SlimfrontError
    from spaces.groups import ChannelGroup
    from spaces.space import ModelSpec, SearchSpace, SpaceConfig, uniform_ratios
    from spaces.tracing.tracer import trace
    from spaces.widths import Widths
    from spaces.zoo.models import build, model_names, pretrained

__all__ = [
    "Budget",
    "ChannelGroup",
    "Cost",
    "CostModel",
    "ModelSpec",
    "SearchSpace",
    "SlimfrontError",
    "SpaceConfig",
    "Widths",
    "build",
    "count_cost",
    "model_names",
    "parse_budgets",
    "pretrained",
    "trace",
    "uniform_ratios",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Budget": "spaces.budget",
        "ChannelGroup": "spaces.groups",
        "Cost": "spaces.cost",
        "CostModel": "spaces.cost",
        "ModelSpec": "spaces.space",
        "SearchSpace": "spaces.space",
        "SlimfrontError": "spaces.errors",
        "SpaceConfig": "spaces.space",
        "Widths": "spaces.widths",
        "build": "spaces.zoo.models",
        "count_cost": "spaces.counting",
        "model_names": "spaces.zoo.models",
        "parse_budgets": "spaces.budget",
        "pretrained": "spaces.zoo.models",
        "trace": "spaces.tracing.tracer",
        "uniform_ratios": "spaces.space",
    },
)
