"""From a trial to its result: run the pruning method, measure its networks, and check what they cost.

Start with the function `evaluate` in `runners.evaluation.evaluate`.
"""

from runners.evaluation.context import SearchContext, TrialContext
from runners.evaluation.evaluate import EvaluationError

__all__ = ["EvaluationError", "SearchContext", "TrialContext"]
