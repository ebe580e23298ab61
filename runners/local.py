"""Run trials one after the other in this process."""

import contextlib
from typing import TYPE_CHECKING

from runners.base import AskTell, Evaluator, default_evaluator
from runners.config import RunnerConfig
from runners.trial import Trial, TrialResult

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

    pass


class LocalRunner:
    """Asks, evaluates, reports and tells, until there are no more trials.

    Args:
        config: kept so that every runner is built alike; one process needs none of its options, the torch threads
            of a trial are `SearchContext.threads`.
        evaluator: how a trial is run; `runners.evaluation.evaluate.evaluate` unless something else is said.
    """

    def __init__(self, config: RunnerConfig | None = None, evaluator: Evaluator | None = None) -> None:
        self.config = config or RunnerConfig()
        self._evaluator = evaluator

    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        """Return when every trial is told; a KeyboardInterrupt leaves the running trial untold."""
        evaluator = self._evaluator or default_evaluator()
        while (trial := ask_tell.ask()) is not None:
            ask_tell.tell(_finish(trial, evaluator, ask_tell, search_context))


def _finish(trial: Trial, evaluator: Evaluator, ask_tell: AskTell, search_context: "SearchContext") -> TrialResult:
    with contextlib.closing(evaluator(trial, search_context)) as evaluation:
        go_on: bool | None = None
        while True:
            try:
                report = evaluation.send(go_on)
            except StopIteration as ended:
                result: TrialResult = ended.value
                return result
            go_on = ask_tell.report(report)
