"""A search with screening over closed-form trials."""

import dataclasses
from typing import Any

from chain_space import chain

from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner
from runners.trial import EpochReport, TrainingSegment, Trial, TrialResult, TrialState
from search.schedulers.screening import Screened
from search.searchers.candidate_space import CandidateSpace, StudySettings
from search.searchers.initial_design import Starts
from search.tuner import Study
from spaces.budget import Budget
from spaces.space import SearchSpace

BENCH: Any = None  # formulas need none
SPACE = chain(groups=6, width=64)
BUDGETS = [Budget("flops", 120_000)]


def needs(space: SearchSpace = SPACE) -> SaturatingAccuracy:
    return SaturatingAccuracy(space, rates={group.name: 1.0 + i for i, group in enumerate(space.variable)})


def study_of(trials: int = 16, methods: tuple[str, ...] = ("l2",), **changes: Any) -> Study:
    settings = {"sampler": "random", "lowest_fraction": 0.2, "allocation": "search", **changes}
    return Study(StudySettings(methods, trials=trials, **settings), SPACE, BUDGETS)


class Watched(Screened):
    """Counts what is given out, by epochs."""

    def __init__(self, study: Study, size: int) -> None:
        super().__init__(study, size)
        self.given: list[Trial] = []

    def ask(self) -> Trial | None:
        if (trial := super().ask()) is not None:
            self.given.append(trial)
        return trial

    @property
    def compared(self) -> list[Trial]:
        return [each for each in self.given if each.segment is not None and each.segment.end == 0]


def searched(size: int, study: Study | None = None, noise: float = 0.0, epochs: int = 2) -> Watched:
    trials = Watched(study or study_of(), size)
    SimulatedRunner(outcome=needs(), epochs=epochs, noise=noise).run(trials, BENCH)
    return trials


def told(trial: Trial, **changes: Any) -> TrialResult:
    """Return what the formula gives of a trial, after no epoch a half of it."""
    final = needs()(trial)
    accuracy = final.accuracy / 2 if trial.segment == TrainingSegment(0) else final.accuracy
    curve = (EpochReport(trial.number, 0, final.accuracy / 2, 0.5),)
    state = TrialState.COMPLETE
    result = TrialResult(trial, state, accuracy, final.cost, final.widths, curve, seconds=2.0, train_seconds=1.0)
    return dataclasses.replace(result, **changes)


def planned(study: Study) -> None:
    """Work off what was planned, so that the next candidate is proposed."""
    settings = study.settings
    starts = Starts(CandidateSpace(settings, SPACE, study.budgets))
    for _ in (*starts.baselines(settings.trials), *starts.warm_starts(settings.trials)):
        trial = study.ask()
        assert trial is not None
        study.tell(told(trial))
