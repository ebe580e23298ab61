"""Searchers propose the candidate that is tried next; start with `optuna_searcher.OptunaSearcher`."""

from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign
from search.searchers.optuna_searcher import OptunaSearcher, TrialCounts
from search.searchers.samplers import SAMPLERS

__all__ = ["CandidateSpace", "InitialDesign", "OptunaSearcher", "SAMPLERS", "TrialCounts"]
