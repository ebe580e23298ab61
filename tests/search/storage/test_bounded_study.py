"""A study stays small, keeps what tells most, and takes the results of trials that an earlier one has made."""

import optuna
import pytest
from chain_space import chain
from made_up_search import problem_of, result_of, search_of
from optuna.trial import TrialState as OptunaState

from runners.trial import Trial
from search.storage import bounded_study
from search.storage.bounded_study import BoundedStudy, informative
from search.storage.study_storage import RESULT


def ended(number: int, accuracy: float, cost: float) -> optuna.trial.FrozenTrial:
    made = optuna.trial.create_trial(values=[accuracy, cost], user_attrs={RESULT: {"number": number}})
    made.number = number
    return made


def test_the_latest_trials_and_the_front_of_the_earlier_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_study, "LATEST", 2)
    trials = [ended(0, 0.5, 10), ended(1, 0.9, 30), ended(2, 0.4, 20), ended(3, 0.1, 40), ended(4, 0.2, 50)]
    repeated = optuna.trial.create_trial(values=[0.5, 10])
    failed = optuna.trial.create_trial(state=OptunaState.FAIL, user_attrs={RESULT: {}})
    assert [trial.number for trial in informative([*trials, repeated, failed])] == [0, 1, 3, 4]


def test_a_trial_that_ran_while_the_study_was_renewed_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_study, "MOST", 3)
    bounded = BoundedStudy()
    bounded.restore([ended(number, 0.1 * number, number) for number in range(3)])
    before, running = bounded.study, bounded.study.ask()
    width = running.suggest_float("width", 0.0, 1.0)
    bounded.shrink([running])
    assert bounded.study is not before
    assert [trial.state for trial in bounded.study.trials].count(OptunaState.RUNNING) == 1
    running.set_user_attr(RESULT, {"number": 7})
    told = bounded.tell(running, [0.7, 7.0])
    assert (told.values, told.params, told.user_attrs) == ([0.7, 7.0], {"width": width}, {RESULT: {"number": 7}})
    complete = [trial.values for trial in bounded.study.trials if trial.state is OptunaState.COMPLETE]
    assert complete.count([0.7, 7.0]) == 1
    assert not any(trial.state is OptunaState.RUNNING for trial in bounded.study.trials)


@pytest.mark.parametrize("sampler", ["structured", "tpe", "nsga2", "gp"])
def test_every_sampler_goes_on_in_a_renewed_study(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_study, "MOST", 14)
    monkeypatch.setattr(bounded_study, "LATEST", 6)
    monkeypatch.setattr(bounded_study, "MEMBERS", 4)
    space = chain(width=64)
    search = search_of(problem_of(space, ["50%"], trials=32, sampler=sampler))
    first, running = search.searcher._study, list[Trial]()
    while (trial := search.ask()) is not None or running:
        running += [] if trial is None else [trial]
        if trial is None or len(running) == 3:
            search.tell(result_of(running.pop(0), space))
    assert search.searcher._study is not first
    assert len(search.searcher._study.trials) < 32
    assert len({result.trial.candidate_key() for result in search.results}) == 32
