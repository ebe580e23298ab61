"""What the golden runs know of the project: simulated searches, real ones and the command line as plain facts.

This is the only file here that names classes of the project. What comes out of it has words of its own, so that facts
can be compared when the project's words change.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chain_space import chain
from made_up_latency import CONDITIONS, model, reading, refused
from tiny_search import tiny_config

import runners.local
from configs.loading import parse_flags
from configs.schema import RunConfig
from runners.evaluation.screening import automatic_pool_size
from runners.local import LocalRunner
from runners.simulated.runner import SaturatingAccuracy, SimulatedRunner, _simulate
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search import run
from search.cli import main as command_line
from search.latency.predictor import LatencyPredictor
from search.latency.queue import MeasurementQueue, restore_readings
from search.problem import Problem
from search.reporting.statements import ending
from search.results.pareto import measured
from search.results.rank_correlation import PROXY, SCREENED, UNSCREENED
from search.results.result import DenseResult, SearchResult, best_at_text
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.final_training import FinalTraining
from search.schedulers.screening import Screening
from search.schedulers.segments import KEPT_AFTER, NOT_CONTINUED
from search.schedulers.stopping import TimeLimit
from search.searchers.candidate_space import CandidateSpace
from search.searchers.optuna_searcher import OptunaSearcher, TrialCounts
from search.storage.checkpoints import CheckpointStore
from search.storage.history import History
from search.storage.pending import PendingTrials
from search.storage.study_storage import StudyStorage
from search.tuner import Tuner
from spaces.space import SearchSpace
from spaces.widths import Widths

__all__ = ["command_line", "search_for_real", "simulate"]

NOTES = {
    SCREENED: "best of",
    PROXY: "proxy",
    UNSCREENED: "compared no more",
    KEPT_AFTER: "kept after",
    NOT_CONTINUED: "not continued",
}


def _pool_size(config: RunConfig) -> int:
    pool = config.screening_pool
    trained_images = 1000 * config.train.epochs * config.trials
    return automatic_pool_size(trained_images, config.trials, 250) if pool is None else pool


def simulate(flags: str, sim: Mapping[str, Any], folder: Path | None, *, again: bool = False) -> dict[str, Any]:
    """Search by formula and return the facts.

    Args:
        flags: of the command line.
        sim: what is simulated: groups, width, noise, quality, slowness, failing, passing, workers, stop, sensitivities.
        folder: keeps the record; None keeps it in memory.
        again: go on with what is recorded there, under the flags of now.
    """
    config, space = parse_flags(flags.split()), chain(sim.get("groups", 6), sim.get("width", 64))
    config = dataclasses.replace(config, resume="again" if again else "")
    problem = Problem.resolve(config, space)
    predictor = LatencyPredictor(model(space), problem) if problem.needs_latency else None
    clock = SimpleNamespace(now=0.0)
    limit = TimeLimit(config.time_limit, config.time_limit_seconds, lambda: clock.now)
    log = _Log(space, clock, sim)
    url = f"sqlite:///{folder / 'study.db'}" if folder else ""
    storage = StudyStorage(url, "slimfront", problem, resumed=again) if url else None
    stored = storage.read() if storage is not None else []
    history = History(problem, [trial.result for trial in stored if trial.result is not None])
    found = len(history.results)
    candidates = CandidateSpace(problem, predictor)
    if predictor is not None:
        restore_readings(history, predictor, CONDITIONS)
    left = TrialCounts.of(problem, stored).total - found > 0
    sensitivities = {group.name: 0.3 / (1 + i) for i, group in enumerate(space.variable)}
    pending = PendingTrials()
    searcher = OptunaSearcher(
        candidates,
        history,
        pending,
        stored,
        sensitivities=sensitivities if sim.get("sensitivities") and left else None,
    )
    queue = None
    if predictor is not None:
        queue = MeasurementQueue(history, storage, predictor, log.read, sim.get("workers", 1))
    tuner = Tuner(
        history=history,
        pending=pending,
        searcher=searcher,
        scheduler=MultiObjectiveASHA(problem, candidates.objective_cost, history.results),
        screening=Screening(problem, _pool_size(config), history.results),
        final_training=FinalTraining(candidates, problem.config.final_training),
        stop=limit,
        queue=queue,
        storage=storage,
        checkpoints=_Paths() if predictor else CheckpointStore(),
    )
    log.source, log.history = tuner, history
    try:
        _work_off(log, space, config.train.epochs, sim)
    except KeyboardInterrupt:
        log.told.append("stopped")
    tuner.close()
    dense = DenseResult(0.95, 0.94, space.dense_cost)
    plain = dataclasses.asdict(config)
    result = SearchResult(
        plain,
        problem.budgets,
        dense,
        history.results,
        targets=problem.targets,
        time_limited=tuner.stopped,
        latency={},
    )
    facts = {
        "taken up": found,
        "handed out": log.given,
        "measured": log.reads,
        "front and hypervolume after every trial": log.told,
        "repeats": searcher.repeats,
        "asked for": tuner.total,
        "left": [tuner.remaining, tuner.unfinished],
        "ending": ending(result),
        "best of the front": getattr(history.front.best(problem.budgets), "label", None),
        "best at targets": [getattr(history.best_at(target), "label", None) for target in problem.targets],
    }
    return facts | _facts(result, list(space.full), {})


def search_for_real(folder: Path, flags: Sequence[tuple[str, Any]], epochs: int) -> dict[str, Any]:
    """Search with real training and return the facts; the seconds of trials are made up, since methods go by them."""
    train = dataclasses.replace(tiny_config(folder).train, epochs=epochs)
    config = tiny_config(folder, train=train, **dict(flags))
    runners.local.LocalRunner = _Steady  # type: ignore[misc]
    result = run(config)
    names = [group["group"] for group in result.space["groups"]]
    facts = _facts(result, names, {"digits": 6})
    retrained = {"over all budgets": result.retrained_baseline}
    retrained |= {f"at {label}": network for label, network in result.target_baselines.items()}
    facts["retrained baselines"] = [
        [name, _network(network, names, 6)] for name, network in retrained.items() if network is not None
    ]
    return facts | {"dense": [round(result.dense.val_accuracy, 6), round(result.dense.test_accuracy or 0, 6)]}


def _facts(result: SearchResult, names: Sequence[str], how: Mapping[str, int]) -> dict[str, Any]:
    chosen, compared, before = result.chosen, result.baseline_comparison, result.screening_audit
    return {
        "groups": " ".join(names),
        "trials": [_row(trial_result, names, **how) for trial_result in result.results],
        "front": " ".join(network.label for network in result.front),
        "reported": " ".join(network.label for network in result.reported),
        "chosen": None if chosen is None else chosen.label,
        "best at": [[network.label, best_at_text(result, network)] for network in result.reported],
        "comparison": compared.statement,
        "baseline": [compared.baseline_trial, compared.won, compared.dominated, compared.baselines],
        "audit of rungs": [dataclasses.astuple(audit) for audit in result.rung_audits],
        "audit before training": None if before is None else dataclasses.astuple(before),
    }


def _row(result: TrialResult, names: Sequence[str], digits: int = 12) -> dict[str, Any]:
    trial = result.trial
    return {
        "number": trial.number,
        "method": trial.method,
        "seed": trial.seed,
        "baseline": trial.baseline == "uniform",
        "settings": dict(trial.settings),
        "training": dict(trial.training),
        "goal": [[budget.quantity, budget.limit] for budget in trial.goal.budgets],
        "asked widths": _widths(trial.goal.widths, names),
        "intermediate networks": [_network(network, names, digits) for network in result.intermediate_networks],
        **_network(result, names, digits),
    }


def _network(result: TrialResult, names: Sequence[str], digits: int) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, digits)

    confirmation = result.confirmation
    return {
        "label": result.label,
        "state": str(result.state),
        "accuracy": rounded(result.accuracy),
        "test": rounded(result.test_accuracy),
        "flops, params": None if result.cost is None else [result.cost.flops, result.cost.params],
        "widths": _widths(result.widths, names),
        "curve": [[report.epoch, rounded(report.accuracy)] for report in result.curve],
        "rungs": [[epochs, rounded(accuracy)] for epochs, accuracy in result.rungs],
        "note": {NOTES.get(key, key): value for key, value in result.note.items() if "seconds" not in key},
        "error": result.error,
        "weights": result.checkpoint is not None or bool(result.path),
        "latency": [[reading["refused"], reading["seconds"], reading["high"]] for reading in result.latency],
        "confirmation": None
        if confirmation is None
        else [confirmation.seeds, [rounded(value) for value in confirmation.accuracies], confirmation.at],
    }


def _widths(widths: Mapping[str, int] | None, names: Sequence[str]) -> list[int] | None:
    return None if widths is None else [widths[name] for name in names]


class _Paths(CheckpointStore):
    """Gives every network a path, as if its weights were on disk: what has none is not measured."""

    def keep(self, result: TrialResult) -> TrialResult:
        return result.map_networks(lambda own: dataclasses.replace(own, path=f"{own.stem}-e{own.trained}"))


class _Log:
    """Stands between the runner and the search: notes what passes, and makes things happen on the way."""

    def __init__(self, space: SearchSpace, clock: Any, sim: Mapping[str, Any]) -> None:
        self.space, self.clock, self.sim = space, clock, sim
        self.source: Any = None
        self.history: Any = None
        self.given, self.told, self.reads = list[str](), list[Any](), list[str]()
        self._seen, self._cut = set[str](), set[int]()

    def ask(self) -> Trial | None:
        if len(self.told) >= self.sim.get("stop", 10_000):
            raise KeyboardInterrupt
        trial = self.source.ask()
        if trial is not None:
            leg = trial.segment
            part = "whole" if leg is None else f"{leg.trained}+{leg.epochs}"
            part = f"pool of {len(trial.pool)}" if trial.pool else part
            self.given.append(f"{trial.number} {trial.method} {part}")
        return trial

    def report(self, report: EpochReport) -> bool:
        self.clock.now += 1.0  # a second
        go_on = self.source.report(report)
        stops = report.trial in self.sim.get("stopped", ()) and report.epoch > 1 and report.trial not in self._cut
        self._cut |= {report.trial} if stops else set()
        return go_on and not stops

    def tell(self, result: TrialResult) -> None:
        if result.state is not TrialState.FAILED and not result.trial.pool:
            result = dataclasses.replace(result, checkpoint=b"weights")
            if result.trial.number % 3 == 1 and self.sim.get("passing"):
                result = dataclasses.replace(result, intermediate_networks=tuple(self._passed(result)))
        self.source.tell(result)
        self.told.append([len(self.history.front), self.history.front.hypervolume(self._reference)])

    @property
    def _reference(self) -> float:
        return (
            1e-6 * self.space.dense_cost.params if self.history.front.axis == "latency" else self.space.dense_cost.flops
        )

    def _passed(self, result: TrialResult) -> Iterator[TrialResult]:
        """Yield two wider networks, the wider one first."""
        for number, more in ((1, 9), (2, 3)):
            widths = Widths({k: min(v, (result.widths or v)[k] + more) for k, v in self.space.full.items()})  # type: ignore[index]
            accuracy = (result.accuracy or 0.0) + 0.002 * (more - 4)
            curve = (EpochReport(result.trial.number, number, accuracy, 0.1 * number),)
            changes = {"accuracy": accuracy, "widths": widths, "cost": self.space.cost(widths), "curve": curve}
            yield dataclasses.replace(result, **changes, intermediate_index=number, rungs=())

    def read(self, network: TrialResult) -> list[Any]:
        number, first = network.trial.number, network.label not in self._seen
        self._seen.add(network.label)
        self.reads.append(f"{network.label} after {len(self.history.results)}")
        busy = first and number % 4 == 3
        return [refused(network) if busy else reading(network, 1 + 0.05 * (number * 7 % 5 - 2))]


def _work_off(log: _Log, space: SearchSpace, epochs: int, sim: Mapping[str, Any]) -> None:
    rates = {group.name: 1.0 + i for i, group in enumerate(space.variable)}
    formula = SaturatingAccuracy(space, rates, quality=sim.get("quality", {}), slowness=sim.get("slowness", {}))

    def outcome(trial: Trial) -> Any:
        if trial.number in sim.get("failing", ()):
            raise ValueError(f"made up for trial {trial.number}")
        return formula(trial)

    noise, workers = sim.get("noise", 0.0), sim.get("workers", 1)
    if workers == 1:
        SimulatedRunner(outcome=outcome, epochs=epochs, noise=noise).run(log, None)  # type: ignore[arg-type]
        return
    running: list[Any] = []
    for turn in itertools.count():
        while len(running) < workers and (trial := log.ask()) is not None:
            running.append([_simulate(trial, outcome, epochs, noise), None])
        if not running:
            return
        evaluation = running[turn % len(running)]
        try:
            evaluation[1] = log.report(evaluation[0].send(evaluation[1]))
        except StopIteration as end:
            running.remove(evaluation)
            log.tell(end.value)


class _Steady(LocalRunner):
    """Tells made-up seconds in place of those that passed."""

    def run(self, ask_tell: Any, workbench: Any) -> None:
        def tell(result: TrialResult) -> None:
            seconds = 1.0 + (result.cost.params / 1000 if measured(result) and result.cost else 0.0)
            ask_tell.tell(dataclasses.replace(result, seconds=seconds, train_seconds=seconds))

        super().run(SimpleNamespace(ask=ask_tell.ask, report=ask_tell.report, tell=tell), workbench)  # type: ignore[arg-type]
