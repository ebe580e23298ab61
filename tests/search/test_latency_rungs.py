"""Latency together with rungs, with targets, and with samplers that know the budget range."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_latency import CONDITIONS, guide, reading
from search.schedulers.ladder import Ladder
from search.searchers.study_settings import StudySettings

from runners.latency.meter import Reading, to_plain
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import TrainingSegment, TrialResult
from search.latency.queue import Timed, take_up
from search.results.pareto import LATENCY, may_enter, objectives
from search.schedulers.segments import joined
from search.searchers.candidate_space import CandidateSpace
from search.searchers.structure import Relaxation
from search.storage.checkpoints import InMemory
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import SearchSpace

LIMIT, RUNGS = Budget("latency", 1.2e-3), (1, 2, 4)
BENCH: Any = None  # a formula needs none


class Paths(InMemory):
    """Gives every network a path, as if its weights were on disk; those of a longer training another one."""

    def keep(self, result: TrialResult) -> TrialResult:
        return result.map_networks(
            lambda each: dataclasses.replace(each, path=f"{each.stem}-e{each.trained}.safetensors")
        )


def study_of(space: SearchSpace, *budgets: Budget, **changes: Any) -> Study:
    settings = StudySettings(("l2",), trials=16, guide=guide(space, *budgets), **changes)
    return Study(settings, space, budgets, archive=Paths())


def searched(study: Study, space: SearchSpace, factor: float = 1.0) -> list[str]:
    """Run a search; return what was measured, as path at that moment, in that order."""
    read: list[str] = []

    def noted(network: TrialResult) -> list[Reading]:
        read.append(network.path)
        return [reading(network, factor)]

    runner = SimulatedRunner(outcome=SaturatingAccuracy(space), epochs=RUNGS[-1])
    runner.run(Timed(study, study, noted, every=1), BENCH)
    return read


@pytest.mark.parametrize("axis", ["flops", "latency"])
def test_with_rungs_every_member_is_timed_once_and_trained_to_the_end(chain_space: SearchSpace, axis: str) -> None:
    study = study_of(chain_space, LIMIT, rungs=RUNGS, axis=axis)
    read = searched(study, chain_space)
    labels = [path[:4] for path in read]
    assert len(labels) == len(set(labels))  # a longer training changes nothing that takes time
    assert any("-e1" in path for path in read)
    assert len(study.front) >= 3
    for member in study.front:
        assert member.trained == RUNGS[-1]
        assert member.path.endswith("-e4.safetensors")
        assert member.timed is not None
        assert member.timed["high"] <= LIMIT.limit
    assert not study.unfinished


def test_a_killed_search_with_rungs_keeps_its_readings(chain_space: SearchSpace, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = study_of(chain_space, LIMIT, rungs=RUNGS, storage=storage)
    searched(first, chain_space)
    again = study_of(chain_space, LIMIT, rungs=RUNGS, storage=storage, resumed=True)
    take_up(again, CONDITIONS)
    assert again.results == first.results
    assert again.front == first.front
    Timed(again, again, lambda each: pytest.fail("measured again"), 1).measure(last=True)


def test_a_leg_keeps_the_reading_also_where_it_came_out_worse(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT, rungs=RUNGS)
    searched(study, chain_space)
    known = study.results[0]
    assert known.timed is not None
    earlier = dataclasses.replace(known, rungs=((1, 0.5),), accuracy=0.5)
    for accuracy in (0.4, 0.6):
        longer = dataclasses.replace(known, accuracy=accuracy, latency=())
        assert joined(earlier, longer, TrainingSegment(1, 1)).timed == known.timed


def test_a_network_that_measured_over_the_budget_goes_no_further(chain_space: SearchSpace) -> None:
    study = study_of(chain_space, LIMIT, rungs=RUNGS)
    searched(study, chain_space, factor=3.0)  # three times what was predicted, which the model then learns
    over = [each for each in study.results if each.timed and each.timed["high"] > LIMIT.limit]
    assert over
    assert not any(may_enter(each, study.budgets) for each in over)
    assert all(each.trained == 1 for each in over)


def test_under_a_latency_axis_rungs_compare_predicted_seconds(chain_space: SearchSpace) -> None:
    settings = StudySettings(("l2",), guide=guide(chain_space, factor=2.0), axis=LATENCY)
    study = study_of(chain_space, Budget("flops", 2_000_000), rungs=RUNGS)
    searched(study, chain_space)
    ladder = Ladder(RUNGS, study.budgets, settings.cost)
    assert ladder.rungs == RUNGS
    for each in study.results:
        assert each.cost is not None
        assert settings.cost(each) == pytest.approx(2e-6 * each.cost.params)
        assert StudySettings().cost(each) == objectives(each)[0] == each.cost.flops


@pytest.mark.parametrize("sampler", ["structured", "tpe"])
def test_samplers_propose_inside_and_use_what_latency_allows(chain_space: SearchSpace, sampler: str) -> None:
    study = study_of(chain_space, LIMIT, sampler=sampler)
    searched(study, chain_space)
    model = guide(chain_space, LIMIT).model
    predicted = [model.predict(each.widths or {}) for each in study.results if not each.trial.baseline]
    assert max(predicted) <= 1.001 * LIMIT.limit
    assert max(predicted) > 0.8 * LIMIT.limit
    logs = sorted(math.log(each.cost.flops) for each in study.results if each.cost)
    steps = np.diff(logs)
    assert steps.max() < 4 * (logs[-1] - logs[0]) / len(steps)  # not all at the top, which no network can reach


def test_the_structured_sampler_knows_what_a_limit_on_latency_leaves(chain_space: SearchSpace) -> None:
    settings = StudySettings(("l2",), guide=guide(chain_space, LIMIT))
    candidates = CandidateSpace(settings, chain_space, [LIMIT])
    use = candidates.latency_use
    assert use is not None
    full = np.array([[group.width for group in chain_space.variable]], dtype=np.float64)
    assert use(full)[0] == pytest.approx(settings.guide.model.safety * 2.56e-3 / LIMIT.limit)  # type: ignore[union-attr]
    shares = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [-1.0, 0.5, 0.0]])
    limits = np.full((3, 2), np.inf)
    kept = Relaxation(chain_space, use).fit(shares, limits)
    assert use(full * 2.0**kept) == pytest.approx([1.0] * 3, rel=0.02)
    idle = Relaxation(chain_space).fit(shares, limits)
    assert (kept <= idle).all()
    assert CandidateSpace(StudySettings(("l2",)), chain_space, [LIMIT]).latency_use is None


def test_targets_keep_their_places_under_a_latency_budget(chain_space: SearchSpace) -> None:
    targets = (Budget("flops", 2_000_000), Budget("flops", 600_000))
    study = study_of(chain_space, targets[0], LIMIT, targets=targets)
    searched(study, chain_space)
    small = sum(each.trial.goal.budgets[0].limit == targets[1].limit for each in study.results)
    assert small == len(study.results) / 2  # what methods aim at for their latency counts for the target above it
    for target in targets:
        best = study.best_at(target)
        assert best is not None
        assert best.timed is not None


def test_what_may_be_the_best_at_a_target_is_measured_though_the_front_beats_it(chain_space: SearchSpace) -> None:
    """The more FLOPs, the faster: at the small target nothing is ever on a front of latency."""
    targets = (Budget("flops", 2_000_000), Budget("flops", 600_000))
    study = study_of(chain_space, targets[0], targets=targets, axis=LATENCY)

    def read(network: TrialResult) -> list[Reading]:
        assert network.cost is not None
        return [dataclasses.replace(reading(network), seconds=1 / network.cost.flops)]

    SimulatedRunner(outcome=SaturatingAccuracy(chain_space)).run(Timed(study, study, read, every=1), BENCH)
    best = study.best_at(targets[1])
    assert best is not None
    assert best.label not in [member.label for member in study.front]
    small = [each for each in study.results if each.cost and targets[1].allows(each.cost)]
    assert best.accuracy == max(each.accuracy or 0.0 for each in small)
    assert to_plain(read(best)) == list(best.latency)
