"""What is measured when, and that only it lets a network on the front; over closed-form trials and a made-up device."""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_latency import CONDITIONS, NamedFiles, predictor, reading, refused
from made_up_search import MadeUpSearch, problem_of, search_of

from runners.base import AskTell
from runners.latency.meter import Conditions, Reading
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.latency.predictor import LatencyPredictor
from search.latency.queue import WINDOWS, Read, restore_readings
from search.results.pareto import is_unclear
from spaces.budget import Budget
from spaces.space import SearchSpace

LIMIT = Budget("latency", 1.2e-3)
Measure = Callable[[TrialResult], Reading]


@dataclasses.dataclass
class Timed:
    """A search that measures latency, its predictor, and the labels of what was measured, in that order."""

    search: MadeUpSearch
    predictor: LatencyPredictor
    labels: list[str]


def timed_search(
    space: SearchSpace,
    *budgets: Budget,
    measure: Measure = reading,
    objective: str = "accuracy,flops",
    url: str = "",
    conditions: Conditions = CONDITIONS,
) -> Timed:
    """Put a search together that measures between its trials; it goes on with what is stored at `url`."""
    problem = problem_of(space, budgets, trials=10, sampler="random", objective=objective)
    own, labels = predictor(problem), list[str]()

    def read(network: TrialResult) -> list[Reading]:
        labels.append(network.label)
        return [measure(network)]

    search = search_of(
        problem,
        own,
        url=url,
        read=read,
        checkpoints=NamedFiles(),
        prepare=lambda history: restore_readings(history, own, conditions),
    )
    return Timed(search, own, labels)


def searched(
    space: SearchSpace, *budgets: Budget, measure: Measure = reading, objective: str = "accuracy,flops", url: str = ""
) -> Timed:
    """Run such a search."""
    timed = timed_search(space, *budgets, measure=measure, objective=objective, url=url)
    search_context: Any = None  # a formula needs none
    SimulatedRunner(outcome=SaturatingAccuracy(space)).run(timed.search, search_context)
    return timed


def test_no_network_that_misses_the_budget_by_measurement_is_on_the_front(chain_space: SearchSpace) -> None:
    slow = 0  # has uniform widths, is predicted inside, and measures four times that
    search = searched(
        chain_space, LIMIT, measure=lambda network: reading(network, 4.0 if network.trial.number == slow else 1.0)
    ).search
    assert len(search.front) >= 2
    for member in search.front:
        assert member.timed is not None
        assert member.timed["high"] <= LIMIT.limit
        assert member.trial.number != slow
    assert search.results[slow].timed


def test_the_upper_end_of_the_interval_decides(chain_space: SearchSpace) -> None:
    def wide(network: TrialResult) -> Reading:
        return dataclasses.replace(reading(network), high=1.001 * LIMIT.limit)

    timed = searched(chain_space, LIMIT, measure=wide)
    assert timed.labels
    assert not len(timed.search.front)


def test_a_refused_reading_is_tried_again_and_never_lets_its_network_on_the_front(chain_space: SearchSpace) -> None:
    timed = searched(
        chain_space,
        LIMIT,
        measure=lambda network: refused(network) if network.trial.number == 0 else reading(network),
    )
    assert 2 <= timed.labels.count("0") <= WINDOWS + 1
    assert "0" not in [member.label for member in timed.search.front]
    assert timed.search.results[0].latency[0]["refused"] == "the machine was busy"


def test_an_unsteady_interval_over_the_limit_is_measured_again_and_then_unclear(chain_space: SearchSpace) -> None:
    seen = Counter[str]()

    def wide(network: TrialResult) -> Reading:
        seen[network.label] += 1
        good = reading(network)
        unsteady = dataclasses.replace(good, low=0.5e-3, high=2e-3, unsteady="a neighbour")
        return unsteady if network.trial.number == 0 or seen[network.label] == 1 else good

    timed = searched(chain_space, LIMIT, measure=wide)
    assert len(timed.search.front) >= 2  # by their second reading
    assert 2 <= seen["0"] <= WINDOWS + 1
    assert "0" not in [member.label for member in timed.search.front]
    assert is_unclear(timed.search.results[0], [LIMIT])


def test_a_device_that_goes_away_costs_no_window_and_is_measured_when_it_is_back(
    chain_space: SearchSpace, caplog: pytest.LogCaptureFixture
) -> None:
    asked = itertools.count()

    def away(network: TrialResult) -> Reading:
        good = reading(network)
        if next(asked) >= 2 * WINDOWS:
            return good
        return Reading(network.label, CONDITIONS, "agent http://b does not answer (refused)", away=True)

    timed = searched(chain_space, LIMIT, measure=away)
    assert len(timed.search.front) >= 2
    assert not [result for result in timed.search.results if result.latency and result.latency[0]["away"]]
    assert "does not answer (refused); the search goes on with predicted latencies" in caplog.text


def test_a_reading_refused_once_is_good_in_the_next_window(chain_space: SearchSpace) -> None:
    seen = set()

    def moody(network: TrialResult) -> Reading:
        first = network.label not in seen
        seen.add(network.label)
        return refused(network) if first else reading(network)

    assert len(searched(chain_space, LIMIT, measure=moody).search.front) >= 2


def test_a_network_that_cannot_enter_the_front_is_not_measured(chain_space: SearchSpace) -> None:
    timed = searched(chain_space, Budget("flops", 1_500_000), LIMIT)
    results, front = timed.search.results, timed.search.front
    beaten = {result.label for result in results} - set(timed.labels)
    assert beaten
    assert not beaten & {result.label for result in results if result.trial.baseline}  # others are compared with these
    for result in results:
        if result.label in beaten:
            assert any(m.cost.flops <= result.cost.flops and m.accuracy >= result.accuracy for m in front)  # type: ignore[union-attr,operator]


def test_the_model_learns_from_readings(chain_space: SearchSpace) -> None:
    own = searched(chain_space, LIMIT, measure=lambda network: reading(network, 1.5)).predictor
    widths = chain_space.smallest | {"conv1": 8, "layer1.conv1": 16}
    products = 8 * 16 + 16 * widths["layer2.conv1"]
    assert own.model.predict(widths) == pytest.approx(1.5e-6 * products, rel=0.05)


def test_latency_can_be_the_axis(chain_space: SearchSpace) -> None:
    def measure(network: TrialResult) -> Reading:
        """The more FLOPs, the faster: then the cheapest in FLOPs is never the fastest."""
        return dataclasses.replace(reading(network), seconds=1 / network.cost.flops)  # type: ignore[union-attr]

    search = searched(chain_space, Budget("flops", 2_000_000), measure=measure, objective="accuracy,latency").search
    (best,) = search.front.members
    assert best.cost.flops == max(result.cost.flops for result in search.results if result.cost)  # type: ignore[union-attr]
    assert search.front.hypervolume(1 / 1_000) > 0.5 * (best.accuracy or 0.0)


class TwoWorkers:
    """A runner that has two trials running at any time, as far as it is given them."""

    def __init__(self, space: SearchSpace) -> None:
        self.outcome, self.running = SaturatingAccuracy(space), list[Trial]()

    def run(self, trials: AskTell) -> None:
        while True:
            while len(self.running) < 2 and (trial := trials.ask()) is not None:
                self.running.append(trial)
            if not self.running:
                return
            trial = self.running.pop(0)
            trials.report(EpochReport(trial.number, 0, 0.5, 1.0))
            final = self.outcome(trial)
            trials.tell(TrialResult(trial, TrialState.COMPLETE, final.accuracy, final.cost, final.widths))


def windowed(space: SearchSpace, read: Read) -> MadeUpSearch:
    """Put a search together in which three networks wait before running trials are waited for."""
    problem = problem_of(space, [LIMIT], trials=10, sampler="random")
    return search_of(problem, predictor(problem), read=read, window=3, checkpoints=NamedFiles())


def test_with_several_workers_measuring_waits_until_none_works(chain_space: SearchSpace) -> None:
    workers, windows = TwoWorkers(chain_space), []

    def read(network: TrialResult) -> list[Reading]:
        assert not workers.running
        windows.append(len(search.results))
        return [reading(network)]

    search = windowed(chain_space, read)
    workers.run(search)
    assert len(search.results) == 10
    assert len(search.front) >= 2
    assert 2 <= len(set(windows)) <= 5  # several networks a window, not one each


def test_two_boards_measure_two_networks_at_once_and_the_front_is_that_of_one(chain_space: SearchSpace) -> None:
    alone = windowed(chain_space, lambda network: [reading(network)])
    TwoWorkers(chain_space).run(alone)
    at_once, most = list[str](), list[int]()

    def read(network: TrialResult) -> list[Reading]:
        at_once.append(network.label)
        time.sleep(0.01)
        most.append(len(at_once))
        at_once.remove(network.label)
        return [reading(network)]

    shared = windowed(chain_space, read)
    assert shared.tuner.queue is not None
    shared.tuner.queue.places = 2
    TwoWorkers(chain_space).run(shared)
    assert max(most) == 2
    assert [member.label for member in shared.front] == [member.label for member in alone.front]


def test_a_busy_machine_does_not_hold_up_the_trials(chain_space: SearchSpace) -> None:
    windows = []

    def read(network: TrialResult) -> list[Reading]:
        windows.append(len(search.results))
        return [refused(network)]

    search = windowed(chain_space, read)
    TwoWorkers(chain_space).run(search)
    during = [told for told in windows if told < 10]
    assert 1 <= len(during) <= 3  # one reading a window, and three results at least from one to the next
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(during))
    assert not len(search.front)


def test_a_resumed_search_measures_nothing_again_under_the_same_conditions(
    chain_space: SearchSpace, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = searched(chain_space, LIMIT, url=url)
    again = timed_search(chain_space, LIMIT, measure=lambda network: pytest.fail("measured again"), url=url)
    assert [member.label for member in again.search.front] == [member.label for member in first.search.front]
    assert len(again.predictor.model.learned) == len(first.labels)
    assert again.search.ask() is None  # nothing is left, so that the last window is now


def test_readings_of_another_machine_do_not_count(chain_space: SearchSpace, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = searched(chain_space, LIMIT, url=url)
    other = dataclasses.replace(CONDITIONS, device_name="another")
    again = timed_search(chain_space, LIMIT, url=url, conditions=other)
    assert not len(again.search.front)
    again.search.ask()
    assert len(again.search.front) == len(first.search.front)
