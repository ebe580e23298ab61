"""EvaluationThread: lets a worker send the state of a trial while an epoch is going on."""

import threading
from queue import SimpleQueue

from runners.base import Evaluation
from runners.trial import EpochReport, SavedTraining, TrialResult

Found = EpochReport | SavedTraining | TrialResult


class EvaluationThread:
    """A thread in which the evaluations of a worker run, because a step of Tune sends something only when it returns.

    It is one thread for all trials, since torch and OpenMP keep threads and memory for every one that computes. It does
    not keep a process from ending.

    Attributes:
        busy: whether an evaluation is going on.
    """

    def __init__(self) -> None:
        self.busy = False
        self._asked: SimpleQueue[tuple[Evaluation, bool | None]] = SimpleQueue()
        self._found: SimpleQueue[Found | BaseException] = SimpleQueue()
        threading.Thread(target=self._run, name="evaluation", daemon=True).start()

    def advance(self, evaluation: Evaluation, proceed: bool | None) -> Found:
        """Return what comes first: a state that is handed out within an epoch, the next report, or the result.

        Args:
            proceed: the answer to the last report; not used while the evaluation is going on.

        Raises:
            Exception: whatever leaves the evaluation.
        """
        if not self.busy:
            self._asked.put((evaluation, proceed))
        found = self._found.get()
        self.busy = isinstance(found, SavedTraining)
        if isinstance(found, BaseException):
            raise found
        return found

    def hand_out(self, saved: SavedTraining) -> None:
        """Give a state within an epoch to `advance`; called by the evaluation."""
        self._found.put(saved)

    def _run(self) -> None:
        while True:
            self._found.put(_advanced(*self._asked.get()))


def _advanced(evaluation: Evaluation, proceed: bool | None) -> Found | BaseException:
    """Return the next report, the result, or the error that left the evaluation."""
    try:
        return evaluation.send(proceed)
    except StopIteration as ended:
        result: TrialResult = ended.value
        return result
    except BaseException as error:
        return error
