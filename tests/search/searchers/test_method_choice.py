"""Proposals move to the method that pays, per second, and no method is forgotten."""

import dataclasses
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
from chain_space import chain
from made_up_methods import register
from made_up_search import MadeUpSearch, problem_of, search_of

from pruning.settings import setting
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import Trial, TrialResult, TrialState
from search.results.serialization import trial_result_from_dict
from search.searchers import initial_design, optuna_searcher
from search.searchers.method_choice import choose_method, method_shares
from search.searchers.observation import Observation
from search.storage.study_storage import RESULT

SEEDS = range(10)
TRIALS = 24


@dataclasses.dataclass(frozen=True)
class Baseline:
    name: ClassVar[str] = "l2"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Good:
    name: ClassVar[str] = "good"
    finds_widths: ClassVar[bool] = True
    takes_widths: ClassVar[bool] = True
    ridge: float = setting(0.1, low=1e-3, high=1.0, log=True)


@dataclasses.dataclass(frozen=True)
class Bad:
    name: ClassVar[str] = "bad"
    finds_widths: ClassVar[bool] = False
    takes_widths: ClassVar[bool] = True
    images: int = setting(64, low=16, high=512)


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, l2=Baseline, good=Good, bad=Bad)
    monkeypatch.setattr(initial_design, "MAX_FRACTIONS", 2)  # so that the later half of the trials is proposed


def searched(seed: int, quality: dict[str, float], slowness: dict[str, float] | None = None) -> MadeUpSearch:
    """Run a simulated search over methods that differ in quality and speed."""
    space = chain(8, 64, floor=6)
    rates = dict(zip(space.by_name, np.random.default_rng(0).uniform(8, 40, len(space.groups)), strict=True))
    # TPE, which would choose the method itself if it were left to it.
    made = search_of(problem_of(space, ["50%"], ("bad", "good"), trials=TRIALS, seed=seed, sampler="tpe"))
    outcome = SaturatingAccuracy(space, rates, quality=quality, slowness=slowness or {}, seconds_per_gflop=1e6)
    search_context: Any = None  # a formula needs none
    SimulatedRunner(outcome=outcome, epochs=0).run(made, search_context)
    return made


def share(made: MadeUpSearch, method: str) -> float:
    """Return the share of the later half of the trials that took a method."""
    late = made.results[TRIALS // 2 :]
    return sum(result.trial.method == method for result in late) / len(late)


def test_most_later_trials_take_the_better_method_and_the_front_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = {"good": 1.3}
    ours = [searched(seed, quality) for seed in SEEDS]
    monkeypatch.setattr(optuna_searcher, "MethodSampler", lambda sampler, choose: sampler)
    theirs = [searched(seed, quality) for seed in SEEDS]

    shares, plain = ([share(made, "good") for made in searches] for searches in (ours, theirs))
    assert np.mean(shares) > np.mean(plain)
    assert np.mean(shares) >= 0.75
    assert min(shares) >= 0.5
    dense = chain(8, 64, floor=6).dense_cost.flops
    volumes, plain_volumes = ([made.front.hypervolume(dense) for made in searches] for searches in (ours, theirs))
    assert np.mean(volumes) > np.mean(plain_volumes)


def test_of_equally_good_methods_the_slow_one_is_proposed_less() -> None:
    shares = [share(searched(seed, {}, {"bad": 5.0}), "bad") for seed in SEEDS]
    assert np.mean(shares) < 0.4


def test_every_method_is_tried_even_the_worst() -> None:
    tried = Counter(result.trial.method for result in searched(0, {"bad": 0.3}).results)
    assert tried["bad"] >= 1


def test_the_same_seed_and_results_give_the_same_methods() -> None:
    first, second = ([result.trial.method for result in searched(3, {"good": 1.1}).results] for _ in range(2))
    assert first == second


def test_the_method_stays_a_parameter_of_the_stored_trials() -> None:
    stored = searched(0, {"good": 1.3}).searcher._study.get_trials(deepcopy=False)
    trials = [
        (frozen, trial_result_from_dict(frozen.user_attrs[RESULT]).trial)
        for frozen in stored
        if RESULT in frozen.user_attrs
    ]
    assert len(trials) == TRIALS
    for frozen, trial in trials:
        if not trial.baseline:
            assert frozen.params["method"] == trial.method


def curve(method: str, gain: float, seconds: float = 10.0) -> list[Observation]:
    """Five trials along a curve that all methods share."""
    return [Observation(method, x, 0.9 - 0.1 * (1 - x) + gain, seconds) for x in (0.05, 0.1, 0.3, 0.6, 1.0)]


def test_shares_add_up_and_the_least_is_not_nothing() -> None:
    shares = method_shares(("a", "b"), [*curve("a", 0.0), *curve("b", -0.3)], 0.3, seed=0)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["a"] > 0.8
    assert shares["b"] >= 0.05


def test_equally_good_methods_get_the_same_time() -> None:
    shares = method_shares(("a", "b"), [*curve("a", 0.0), *curve("b", 0.0, seconds=50.0)], 0.3, seed=0)
    assert shares["a"] / shares["b"] == pytest.approx(4, rel=0.3)


def test_a_method_that_is_better_only_where_nets_are_narrow_is_taken_there() -> None:
    shares = (0.05, 0.1, 0.3, 0.6, 1.0)
    steep, flat = (0.70, 0.76, 0.85, 0.89, 0.93), (0.78, 0.80, 0.83, 0.85, 0.87)
    tried = [Observation("steep", x, y, 1.0) for x, y in zip(shares, steep, strict=True)]
    tried += [Observation("flat", x, y, 1.0) for x, y in zip(shares, flat, strict=True)]
    assert method_shares(("steep", "flat"), tried, 0.05, seed=0)["flat"] > 0.7
    assert method_shares(("steep", "flat"), tried, 1.0, seed=0)["steep"] > 0.7


def test_a_method_that_fails_is_left() -> None:
    failed = [Observation("b", x, failed=True, seconds=0.01) for x in (0.1, 0.3, 1.0)]
    assert method_shares(("a", "b"), [*curve("a", 0.0), *failed], 0.3, seed=0)["a"] > 0.7


def test_running_trials_count() -> None:
    tried = [*curve("a", 0.0), *curve("b", 0.0)]
    first = choose_method(("a", "b"), tried, 0.3, seed=0)
    second = choose_method(("a", "b"), [*tried, Observation(first, 0.3)], 0.3, seed=0)
    assert {first, second} == {"a", "b"}


def test_nothing_tried_yet_takes_the_first() -> None:
    assert choose_method(("a", "b"), [], 1.0, seed=0) == "a"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_side_by_side_do_not_all_take_one_method(workers: int) -> None:
    space = chain(3, 64, floor=6)
    made = search_of(problem_of(space, ["50%"], ("bad", "good"), trials=TRIALS, seed=1))
    outcome, running = SaturatingAccuracy(space), list[Trial]()
    while True:
        while len(running) < workers and (trial := made.ask()) is not None:
            running.append(trial)
        if not running:
            break
        trial = running.pop(0)
        given = outcome(trial)
        made.tell(TrialResult(trial, TrialState.COMPLETE, given.accuracy, given.cost, given.widths))
    assert 0.2 < share(made, "good") < 0.8
