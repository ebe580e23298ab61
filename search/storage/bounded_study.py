"""BoundedStudy: the trials that a sampler learns from, an Optuna study in memory that stays small.

Every proposal of a sampler reads the whole study, so that a search of thousands of trials would spend more and more
time on each. Once the study has `MOST` trials, a new one takes its place with the latest of them and the front among
the earlier ones; what leaves it is still in the history and in the storage.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from search.results.pareto import non_dominated
from search.storage.study_storage import DIRECTIONS, RESULT

MOST = 500  # trials in the study that do not run, before it is renewed
LATEST = 250  # of them are kept
MEMBERS = 100  # of the front of the earlier ones are kept, evenly


class BoundedStudy:
    """An Optuna study that is replaced by a smaller one from time to time.

    To the sampler, which goes on with the new one, it is the same study: all studies in memory have the same id.

    Attributes:
        study: the present one.
    """

    def __init__(self) -> None:
        self.study = optuna.create_study(directions=DIRECTIONS)
        self._copies: dict[optuna.Trial, int] = {}  # running trial of an earlier study -> number in the present one

    def restore(self, trials: Sequence[FrozenTrial]) -> None:
        """Add the trials of an earlier process, as far as they are kept."""
        for trial in trials if len(trials) < MOST else informative(trials):
            self.study.add_trial(trial)

    def tell(self, asked: optuna.Trial, values: Sequence[float] | None) -> FrozenTrial:
        """End a trial that the present study or an earlier one has made; None stands for a failed trial."""
        state = OptunaState.FAIL if values is None else OptunaState.COMPLETE
        if asked.study is self.study:
            return self.study.tell(asked, values, state=state)
        # A running trial that was copied cannot take the attributes of its result any more, so it is added anew.
        self.study.tell(self._copies.pop(asked), state=OptunaState.FAIL)
        ended = optuna.trial.create_trial(
            state=state,
            values=values,
            params=asked.params,
            distributions=asked.distributions,
            user_attrs=asked.user_attrs,
        )
        self.study.add_trial(ended)
        return ended

    def shrink(self, running: Iterable[optuna.Trial]) -> None:
        """Renew the study if it is full; trials that run do not count, because they stay in it.

        Args:
            running: the trials that it, or an earlier study, has made and that have not ended.
        """
        trials, running = self.study.get_trials(deepcopy=False), list(running)
        if len(trials) < MOST + len(running):
            return
        sampler = self.study.sampler
        self.study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
        for trial in informative(trials):
            self.study.add_trial(trial)
        self._copies = {asked: self._add_running(asked) for asked in running}

    def _add_running(self, asked: optuna.Trial) -> int:
        """Add a running trial and return its number."""
        params: dict[str, Any] = asked.params
        copy = optuna.trial.create_trial(
            state=OptunaState.RUNNING, params=params, distributions=asked.distributions, user_attrs=asked.user_attrs
        )
        self.study.add_trial(copy)
        return len(self.study.get_trials(deepcopy=False)) - 1


def informative(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the latest trials that have ended with a result, and before them the front of the earlier ones."""
    ended = [trial for trial in trials if trial.state is OptunaState.COMPLETE and RESULT in trial.user_attrs]
    earlier, latest = ended[:-LATEST], ended[-LATEST:]
    front = non_dominated(earlier, lambda trial: (trial.values[1], trial.values[0]))
    step = max(1, -(-len(front) // MEMBERS))
    return [*sorted(front[::step], key=lambda trial: trial.number), *latest]
