"""Latency together with rungs, with targets, and with samplers that know the budget range."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_latency import CONDITIONS, NamedFiles, predictor, reading
from made_up_search import MadeUpSearch, problem_of, search_of

from runners.latency.meter import Reading, to_plain
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import TrainingSegment, TrialResult
from search.latency.queue import Read, restore_readings
from search.results.pareto import may_enter, objectives
from search.schedulers.segments import merge
from search.searchers.candidate_space import CandidateSpace
from spaces.budget import Budget
from spaces.projection import Relaxation
from spaces.space import SearchSpace

LIMIT, RUNGS = Budget("latency", 1.2e-3), (1, 2, 4)
LATENCY_AXIS = "accuracy,latency"


def timed_search(
    space: SearchSpace, *budgets: Budget, read: Read | None = None, url: str = "", **settings: Any
) -> MadeUpSearch:
    """Put a search together that measures between its trials; it goes on with what is stored at `url`."""
    problem = problem_of(space, budgets, **{"trials": 16, **settings})
    own = predictor(problem)
    return search_of(
        problem,
        own,
        url=url,
        read=read or (lambda network: [reading(network)]),
        checkpoints=NamedFiles(),
        prepare=lambda history: restore_readings(history, own, CONDITIONS),
    )


def run(search: MadeUpSearch) -> MadeUpSearch:
    search_context: Any = None  # a formula needs none
    SimulatedRunner(outcome=SaturatingAccuracy(search.problem.space), epochs=RUNGS[-1]).run(search, search_context)
    return search


def searched(space: SearchSpace, *budgets: Budget, **settings: Any) -> MadeUpSearch:
    return run(timed_search(space, *budgets, **settings))


@pytest.mark.parametrize("objective", ["accuracy,flops", LATENCY_AXIS])
def test_with_rungs_every_member_is_timed_once_and_trained_to_the_end(chain_space: SearchSpace, objective: str) -> None:
    paths = []  # of what was measured, at that moment, in that order

    def read(network: TrialResult) -> list[Reading]:
        paths.append(network.path)
        return [reading(network)]

    search = searched(chain_space, LIMIT, read=read, rungs=RUNGS, objective=objective)
    labels = [path[:4] for path in paths]
    assert len(labels) == len(set(labels))  # a longer training changes nothing that takes time
    assert any("-e1" in path for path in paths)
    assert len(search.front) >= 3
    for member in search.front:
        assert member.trained == RUNGS[-1]
        assert member.path.endswith("-e4.safetensors")
        assert member.timed is not None
        assert member.timed["high"] <= LIMIT.limit
    assert not search.tuner.unfinished


def test_a_killed_search_with_rungs_keeps_its_readings(chain_space: SearchSpace, tmp_path: Path) -> None:
    def read(network: TrialResult) -> Sequence[Reading]:
        pytest.fail("measured again")

    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = searched(chain_space, LIMIT, rungs=RUNGS, url=url)
    again = timed_search(chain_space, LIMIT, read=read, rungs=RUNGS, url=url)
    assert again.results == first.results
    assert again.front == first.front
    again.tuner.measure_remaining()


def test_a_segment_keeps_the_reading_also_where_it_came_out_worse(chain_space: SearchSpace) -> None:
    known = searched(chain_space, LIMIT, rungs=RUNGS).results[0]
    assert known.timed is not None
    earlier = dataclasses.replace(known, rungs=((1, 0.5),), accuracy=0.5)
    for accuracy in (0.4, 0.6):
        longer = dataclasses.replace(known, accuracy=accuracy, latency=())
        assert merge(earlier, longer, TrainingSegment(1, 1)).timed == known.timed


def test_a_network_that_measured_over_the_budget_goes_no_further(chain_space: SearchSpace) -> None:
    # three times what was predicted, which the model then learns
    search = searched(chain_space, LIMIT, rungs=RUNGS, read=lambda network: [reading(network, 3.0)])
    over = [result for result in search.results if result.timed and result.timed["high"] > LIMIT.limit]
    assert over
    assert not any(may_enter(result, search.problem.budgets) for result in over)
    assert all(result.trained == 1 for result in over)


def test_under_a_latency_axis_rungs_compare_predicted_seconds(chain_space: SearchSpace) -> None:
    flops = Budget("flops", 2_000_000)
    search = searched(chain_space, flops, rungs=RUNGS)
    assert search.problem.rungs == RUNGS
    problem = problem_of(chain_space, [flops], objective=LATENCY_AXIS)
    slower = CandidateSpace(problem, predictor(problem, factor=2.0))
    plain = CandidateSpace(problem_of(chain_space, [flops]))
    for result in search.results:
        assert result.cost is not None
        assert slower.objective_cost(result) == pytest.approx(2e-6 * result.cost.params)
        assert plain.objective_cost(result) == objectives(result)[0] == result.cost.flops


@pytest.mark.parametrize("sampler", ["structured", "tpe"])
def test_samplers_propose_inside_and_use_what_latency_allows(chain_space: SearchSpace, sampler: str) -> None:
    search = searched(chain_space, LIMIT, sampler=sampler)
    model = predictor(search.problem).model
    predicted = [model.predict(result.widths or {}) for result in search.results if not result.trial.baseline]
    assert max(predicted) <= 1.001 * LIMIT.limit
    assert max(predicted) > 0.8 * LIMIT.limit
    logs = sorted(math.log(result.cost.flops) for result in search.results if result.cost)
    steps = np.diff(logs)
    assert steps.max() < 4 * (logs[-1] - logs[0]) / len(steps)  # not all at the top, which no network can reach


def test_the_structured_sampler_knows_what_a_limit_on_latency_leaves(chain_space: SearchSpace) -> None:
    problem = problem_of(chain_space, [LIMIT])
    own = predictor(problem)
    use = CandidateSpace(problem, own).latency_use
    assert use is not None
    full = np.array([[group.width for group in chain_space.variable]], dtype=np.float64)
    assert use(full)[0] == pytest.approx(1.015 * own.model.safety * 2.56e-3 / LIMIT.limit)
    proportions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [-1.0, 0.5, 0.0]])
    limits = np.full((3, 2), np.inf)
    log2_ratios = Relaxation(chain_space.variable, chain_space.cost_model, use).fit(proportions, limits)
    assert use(full * 2.0**log2_ratios) == pytest.approx([1.0] * 3, rel=0.02)
    idle = Relaxation(chain_space.variable, chain_space.cost_model).fit(proportions, limits)
    assert (log2_ratios <= idle).all()
    assert CandidateSpace(problem).latency_use is None


def test_targets_keep_their_places_under_a_latency_budget(chain_space: SearchSpace) -> None:
    targets = (Budget("flops", 2_000_000), Budget("flops", 600_000))
    search = searched(chain_space, targets[0], LIMIT, targets=targets)
    small = sum(result.trial.goal.budgets[0].limit == targets[1].limit for result in search.results)
    assert small == len(search.results) / 2  # what methods aim at for their latency counts for the target above it
    for target in targets:
        best = search.history.best_at(target)
        assert best is not None
        assert best.timed is not None


def test_what_may_be_the_best_at_a_target_is_measured_though_the_front_beats_it(chain_space: SearchSpace) -> None:
    """The more FLOPs, the faster: at the small target nothing is ever on a front of latency."""
    targets = (Budget("flops", 2_000_000), Budget("flops", 600_000))

    def read(network: TrialResult) -> list[Reading]:
        assert network.cost is not None
        return [dataclasses.replace(reading(network), seconds=1 / network.cost.flops)]

    search = searched(chain_space, targets[0], targets=targets, objective=LATENCY_AXIS, read=read)
    best = search.history.best_at(targets[1])
    assert best is not None
    assert best.label not in [member.label for member in search.front]
    small = [result for result in search.results if result.cost and targets[1].allows(result.cost)]
    assert best.accuracy == max(result.accuracy or 0.0 for result in small)
    assert to_plain(read(best)) == list(best.latency)
