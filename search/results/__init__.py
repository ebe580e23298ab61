"""The result of a search as values: front, comparison with uniform widths; start with `result.SearchResult`."""

from search.results.pareto import ParetoFront
from search.results.result import DenseResult, SearchResult
from search.results.serialization import ResultError

__all__ = ["DenseResult", "ParetoFront", "ResultError", "SearchResult"]
