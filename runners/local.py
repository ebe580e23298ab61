"""Run trials one after the other in this process."""

import contextlib
from typing import TYPE_CHECKING

from typing_extensions import override

from runners.base import AskTell, Evaluator, Runner
from runners.config import RunnerConfig
from runners.trial import Trial, TrialResult

if TYPE_CHECKING:
    from runners.evaluation.context import SearchContext


class LocalRunner(Runner):
    """Asks, evaluates, reports and tells, until there are no more trials.

    An interrupt leaves the running trial untold.

    Args:
        config: not used; every runner is built from the same arguments. The torch threads of a trial are
            `SearchContext.threads`.
        evaluator: runs a trial, as `runners.evaluation.evaluate.evaluate` does.
    """

    def __init__(self, _config: RunnerConfig, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    @override
    def run(self, ask_tell: AskTell, search_context: "SearchContext") -> None:
        while (trial := ask_tell.ask()) is not None:
            ask_tell.tell(self._finish(trial, ask_tell, search_context))

    def _finish(self, trial: Trial, ask_tell: AskTell, search_context: "SearchContext") -> TrialResult:
        with contextlib.closing(self._evaluator(trial, search_context)) as evaluation:
            proceed: bool | None = None  # None starts a generator
            while True:
                try:
                    report = evaluation.send(proceed)
                except StopIteration as ended:
                    result: TrialResult = ended.value
                    return result
                proceed = ask_tell.report(report)
