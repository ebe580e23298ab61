"""Search the widths of a CNN under hard budgets; `run(RunConfig(budget=("0.5gflops",)))` is the whole of it.

The names below are imported when they are first used, so that `import search` and `--help` stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from search.finalization.export import load
    from search.orchestrator import run
    from search.results.pareto import ParetoFront
    from search.results.result import SearchResult

__all__ = ["ParetoFront", "RunConfig", "SearchResult", "load", "run"]

_HOMES = {
    "ParetoFront": "search.results.pareto",
    "RunConfig": "configs.schema",
    "SearchResult": "search.results.result",
    "load": "search.finalization.export",
    "run": "search.orchestrator",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
