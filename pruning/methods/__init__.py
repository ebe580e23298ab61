"""Pruning methods: each makes narrow networks from a wide one. `METHODS` in `pruning.base` lists them by name.

The names here are what a new method is built on.
"""

from pruning.methods.common_steps import finetune, uniform_widths, wanted_widths
from pruning.methods.score_and_slice import ScoreAndSlice

__all__ = ["ScoreAndSlice", "finetune", "uniform_widths", "wanted_widths"]
