"""SearchCallback: an observer whose hooks run at every step of a search, e.g. the live display or MLflow tracking."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runners.trial import TrialResult
from search.environment import Plan
from search.problem import Problem
from search.results.pareto import ParetoFront
from search.results.result import SearchResult


@dataclass(frozen=True)
class Progress:
    """The state of a search after a trial.

    Attributes:
        finished: number of trials that have a result.
        total: number of trials that the search will have at its end, those of an earlier process included.
        final_left: epochs of the dense network that would take as long as the rest of the final training; while trials
            of the search are left, of the networks that are on the front now. None where that is not known.
    """

    finished: int
    total: int
    front: ParetoFront
    final_left: float | None = None


class SearchCallback:
    """Base class of observers; every hook does nothing."""

    def on_phase(self, text: str) -> None:
        """The search begins something that `text` names, e.g. "training the dense network, 3 epochs"."""

    def on_steps(self, done: float, total: float) -> None:
        """So many of the equally long steps of the present phase are done; a phase that counts none never says."""

    def on_search_start(self, plan: Plan) -> None:
        """The search is planned; nothing has been trained yet."""

    def on_dense_evaluated(self, accuracy: float, problem: Problem, finished: Sequence[TrialResult]) -> None:
        """The dense network is trained.

        Args:
            accuracy: of the dense network on validation, in [0, 1].
            finished: results of an earlier process of a resumed search.
        """

    def on_promotion(self, number: int, epochs: int) -> None:
        """A paused trial goes on with its training, until it has had `epochs` epochs in all."""

    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        """A trial has ended, or another training segment of one."""

    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        """The search has ended with a result, which is in the run folder `folder`.

        Args:
            tracking: command or address that opens the tracked run; empty where nothing was tracked.
        """

    def on_search_abort(self) -> None:
        """The search ends without a result; its error is raised after this call."""


class CallbackList(SearchCallback):
    """Hands every event on to several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[SearchCallback] = ()) -> None:
        for hook in (name for name in vars(SearchCallback) if name.startswith("on_")):
            setattr(self, hook, partial(_call_all, [getattr(callback, hook) for callback in callbacks]))


def _call_all(hooks: Iterable[Callable[..., None]], *arguments: object) -> None:
    for hook in hooks:
        hook(*arguments)
