"""SearchCallback: an observer that is told of every step of a search, e.g. the live display or the MLflow tracker."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from runners.trial import TrialResult
from search.environment import Plan
from search.problem import Problem
from search.results.pareto import ParetoFront
from search.results.result import SearchResult


@dataclass(frozen=True)
class Progress:
    """The state of a search after a trial.

    Attributes:
        finished: number of finished trials.
        total: number of trials that the search will have had at its end.
        front: the non-dominated networks inside the budgets.
    """

    finished: int
    total: int
    front: ParetoFront


class SearchCallback:
    """Base class of observers; every hook does nothing."""

    def on_phase(self, text: str) -> None:
        """Take notice of what the search does now, e.g. "training the dense network, 3 epochs"."""

    def on_search_start(self, plan: Plan) -> None:
        """Take notice of what the search is about to do; nothing has been trained yet."""

    def on_dense_evaluated(self, accuracy: float, problem: Problem, finished: Sequence[TrialResult]) -> None:
        """Take notice of the dense network.

        Args:
            accuracy: on validation, in [0, 1].
            problem: space, dense cost and budgets.
            finished: trials that an earlier process of a resumed search has finished.
        """

    def on_promotion(self, number: int, epochs: int) -> None:
        """Take notice that a trial is trained on, until it has had so many epochs."""

    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        """Take notice of a finished trial, or of another training segment of one."""

    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        """Take notice of the outcome.

        Args:
            folder: the run folder.
            tracking: command or address that opens the tracked run; empty where nothing was tracked.
        """

    def on_search_abort(self) -> None:
        """Take notice that the search ends without a result; the error follows."""


class CallbackList(SearchCallback):
    """Hands every event on to several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[SearchCallback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    @override
    def on_phase(self, text: str) -> None:
        for callback in self._callbacks:
            callback.on_phase(text)

    @override
    def on_search_start(self, plan: Plan) -> None:
        for callback in self._callbacks:
            callback.on_search_start(plan)

    @override
    def on_dense_evaluated(self, accuracy: float, problem: Problem, finished: Sequence[TrialResult]) -> None:
        for callback in self._callbacks:
            callback.on_dense_evaluated(accuracy, problem, finished)

    @override
    def on_promotion(self, number: int, epochs: int) -> None:
        for callback in self._callbacks:
            callback.on_promotion(number, epochs)

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        for callback in self._callbacks:
            callback.on_trial_end(result, progress)

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        for callback in self._callbacks:
            callback.on_search_end(result, folder, tracking)

    @override
    def on_search_abort(self) -> None:
        for callback in self._callbacks:
            callback.on_search_abort()
