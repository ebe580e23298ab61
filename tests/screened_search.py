"""A search with screening over closed-form trials."""

import dataclasses
import math
from typing import Any

from chain_space import chain
from made_up_search import MadeUpSearch, Watched, problem_of, search_of

from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, ScreenedCandidate, Trial, TrialResult, TrialState
from search.problem import Problem
from search.schedulers.stopping import StoppingCriterion
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import InitialDesign
from spaces.budget import Budget
from spaces.space import SearchSpace

BENCH: Any = None  # formulas need no search context
SPACE = chain(groups=6, width=64)
BUDGETS = [Budget("flops", 120_000)]


def needs(space: SearchSpace = SPACE) -> SaturatingAccuracy:
    return SaturatingAccuracy(space, rates={group.name: 1.0 + i for i, group in enumerate(space.variable)})


def screened_problem(trials: int = 16, methods: tuple[str, ...] = ("l2",), **changes: Any) -> Problem:
    settings = {"sampler": "random", "lowest_fraction": 0.2, "allocation": "search", "inherit": False, **changes}
    return problem_of(SPACE, BUDGETS, methods, trials=trials, **settings)


def screened_search(
    size: int,
    problem: Problem | None = None,
    *,
    url: str = "",
    stop: StoppingCriterion = lambda: False,
    workers: int = 1,
) -> MadeUpSearch:
    """Return a search with screening pools of this size, divided among the workers."""
    return search_of(problem or screened_problem(), size=size, url=url, stop=stop, workers=workers)


def searched(size: int, problem: Problem | None = None, noise: float = 0.0, epochs: int = 2) -> Watched:
    """Run a search with screening pools of this size."""
    trials = Watched(screened_search(size, problem))
    SimulatedRunner(outcome=needs(), epochs=epochs, noise=noise).run(trials, BENCH)
    return trials


def told(trial: Trial, **changes: Any) -> TrialResult:
    """Return the result of a trial by the formula, or of the comparison of its pool."""
    if trial.pool:
        screened = tuple(cut(candidate) for candidate in trial.pool)
        result = TrialResult(trial, TrialState.COMPLETE, seconds=2.0, train_seconds=1.0, screened=screened)
    else:
        final = needs()(trial)
        cut_report = EpochReport(trial.number, 0, final.accuracy / 2, 0.5, proxy=cut(trial).proxy)
        curve = (cut_report, EpochReport(trial.number, 1, final.accuracy, 1.0))
        widths, state = final.widths, TrialState.COMPLETE
        result = TrialResult(trial, state, final.accuracy, final.cost, widths, curve, seconds=2.0, train_seconds=1.0)
    return dataclasses.replace(result, **changes)


def cut(candidate: Trial) -> ScreenedCandidate:
    """Return a candidate before any training, with a proxy that follows the formula."""
    final = needs()(candidate)
    return ScreenedCandidate(final.cost, proxy=math.log(final.accuracy))


def ask(search: MadeUpSearch) -> Trial:
    """Return the next trial of a search that has one."""
    trial = search.ask()
    assert trial is not None
    return trial


def finish_initial_design(search: MadeUpSearch) -> None:
    """Work off the initial design, so that the next candidate is proposed by the sampler; equal points run once."""
    points = InitialDesign(CandidateSpace(search.problem)).points(search.problem.config.trials)
    for _ in {(point.method, point.allocation, *point.parameters.items()) for point in points}:
        search.tell(told(ask(search)))
