"""Screening by formula: which candidates are compared, which are trained, and whether that is worth believing."""

import logging
from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from made_up_search import search_of
from screened_search import (
    BENCH,
    SPACE,
    Watched,
    ask,
    cut,
    finish_initial_design,
    needs,
    screened_problem,
    screened_search,
    searched,
    told,
)

from pruning.base import METHODS, Goal
from pruning.traits import screenable
from runners.config import RunnerConfig, TrainConfig
from runners.local import LocalRunner
from runners.simulated.runner import SimulatedRunner
from runners.trial import EpochReport, ScreenedCandidate, Trial, TrialResult, TrialState
from search.reporting.progress import trial_text
from search.reporting.rows import rank_correlation_table
from search.reporting.statements import screening_statements
from search.results.rank_correlation import (
    PROXY,
    SCREENED,
    UNSCREENED,
    audit_screening,
    misleads,
)
from search.results.result import DenseResult, SearchResult
from search.schedulers.screening import Screening
from search.schedulers.stopping import TimeLimit
from search.searchers.optuna_searcher import OptunaSearcher
from search.storage.pending import PendingTrials


def test_of_several_candidates_the_best_before_training_is_trained_under_their_number() -> None:
    trials = searched(4)
    results = trials.results
    assert [result.trial.number for result in results] == list(range(16))
    winners = [result for result in results if SCREENED in result.note]
    assert len(winners) == len(trials.compared) / 4 > 3
    for winner in winners:
        pool = [trial for trial in trials.compared if trial.number == winner.trial.number]
        by_key = {trial.key(): needs()(trial).accuracy for trial in pool}
        assert len(by_key) == 4
        assert by_key[winner.trial.key()] == max(by_key.values())
        assert len({trial.goal.budgets for trial in pool}) == 1  # compared at equal cost
        assert winner.note[SCREENED] == 4
        assert winner.curve[0].proxy == winner.note[PROXY]  # the same seed, so the same cut
    assert "best of 4 before training" in trial_text(winners[0])


def test_baselines_and_initial_points_are_trained_without_screening() -> None:
    trials = searched(4, screened_problem(methods=("l1",)))
    alone = [result for result in trials.results if SCREENED not in result.note]
    assert [bool(result.trial.baseline) for result in alone] == [True] * 6 + [False] * 2
    assert {result.trial.number for result in alone}.isdisjoint(trial.number for trial in trials.compared)
    assert not any(UNSCREENED in result.note for result in alone)


def test_a_pool_of_one_is_the_search_without_screening(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = searched(1)
    monkeypatch.setattr(OptunaSearcher, "is_screenable", lambda self, trial: False)
    plain = search_of(screened_problem())
    SimulatedRunner(outcome=needs(), epochs=2).run(plain, BENCH)
    assert alone.results == plain.results
    assert not alone.compared


@pytest.mark.parametrize(("sampler", "lowest"), [("structured", 1.0), ("tpe", 0.2), ("random", 0.2)])
def test_screening_raises_the_hypervolume_at_equal_training(sampler: str, lowest: float) -> None:
    def reached(size: int, seed: int) -> float:
        problem = screened_problem(12, sampler=sampler, lowest_fraction=lowest, seed=seed)
        trials = searched(size, problem, noise=0.02)
        assert len(trials.results) == 12
        return trials.search.front.hypervolume(SPACE.dense_cost.flops)

    assert fmean(reached(4, seed) for seed in range(3)) > fmean(reached(1, seed) for seed in range(3))


def test_candidates_that_lost_are_not_proposed_again() -> None:
    trials = searched(4, screened_problem(30, lowest_fraction=1.0))
    keys = Counter(trial.key() for trial in trials.compared)
    assert max(keys.values()) == 1


@pytest.mark.parametrize(("method", "allocation"), [("csgd", "search"), ("scratch", "search"), ("kse", "any")])
def test_methods_that_have_nothing_to_compare_are_trained_at_once(method: str, allocation: str) -> None:
    assert not searched(4, screened_problem(methods=(method,), allocation=allocation)).compared


def test_candidates_of_a_pool_have_the_same_method() -> None:
    trials = searched(3, screened_problem(16, methods=("l1", "csgd", "l2")))
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


def test_one_call_of_a_worker_compares_a_whole_pool() -> None:
    search = screened_search(12)
    finish_initial_design(search)
    trial = search.ask()
    assert trial is not None
    assert len({candidate.key() for candidate in trial.pool}) == 12
    assert {candidate.number for candidate in trial.pool} == {trial.number}
    search.tell(told(trial))
    winner = search.ask()
    assert winner is not None
    assert (winner.number, winner.segment, winner.pool) == (trial.number, None, ())
    assert winner == max(trial.pool, key=lambda candidate: needs()(candidate).accuracy)


def test_a_pool_is_divided_among_workers_and_one_that_waits_for_another_begins_the_next_pool() -> None:
    search = screened_search(10, workers=2)
    finish_initial_design(search)
    one, two, three = ask(search), ask(search), ask(search)
    assert one.number == two.number
    assert [len(part.pool) for part in (one, two)] == [5, 5]
    assert {candidate.key() for candidate in one.pool}.isdisjoint(candidate.key() for candidate in two.pool)
    assert three.number == one.number + 1
    search.tell(told(two))
    fourth = ask(search)
    assert fourth.number == three.number  # no worker idles
    search.tell(told(one))
    winner = ask(search)
    assert winner == max((*one.pool, *two.pool), key=lambda candidate: needs()(candidate).accuracy)


@pytest.mark.parametrize(
    ("size", "workers", "parts"), [(3, 2, [3]), (9, 2, [4, 5]), (10, 8, [5, 5]), (13, 3, [4, 4, 5])]
)
def test_a_small_pool_is_not_divided_further(size: int, workers: int, parts: list[int]) -> None:
    search = screened_search(size, workers=workers)
    finish_initial_design(search)
    found = [ask(search)]
    while (part := ask(search)).number == found[0].number:
        found.append(part)
    assert [len(part.pool) for part in found] == parts


def test_candidates_of_a_pool_differ_in_their_widths_alone() -> None:
    problem = screened_problem(methods=("di",), sampler="structured", train=TrainConfig(epochs=2))
    search = screened_search(12, problem)
    while not (trial := ask(search)).pool:
        search.tell(told(trial))
    assert {(candidate.method, str(candidate.settings)) for candidate in trial.pool} == {("di", str(trial.settings))}
    assert len({candidate.goal.budgets for candidate in trial.pool}) == 1
    assert len({candidate.goal.widths for candidate in trial.pool}) == 12


def test_none_yet_is_not_the_end_of_a_search_with_a_running_pool() -> None:
    search = screened_search(2, screened_problem(6))
    finish_initial_design(search)
    pools = []
    while (trial := search.ask()) is not None:
        pools.append(trial)
    assert search.tuner.unfinished
    assert [len(pool.pool) for pool in pools] == [2] * (6 - len(search.results))
    for pool in pools:
        search.tell(told(pool))
    while (trial := search.ask()) is not None:
        search.tell(told(trial))
    assert len(search.results) == 6
    assert not search.tuner.unfinished


def test_the_time_of_a_pool_is_that_of_its_trial() -> None:
    search = screened_search(3)
    finish_initial_design(search)
    for _ in range(2):
        search.tell(told(ask(search)))
    result = search.results[-1]
    assert (result.seconds, result.train_seconds) == (2 * 2.0, 2 * 1.0)


def test_a_failed_candidate_loses_and_where_all_fail_the_first_is_trained() -> None:
    search = screened_search(2)
    finish_initial_design(search)
    trial = ask(search)
    failed = ScreenedCandidate(error="RuntimeError: no")
    search.tell(told(trial, screened=(failed, cut(trial.pool[1]))))
    winner = ask(search)
    assert winner == trial.pool[1]
    search.tell(told(winner))
    trial = ask(search)
    search.tell(told(trial, screened=(failed, failed)))
    winner = ask(search)
    assert winner == trial.pool[0]
    search.tell(told(winner))
    assert search.results[-1].note == {SCREENED: 2}


def test_variants_of_one_width_vector_are_different_candidates() -> None:
    problem = screened_problem()
    screening, pending = Screening(problem, size=2), PendingTrials()
    dense = Trial(5, "l2", Goal(SPACE.smallest))
    other = replace(dense, training={"lr": 0.1})  # in place of another start
    pending.begin(dense)
    pending.screen(5, [other])
    screening.open(dense, [other])
    part = screening.next_part()
    assert part is not None
    screened = (ScreenedCandidate(proxy=0.1), ScreenedCandidate(proxy=0.2))
    winner = screening.tell(TrialResult(part, TrialState.COMPLETE, screened=screened))
    assert winner == other
    assert pending.select(winner) == [dense]
    assert pending.trials == {5: other}


def test_a_part_of_a_pool_whose_worker_died_loses() -> None:
    search = screened_search(8, workers=2)
    finish_initial_design(search)
    lost, compared = ask(search), ask(search)
    search.tell(TrialResult(lost, TrialState.FAILED, error="WorkerCrashedError: no"))
    search.tell(told(compared))
    assert ask(search).key() in {candidate.key() for candidate in compared.pool}


def test_the_end_of_the_time_drops_a_pool_and_loses_no_result() -> None:
    clock = [0.0]
    search = screened_search(8, stop=TimeLimit("1m", 60.0, lambda: clock[0]), workers=2)
    finish_initial_design(search)
    before = search.results
    parts = [ask(search), ask(search)]
    clock[0] = 61.0
    for part in parts:
        search.tell(told(part))
    assert search.ask() is None
    assert search.tuner.stopped
    search.tuner.close()
    assert search.results == before


def test_an_interrupted_pool_leaves_a_storage_to_go_on_from(tmp_path: Any) -> None:
    class Stopped(Watched):
        def tell(self, result: TrialResult) -> None:
            super().tell(result)
            if len(self.compared) == 8 and result.trial.pool:  # of four each: the second pool is compared
                raise KeyboardInterrupt

    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = screened_search(4, url=url)
    runner = SimulatedRunner(outcome=needs(), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(Stopped(search), BENCH)
    done = search.results
    search.tuner.close()
    again = screened_search(4, url=url)
    assert again.results == done
    runner.run(again, BENCH)
    assert [result.trial.number for result in again.results] == list(range(16))


def test_screening_goes_with_rungs() -> None:
    trials = searched(3, screened_problem(40, rungs=(1, 2, 4)), epochs=4)
    results = trials.results
    assert len(results) == 40
    winners = [result for result in results if SCREENED in result.note]
    assert len(trials.compared) == 3 * len(winners) > 0
    assert {winner.trained for winner in winners} > {1}  # some were promoted, and kept their notes
    audit = audit_screening(results, (1, 2, 4))
    assert audit is not None
    assert 0 < audit.trials < len(results)


def backwards(trial: Trial, search_context: Any) -> Any:
    """Evaluate a trial whose proxy is the lower, the better it is after training."""
    if trial.pool:
        screened = tuple(ScreenedCandidate(proxy=-needs()(candidate).accuracy) for candidate in trial.pool)
        return TrialResult(trial, TrialState.COMPLETE, screened=screened)
    final = needs()(trial)
    curve = [EpochReport(trial.number, 0, 0.1, 0.1, proxy=-final.accuracy)]
    yield curve[0]
    curve.append(EpochReport(trial.number, 1, final.accuracy, 1.0))
    yield curve[1]
    return TrialResult(trial, TrialState.COMPLETE, curve[-1].accuracy, final.cost, final.widths, tuple(curve), 1.0, 1.0)


def test_a_useless_proxy_is_switched_off_and_stays_off_when_resumed(
    caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = screened_search(2, screened_problem(40), url=url)
    with caplog.at_level(logging.WARNING):
        LocalRunner(RunnerConfig(), backwards).run(search, BENCH)
    assert [text for text in caplog.messages if "from now on every candidate is trained" in text] != []
    off = [result.trial.number for result in search.results if UNSCREENED in result.note]
    on = [result.trial.number for result in search.results if SCREENED in result.note]
    assert off
    assert min(off) > max(on)
    again = Watched(screened_search(2, screened_problem(50), url=url))
    LocalRunner(RunnerConfig(), backwards).run(again, BENCH)
    assert len(again.results) == 50
    assert not again.compared
    lines = screening_statements(outcome(again))
    assert f"Screening: {len(on)} of 50 trials were the best of 2 candidates before training" in lines[0]
    assert "Screening was switched off on the way, when that correlation was under 0." in lines


class StoppedOnceScreeningIsOff(Watched):
    """Is interrupted right after the result by which screening is switched off."""

    def tell(self, result: TrialResult) -> None:
        super().tell(result)
        audit = audit_screening(self.results, ())
        if audit is not None and misleads(audit):
            raise KeyboardInterrupt


def test_a_search_that_was_stopped_when_its_proxy_had_misled_is_resumed_without_screening(tmp_path: Any) -> None:
    whole = Watched(screened_search(2, screened_problem(40)))
    LocalRunner(RunnerConfig(), backwards).run(whole, BENCH)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = screened_search(2, screened_problem(40), url=url)
    with pytest.raises(KeyboardInterrupt):
        LocalRunner(RunnerConfig(), backwards).run(StoppedOnceScreeningIsOff(search), BENCH)
    search.tuner.close()
    assert not any(UNSCREENED in result.note for result in search.results)
    resumed = Watched(screened_search(2, screened_problem(40), url=url))
    LocalRunner(RunnerConfig(), backwards).run(resumed, BENCH)
    assert not resumed.compared
    assert [UNSCREENED in result.note for result in resumed.results] == [
        UNSCREENED in result.note for result in whole.results
    ]


def outcome(trials: Watched, **config: Any) -> SearchResult:
    return SearchResult(config, trials.search.problem.budgets, DenseResult(0.9, 0.9, SPACE.dense_cost), trials.results)


def test_the_audit_shows_how_the_proxy_ranks_within_bands() -> None:
    trials = searched(4, screened_problem(24))
    result = outcome(trials)
    audit = audit_screening(trials.results, ())
    assert audit is not None
    baselines = sum(bool(finished.trial.baseline) for finished in trials.results)
    assert audit.trials == 24 - baselines
    assert audit.correlation == pytest.approx(1.0)  # without noise the formula keeps the order
    table = rank_correlation_table(result)
    assert table is not None
    assert table.rows[0][0] == "0 (before training)"
    assert SearchResult.from_json(result.to_json()).screening_audit == audit
    assert screening_statements(result)[0].endswith(
        f"Rank correlation of the proxy before training with the end of training: 1.00 over {24 - baselines} trials."
    )


def test_without_screening_nothing_is_said_of_it() -> None:
    result = outcome(searched(1))
    assert result.screening_audit is None
    assert screening_statements(result) == []
    assert rank_correlation_table(result) is None
