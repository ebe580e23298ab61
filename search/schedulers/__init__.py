"""Schedulers decide which trials are trained, and for how long; start with `asha.MultiObjectiveASHA`."""

from search.schedulers.asha import MultiObjectiveASHA, Promotion
from search.schedulers.screening import Screening
from search.schedulers.stopping import StoppingCriterion, TimeLimit, TimeLimitError

__all__ = ["MultiObjectiveASHA", "Promotion", "Screening", "StoppingCriterion", "TimeLimit", "TimeLimitError"]
