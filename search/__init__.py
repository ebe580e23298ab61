"""Search the widths of a CNN under hard budgets; `run(RunConfig(budget=("0.5gflops",)))` does all of it.

The names below are imported when they are first used, so that `import search` and `--help` stay light.
"""

from typing import TYPE_CHECKING

from spaces.lazy import attach

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from search.callbacks import SearchCallback
    from search.library.prune import Pruned, prune
    from search.library.width_tuner import WidthTuner
    from search.orchestrator import run
    from search.results.loading import load, read_result
    from search.results.pareto import ParetoFront
    from search.results.result import SearchResult

__all__ = [
    "ParetoFront",
    "Pruned",
    "RunConfig",
    "SearchCallback",
    "SearchResult",
    "WidthTuner",
    "load",
    "prune",
    "read_result",
    "run",
]

_HOMES = {
    "ParetoFront": "search.results.pareto",
    "Pruned": "search.library.prune",
    "RunConfig": "configs.schema",
    "SearchCallback": "search.callbacks",
    "SearchResult": "search.results.result",
    "WidthTuner": "search.library.width_tuner",
    "load": "search.results.loading",
    "prune": "search.library.prune",
    "read_result": "search.results.loading",
    "run": "search.orchestrator",
}

__getattr__, __dir__ = attach(__name__, _HOMES)
