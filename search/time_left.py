"""TimeLeft: how long a running search still takes, by its forecast and by what the finished trials took."""

import math
from dataclasses import dataclass

from runners.trial import DENSE, TEACHER, TrialResult
from search.results.pareto import measured

NARROW_POWER = 0.8  # of the share of FLOPs gives the share of time: cifar_resnet18 at 17% of the FLOPs took 24%


def time_share(flops_share: float) -> float:
    """Return the time that a narrow network takes to train as a share of the dense one's."""
    return math.pow(min(1.0, flops_share), NARROW_POWER)


@dataclass(frozen=True)
class FinalCost:
    """What the final training of a network costs besides its own steps.

    Attributes:
        heir_epochs: epochs of a network's training that take as long as what surrounds that of a network cut from a
            finished one.
        teacher_epochs: epochs of the dense network's training that take as long as its answers, as the teacher of
            distillation, to all images of one epoch.
    """

    heir_epochs: float = 0.0
    teacher_epochs: float = 0.0

    def dense_epochs(self, epochs: float, share: float, teacher_share: float, *, heir: bool) -> float:
        """Return how many epochs of the dense network take as long as a final training.

        Args:
            epochs: of the final training.
            share: of the dense network's FLOPs, that the network has; teacher_share: that its teacher has.
            heir: whether the network is first cut from a finished one.
        """
        own = (epochs + heir * self.heir_epochs) * time_share(share)
        return own + epochs * self.teacher_epochs * time_share(teacher_share)


NO_COST = FinalCost()


@dataclass(frozen=True)
class Work:
    """What the parts of a search are expected to take, in seconds of a worker.

    Attributes:
        trials: by number of the trial: a whole training, that of the final training left out. Empty where no forecast
            is made; all trials then count alike.
        epochs: of such a training.
        final: epoch of final training of the dense network.
        final_epochs: of the final training, as epochs of the dense network that would take as long.
        final_cost: of the final training of a network, by which what is done of it is weighed.
        closing: after the last training: test images, timing, report; seconds of the clock.
    """

    trials: tuple[float, ...] = ()
    epochs: int = 0
    final: float = 0.0
    final_epochs: float = 0.0
    final_cost: FinalCost = NO_COST
    closing: float = 0.0


class TimeLeft:
    """Adds up what was expected of the trainings that ended, and what they took.

    The ratio of both corrects the forecast of the rest: a machine that is busy is as much slower there.

    Args:
        epochs: of all trials together, where they pause at rungs; else 0.
        workers: trials at once; the final training has one after the other.
        dense_flops: of the dense network.
    """

    def __init__(self, work: Work, epochs: float, workers: int, dense_flops: float) -> None:
        self._work, self._epochs, self._workers, self._dense_flops = work, epochs, workers, dense_flops
        self._mean = sum(work.trials) / len(work.trials) if work.trials else 1.0
        self._latest: dict[int, TrialResult] = {}  # by trial: the result of its last training segment
        self._before_final: dict[int, float] = {}  # by trial: seconds without its final training

    def note(self, result: TrialResult) -> None:
        """Take the result of a trial, or of another training segment of one."""
        number = result.trial.number
        self._latest[number] = result
        if not result.final_epochs:
            self._before_final[number] = result.seconds

    def seconds(self, finished: int, total: int, final_left: float | None = None) -> float:
        """Return the seconds that are left after so many of all trials; 0 when nothing is.

        Args:
            final_left: epochs of the dense network that the rest of the final training is worth, by the networks so
                far; None takes those of the forecast. The more trials have finished, the more it counts.
        """
        epochs = max(0.0, self._work.final_epochs - self._final_done())
        if final_left is not None:
            known = min(1.0, finished / total) if total else 1.0
            epochs = known * final_left + (1 - known) * epochs
        trials, final = self._trials_left(finished, total), epochs * self._work.final
        if trials <= 0 and final <= 0:
            return 0.0
        pace = self._pace()
        final_pace = self._final_pace() or pace
        return trials * pace / self._workers + final * final_pace + self._work.closing

    def _trials_left(self, finished: int, total: int) -> float:
        """Return the seconds of a worker that are expected of the trials that have not finished."""
        if self._epochs:
            trained = sum(_searched_epochs(result) for result in self._latest.values())
            return max(0.0, self._epochs - trained) * self._mean / max(1, self._work.epochs)
        return sum(self._expected(number) for number in range(finished, total))

    def _expected(self, number: int) -> float:
        """Return the seconds that were expected of a trial; of one beyond the forecast, the mean."""
        return self._work.trials[number] if number < len(self._work.trials) else self._mean

    def _pace(self) -> float:
        """Return the seconds that the trials took for each that was expected."""
        expected = sum(self._share_done(self._latest[number]) * self._expected(number) for number in self._before_final)
        taken = sum(self._before_final.values())
        return taken / expected if taken and expected else 1.0

    def _share_done(self, result: TrialResult) -> float:
        """Return how much of its whole training a trial has had."""
        if not self._epochs:
            return 1.0
        return _searched_epochs(result) / max(1, self._work.epochs)

    def _final_done(self) -> float:
        """Return the epochs of the dense network that would take as long as the final training so far."""
        finals = [result for result in self._latest.values() if result.final_epochs and measured(result)]
        shares = [(result.cost.flops if result.cost else 0) / self._dense_flops for result in finals]
        teacher = max(shares, default=1.0)  # of the networks whose teacher is not the dense one
        return sum(
            self._work.final_cost.dense_epochs(
                result.final_epochs,
                share,
                teacher if result.note.get(TEACHER, DENSE) != DENSE else 1.0,
                heir=result.trial.final,
            )
            for result, share in zip(finals, shares, strict=True)
        )

    def _final_pace(self) -> float:
        """Return the seconds that the final training took for each that was expected; 0 before it began."""
        finals = {number: result for number, result in self._latest.items() if result.final_epochs}
        taken = sum(result.seconds - self._before_final.get(number, 0.0) for number, result in finals.items())
        expected = self._final_done() * self._work.final
        return taken / expected if expected else 0.0


def _searched_epochs(result: TrialResult) -> int:
    return (result.trained or 0) - result.final_epochs
