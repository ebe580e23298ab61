"""What is measured when, and that only it lets a network on the front; over closed-form trials and a made-up device."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_latency import CONDITIONS, guide, reading, refused
from search.searchers.study_settings import StudySettings

from runners.base import AskTell
from runners.latency.meter import Reading
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.latency.queue import SLOTS, Timed, take_up
from search.storage.checkpoints import InMemory
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import SearchSpace

LIMIT = Budget("latency", 1.2e-3)
Measure = Callable[[TrialResult], Reading]


class Paths(InMemory):
    """Gives every network a path, as if its weights were on disk; those of a longer training another one."""

    def keep(self, result: TrialResult) -> TrialResult:
        return result.map_networks(
            lambda network: dataclasses.replace(network, path=f"{network.stem}-e{network.trained}.safetensors")
        )


def study_of(
    space: SearchSpace, *budgets: Budget, axis: str = "flops", storage: str = "", resumed: bool = False
) -> Study:
    settings = StudySettings(
        ("l2",), trials=10, sampler="random", guide=guide(space, *budgets), axis=axis, storage=storage, resumed=resumed
    )

    return Study(settings, space, budgets, archive=Paths())


def searched(study: Study, space: SearchSpace, measure: Measure, every: int = 1) -> list[str]:
    """Run the search; return the labels in the order in which they were measured."""
    read: list[str] = []

    def noted(network: TrialResult) -> list[Reading]:
        read.append(network.label)
        return [measure(network)]

    search_context: Any = None  # a formula needs none
    timed = Timed(study, study, noted, every)
    SimulatedRunner(outcome=SaturatingAccuracy(space)).run(timed, search_context)
    return read


def test_no_network_that_misses_the_budget_by_measurement_is_on_the_front(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT)
    slow = 0  # has uniform widths, is predicted inside, and measures four times that
    searched(study, chain_space, lambda each: reading(each, 4.0 if each.trial.number == slow else 1.0))
    assert len(study.front) >= 2
    for member in study.front:
        assert member.timed is not None
        assert member.timed["high"] <= LIMIT.limit
        assert member.trial.number != slow
    assert study.results[slow].timed


def test_the_upper_end_of_the_interval_decides(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT)

    def wide(network: TrialResult) -> Reading:
        return dataclasses.replace(reading(network), high=1.001 * LIMIT.limit)

    assert searched(study, chain_space, wide)
    assert not len(study.front)


def test_a_refused_reading_is_tried_again_and_never_gives_a_point(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT)
    read = searched(study, chain_space, lambda each: refused(each) if each.trial.number == 0 else reading(each))
    assert 2 <= read.count("0") <= SLOTS + 1
    assert "0" not in [member.label for member in study.front]
    assert study.results[0].latency[0]["refused"] == "the machine was busy"


def test_a_reading_refused_once_is_good_at_the_next_slot(chain_space: SearchSpace) -> None:
    study, seen = study_of(chain_space, LIMIT), set()

    def moody(network: TrialResult) -> Reading:
        first = network.label not in seen
        seen.add(network.label)
        return refused(network) if first else reading(network)

    searched(study, chain_space, moody)
    assert len(study.front) >= 2


def test_what_cannot_enter_the_front_is_not_measured(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, Budget("flops", 1_500_000), LIMIT)
    read = searched(study, chain_space, reading)
    beaten = {each.label for each in study.results} - set(read)
    assert beaten
    assert not beaten & {each.label for each in study.results if each.trial.baseline}  # the comparison needs those
    for each in study.results:
        if each.label in beaten:
            assert any(m.cost.flops <= each.cost.flops and m.accuracy >= each.accuracy for m in study.front)  # type: ignore[union-attr,operator]


def test_the_model_learns_from_what_is_measured(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT)
    own = study.settings.guide
    assert own is not None
    searched(study, chain_space, lambda each: reading(each, 1.5))
    widths = chain_space.smallest | {"conv1": 8, "layer1.conv1": 16}
    products = 8 * 16 + 16 * widths["layer2.conv1"]
    assert own.model.predict(widths) == pytest.approx(1.5e-6 * products, rel=0.05)


def test_latency_can_be_the_axis(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, Budget("flops", 2_000_000), axis="latency")
    # The more FLOPs, the faster: then the cheapest in FLOPs is never the fastest.
    searched(study, chain_space, lambda each: dataclasses.replace(reading(each), seconds=1 / each.cost.flops))  # type: ignore[union-attr]
    (best,) = study.front.members
    assert best.cost.flops == max(each.cost.flops for each in study.results if each.cost)  # type: ignore[union-attr]
    assert study.front.hypervolume(1 / 1_000) > 0.5 * (best.accuracy or 0.0)


class _Hands:
    """A runner that has two trials running at any time, as far as it is given them."""

    def __init__(self, space: SearchSpace) -> None:
        self.outcome, self.running, self.while_running = SaturatingAccuracy(space), list[Trial](), list[int]()

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


def test_with_several_workers_measuring_waits_until_none_works(chain_space: SearchSpace) -> None:
    study, hands, slots = study_of(chain_space, LIMIT), _Hands(chain_space), []

    def read(network: TrialResult) -> list[Reading]:
        assert not hands.running
        slots.append(len(study.results))
        return [reading(network)]

    hands.run(Timed(study, study, read, every=3))
    assert len(study.results) == 10
    assert len(study.front) >= 2
    assert 2 <= len(set(slots)) <= 5  # several networks a slot, not one each


def test_a_busy_machine_does_not_hold_up_the_trials(chain_space: SearchSpace) -> None:
    study, slots = study_of(chain_space, LIMIT), []

    def read(network: TrialResult) -> list[Reading]:
        slots.append(len(study.results))
        return [refused(network)]

    _Hands(chain_space).run(Timed(study, study, read, every=3))
    during = [told for told in slots if told < 10]
    assert 1 <= len(during) <= 3  # one reading a slot, and three results at least from one to the next
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(during))
    assert not len(study.front)


def test_a_resumed_search_measures_nothing_again_under_the_same_conditions(
    chain_space: SearchSpace, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = study_of(chain_space, LIMIT, storage=storage)
    read = searched(first, chain_space, reading)
    again = study_of(chain_space, LIMIT, storage=storage, resumed=True)
    take_up(again, CONDITIONS)
    assert [each.label for each in again.front] == [each.label for each in first.front]
    assert again.settings.guide is not None
    assert len(again.settings.guide.model.learned) == len(read)
    Timed(again, again, lambda each: pytest.fail("measured again"), 1).measure()


def test_readings_of_another_machine_do_not_count(chain_space: SearchSpace, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = study_of(chain_space, LIMIT, storage=storage)
    searched(first, chain_space, reading)
    again = study_of(chain_space, LIMIT, storage=storage, resumed=True)
    take_up(again, dataclasses.replace(CONDITIONS, device_name="another"))
    assert not len(again.front)
    Timed(again, again, lambda each: [reading(each)], 1).measure()
    assert len(again.front) == len(first.front)


def test_a_study_without_a_guide_has_nothing_to_measure(chain_space: SearchSpace) -> None:
    study = Study(StudySettings(("l2",)), chain_space, [Budget("flops", 1_500_000)])
    with pytest.raises(ValueError, match="without a latency guide"):
        Timed(study, study, lambda each: [], 1)
