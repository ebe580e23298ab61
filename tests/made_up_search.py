"""A search without a network: a problem over a made-up space, and a tuner with its parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.schema import RunConfig
from runners.base import AskTell
from runners.config import TrainConfig
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.callbacks import Progress, SearchCallback
from search.interrupts import Interrupts
from search.latency.predictor import LatencyPredictor
from search.latency.queue import MeasurementQueue, Read
from search.problem import Problem
from search.results.pareto import ParetoFront
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.final_training import FinalTraining
from search.schedulers.screening import Screening
from search.searchers.candidate_space import CandidateSpace
from search.searchers.optuna_searcher import OptunaSearcher
from search.storage.checkpoints import CheckpointStore
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.storage.study_storage import StudyStorage
from search.tuner import Tuner
from spaces.budget import Budget
from spaces.space import SearchSpace


def problem_of(
    space: SearchSpace,
    budgets: Sequence[Budget | str],
    methods: Sequence[str] = ("l2",),
    *,
    rungs: Sequence[int] = (),
    targets: Sequence[Budget] = (),
    **settings: Any,
) -> Problem:
    """Return the problem of a search for these methods, under these budgets."""
    training = {"train": TrainConfig(epochs=rungs[-1])} if rungs else {}
    config = RunConfig(
        budget=tuple(map(str, budgets)),
        method=",".join(methods),
        rungs=",".join(map(str, rungs)) or "none",
        targets=",".join(map(str, targets)),
        **({"final_epochs": "none"} | training | settings),
    )
    return Problem.resolve(config, space)


@dataclass
class MadeUpSearch(AskTell):
    """A tuner and its parts; hands trials out and takes results as the tuner does."""

    tuner: Tuner
    problem: Problem
    searcher: OptunaSearcher
    history: History
    storage: StudyStorage | None

    def ask(self) -> Trial | None:
        return self.tuner.ask()

    def report(self, report: EpochReport) -> bool:
        return self.tuner.report(report)

    def tell(self, result: TrialResult) -> None:
        self.tuner.tell(result)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        return self.history.results

    @property
    def front(self) -> ParetoFront:
        return self.history.front


def search_of(
    problem: Problem,
    predictor: LatencyPredictor | None = None,
    *,
    url: str = "",
    name: str = "slimfront",
    size: int = 1,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
    search_stop: Callable[[], bool] = lambda: False,
    read: Read | None = None,
    window: int = 1,
    callback: SearchCallback | None = None,
    checkpoints: CheckpointStore | None = None,
    sensitivities: Mapping[str, float] | None = None,
    even: bool = True,
    prepare: Callable[[History], None] | None = None,
    interrupts: Interrupts | None = None,
) -> MadeUpSearch:
    """Put a tuner together, as the orchestrator does.

    Args:
        url: of a storage; empty keeps the search in memory. A stored search may have had other budgets.
        size: of screening pools.
        workers: among which a pool is divided.
        read: measures latency; None leaves it out.
        window: networks that wait to be measured before running trials are waited for.
        prepare: called with the history of an earlier process.
    """
    storage = StudyStorage(url, name, problem, resumed=True) if url else None
    stored = storage.read() if storage is not None else []
    history = History(problem, [trial.result for trial in stored if trial.result is not None])
    if prepare is not None:
        prepare(history)
    candidates, pending = CandidateSpace(problem, predictor), PendingTrials()
    searcher = OptunaSearcher(candidates, history, pending, stored, sensitivities=sensitivities, even=even)
    queue = None
    if read is not None and predictor is not None:
        queue = MeasurementQueue(history, storage, predictor, read, window, callback or SearchCallback())
    tuner = Tuner(
        history=history,
        pending=pending,
        searcher=searcher,
        scheduler=MultiObjectiveASHA(problem, candidates.objective_cost, history.results),
        final_training=FinalTraining(candidates, problem.config.final_training),
        screening=Screening(problem, size, history.results, workers),
        stop=stop,
        search_stop=search_stop,
        queue=queue,
        storage=storage,
        checkpoints=checkpoints or CheckpointStore(),
        interrupts=interrupts or Interrupts(),
        callback=callback or SearchCallback(),
    )
    return MadeUpSearch(tuner, problem, searcher, history, storage)


class Watched(AskTell):
    """Remembers the trials that a search hands out."""

    def __init__(self, search: MadeUpSearch) -> None:
        self.search = search
        self.given: list[Trial] = []

    def ask(self) -> Trial | None:
        if (trial := self.search.ask()) is not None:
            self.given.append(trial)
        return trial

    def report(self, report: EpochReport) -> bool:
        return self.search.report(report)

    def tell(self, result: TrialResult) -> None:
        self.search.tell(result)

    @property
    def results(self) -> tuple[TrialResult, ...]:
        return self.search.results

    @property
    def compared(self) -> list[Trial]:
        """The candidates that were compared before any training."""
        return [candidate for trial in self.given for candidate in trial.pool]

    @property
    def epochs(self) -> int:
        """Number of epochs of training of all segments that were handed out."""
        return sum(trial.segment.epochs for trial in self.given if trial.segment and not trial.pool)


def result_of(trial: Trial, space: SearchSpace, **changes: Any) -> TrialResult:
    """Return what a runner would: accuracy grows with the width of the narrowest layer."""
    widths = trial.goal.widths or space.smallest
    accuracy = 1 - 1 / (1 + min(widths.values()))
    result = TrialResult(trial, TrialState.COMPLETE, accuracy, space.cost(widths), widths, seconds=1.5)
    return replace(result, **changes)


def drain(search: MadeUpSearch, most: int = 10_000) -> list[Trial]:
    """Ask for trials and tell the results of `result_of` until there are no more; return the trials."""
    trials = []
    while len(trials) < most and (trial := search.ask()) is not None:
        trials.append(trial)
        search.tell(result_of(trial, search.problem.space))
    return trials


class Listener(SearchCallback):
    """Calls a function with every finished trial."""

    def __init__(self, listen: Callable[[TrialResult, Progress], None]) -> None:
        self._listen = listen

    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        self._listen(result, progress)
