"""Screening by formula: what is compared before training, what is trained, and what is left of the rest."""

from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from screened_search import BENCH, SPACE, Watched, needs, planned, searched, study_of, told

from pruning.base import METHODS
from pruning.traits import screenable
from runners.config import RunnerConfig
from runners.simulated.runner import SimulatedRunner
from runners.trial import EpochReport, TrialResult, TrialState
from search.reporting.progress import trial_text
from search.results.rank_correlation import SCREENED, SCREENED_ACCURACY, UNSCREENED, audit_screening
from search.schedulers.screening import Screened
from search.schedulers.stopping import Deadline, TimeLimited
from search.searchers.candidate_space import StudySettings
from search.tuner import Study
from spaces.budget import Budget

if TYPE_CHECKING:
    from runners.evaluation.evaluate import SearchContext

    pass


def test_of_several_candidates_the_best_before_training_is_trained_under_their_number() -> None:
    trials = searched(4)
    results = trials.study.results
    assert [each.trial.number for each in results] == list(range(16))
    chosen = [each for each in results if SCREENED in each.note]
    assert len(chosen) == len(trials.compared) / 4 > 3
    for each in chosen:
        rivals = [trial for trial in trials.compared if trial.number == each.trial.number]
        by_key = {trial.key(): needs()(trial).accuracy for trial in rivals}
        assert len(by_key) == 4
        assert by_key[each.trial.key()] == max(by_key.values())
        assert len({trial.goal.budgets for trial in rivals}) == 1  # compared at equal cost
        assert each.note[SCREENED] == 4
        assert each.curve[0].accuracy == each.note[SCREENED_ACCURACY]  # the same seed, so the same cut
    assert "best of 4 before training" in trial_text(chosen[0])


def test_arms_and_planned_starts_are_trained_without_rivals() -> None:
    trials = searched(4, study_of(methods=("l1",)))
    alone = [each for each in trials.study.results if SCREENED not in each.note]
    assert [each.trial.baseline for each in alone] == ["uniform"] * 5 + [""] * 2
    assert {each.trial.number for each in alone}.isdisjoint(each.number for each in trials.compared)
    assert not any(UNSCREENED in each.note for each in alone)


def test_one_candidate_for_each_is_the_search_without_screening() -> None:
    alone, plain = searched(1), study_of()
    SimulatedRunner(outcome=needs(), epochs=2).run(plain, BENCH)
    assert alone.study.results == plain.results
    assert not alone.compared


@pytest.mark.parametrize(("sampler", "lowest"), [("structured", 1.0), ("tpe", 0.2), ("random", 0.2)])
def test_screening_raises_the_hypervolume_at_equal_training(sampler: str, lowest: float) -> None:
    def reached(size: int, seed: int) -> float:
        study = study_of(12, sampler=sampler, lowest_fraction=lowest, seed=seed)
        trials = searched(size, study, noise=0.02)
        assert len(trials.study.results) == 12
        return trials.study.front.hypervolume(SPACE.dense_cost.flops)

    assert fmean(reached(4, seed) for seed in range(3)) > fmean(reached(1, seed) for seed in range(3))


def test_candidates_that_were_left_behind_are_not_proposed_again() -> None:
    trials = searched(4, study_of(30, lowest_fraction=1.0))
    keys = Counter(each.key() for each in trials.compared)
    assert max(keys.values()) == 1


@pytest.mark.parametrize("methods", [("csgd",), ("scratch",), ("kse",)])
def test_methods_that_have_nothing_to_compare_are_trained_at_once(methods: tuple[str, ...]) -> None:
    assert not searched(4, study_of(methods=methods)).compared


def test_rivals_have_the_method_of_their_trial() -> None:
    trials = searched(3, study_of(16, methods=("l1", "csgd", "l2")))
    by_number = {number: [t.method for t in trials.compared if t.number == number] for number in range(16)}
    pools = [methods for methods in by_number.values() if methods]
    assert all(len(set(methods)) == 1 for methods in pools)
    assert {methods[0] for methods in pools} <= {"l1", "l2"}


def test_methods_say_whether_their_cut_comes_before_all_training() -> None:
    assert [name for name in sorted(METHODS) if not screenable(METHODS[name], {})] == [
        "abfp", "aofp", "csgd", "kse", "scratch",
    ]  # fmt: skip
    assert not screenable(METHODS["di"], {"gradual_epochs": 2})
    assert not screenable(METHODS["di"], {"distill": 7.0})  # which is refused when it runs


def test_a_second_worker_begins_the_next_pool_while_the_first_waits_for_its_last_member() -> None:
    study = study_of()
    planned(study)
    trials = Screened(study, 2)
    asked = [trials.ask() for _ in range(3)]
    one, two, three = (each for each in asked if each is not None)
    assert one.number == two.number
    assert three.number == one.number + 1
    trials.tell(told(two))
    fourth = trials.ask()
    assert fourth is not None
    assert fourth.number == three.number  # nobody idles
    trials.tell(told(one))
    best = trials.ask()
    assert best is not None
    assert (best.number, best.segment) == (one.number, None)
    assert best.key() in (one.key(), two.key())


def test_none_yet_is_not_the_end_of_a_search_with_a_pool_in_flight() -> None:
    study = study_of(6)
    planned(study)
    trials = Screened(study, 2)
    members = []
    while (trial := trials.ask()) is not None:
        members.append(trial)
    assert trials.unfinished
    assert len(members) == 2 * (6 - len(study.results))
    for each in members:
        trials.tell(told(each))
    while (trial := trials.ask()) is not None:
        trials.tell(told(trial))
    assert len(study.results) == 6
    assert not trials.unfinished


def test_the_time_of_a_pool_is_that_of_the_trial_it_gave() -> None:
    study = study_of()
    planned(study)
    trials = Screened(study, 3)
    for _ in range(4):
        trial = trials.ask()
        assert trial is not None
        trials.tell(told(trial))
    result = study.results[-1]
    assert (result.seconds, result.train_seconds) == (4 * 2.0, 4 * 1.0)


def test_a_failed_candidate_loses_and_where_all_fail_the_first_is_trained() -> None:
    study = study_of()
    planned(study)
    trials = Screened(study, 2)
    failed = {"state": TrialState.FAILED, "accuracy": None, "error": "RuntimeError: no"}
    first, second = trials.ask(), trials.ask()
    assert first is not None
    assert second is not None
    trials.tell(told(first, **failed))
    trials.tell(told(second))
    best = trials.ask()
    assert best is not None
    assert best.key() == second.key()
    trials.tell(told(best))
    pool = [trials.ask(), trials.ask()]
    for each in pool:
        assert each is not None
        trials.tell(told(each, **failed))
    best = trials.ask()
    assert best is not None
    assert pool[0] is not None
    assert best.key() == pool[0].key()
    trials.tell(told(best, **failed))
    assert study.results[-1].error == "RuntimeError: no"
    assert SCREENED_ACCURACY not in study.results[-1].note


def test_the_end_of_the_time_drops_a_pool_and_loses_no_result() -> None:
    clock = [0.0]
    study = study_of()
    planned(study)
    before = study.results
    trials = TimeLimited(study, Deadline("1m", lambda: clock[0]), Screened(study, 3))
    members = [trials.ask(), trials.ask()]
    clock[0] = 61.0
    for each in members:
        assert each is not None
        assert not trials.report(EpochReport(each.number, 0, 0.5, 1.0))
        trials.tell(told(each))
    assert trials.ask() is None
    assert trials.ended
    study.close()
    assert study.results == before


def test_an_interrupted_pool_leaves_a_record_to_go_on_from(tmp_path: Any) -> None:
    class Stopped(Watched):
        def tell(self, result: TrialResult) -> None:
            super().tell(result)
            if len(self.compared) == 6:  # of four each: within the second pool
                raise KeyboardInterrupt

    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = study_of(storage=storage)
    runner = SimulatedRunner(outcome=needs(), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(Stopped(study, 4), BENCH)
    done = study.results
    study.close()
    again = study_of(storage=storage)
    assert again.results == done
    runner.run(Screened(again, 4), BENCH)
    assert [each.trial.number for each in again.results] == list(range(16))


def test_workers_of_ray_compare_before_they_train(
    tiny_search_context: "SearchContext", ray_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners.evaluation.evaluate import evaluate
    from runners.ray.runner import RayRunner

    monkeypatch.setattr("runners.ray.runner.fitting_workers", lambda config: 2)
    settings = StudySettings(("l1",), trials=8, sampler="random", lowest_fraction=0.4, allocation="search")
    trials = Watched(Study(settings, tiny_search_context.space, [Budget.parse("70%")]), 3)
    RayRunner(RunnerConfig(name="ray"), evaluate).run(trials, tiny_search_context)
    results = trials.study.results
    assert [each.trial.number for each in results] == list(range(8))
    assert [each.error for each in results if each.error] == []
    chosen = [each for each in results if SCREENED in each.note]
    assert sum(each.note[SCREENED] for each in chosen) == len(trials.compared) > len(chosen)
    assert all(each.curve[0].accuracy == each.note[SCREENED_ACCURACY] for each in chosen)


def test_screening_goes_with_rungs() -> None:
    trials = searched(3, study_of(24, rungs=(1, 2, 4)), epochs=4)
    results = trials.study.results
    assert len(results) == 24
    chosen = [each for each in results if SCREENED in each.note]
    assert len(trials.compared) == 3 * len(chosen) > 0
    assert {each.trained for each in chosen} > {1}  # some went on, and kept what was noted
    audit = audit_screening(results, (1, 2, 4))
    assert audit is not None
    assert 0 < audit.trials < len(results)
