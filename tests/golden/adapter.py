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
from made_up_latency import CONDITIONS, guide, reading, refused
from tiny_search import tiny_config

import runners.local
from configs.loading import parse_flags
from configs.validation import validate
from pruning.base import parse_methods
from runners.local import LocalRunner
from runners.simulated import SaturatingAccuracy, SimulatedRunner, _simulate
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search import run
from search.archive import InMemory
from search.cli import main as command_line
from search.latency_guide import latency_counts
from search.latency_slots import Timed, take_up
from search.legs import KEPT_AFTER
from search.pareto import measured
from search.result import DenseResult, SearchResult, best_at_text
from search.screening import Screened
from search.screening_audit import SCREENED, SCREENED_ACCURACY, UNSCREENED
from search.setup import fixed_settings, screened_at_once, study_settings
from search.stopping import NOT_CONTINUED
from search.study import Study
from search.time_limit import Deadline, TimeLimited, ending
from spaces.space import SearchSpace
from spaces.targets import parse_targets
from spaces.widths import Widths

__all__ = ["command_line", "search_for_real", "simulate"]

NOTES = {
    SCREENED: "best of",
    SCREENED_ACCURACY: "accuracy before training",
    UNSCREENED: "compared no more",
    KEPT_AFTER: "kept after",
    NOT_CONTINUED: "not continued",
}


def simulate(flags: str, sim: Mapping[str, Any], folder: Path | None, *, again: bool = False) -> dict[str, Any]:
    """Search by formula and return the facts.

    Args:
        flags: of the command line.
        sim: what is simulated: groups, width, noise, quality, slowness, failing, passing, workers, stop, sensitivities.
        folder: keeps the record; None keeps it in memory.
        again: go on with what is recorded there, under the flags of now.
    """
    config = parse_flags(flags.split()).config
    texts, space = validate(config), chain(sim.get("groups", 6), sim.get("width", 64))
    budgets = tuple(budget.resolve(space.dense_cost) for budget in texts)
    methods = tuple(parse_methods(config.method))
    tools = SimpleNamespace(guide=guide(space, *budgets)) if latency_counts(config, budgets) else None
    images = SimpleNamespace(train=range(1000), val=range(250))
    setup: Any = SimpleNamespace(config=config, fixed=fixed_settings(config, methods), latency=tools, data=images)
    setup.folder, setup.targets = folder or Path("nowhere"), parse_targets(config.targets)
    settings = dataclasses.replace(study_settings(setup), resumed=again, **({} if folder else {"storage": ""}))
    clock = SimpleNamespace(now=0.0)
    deadline = Deadline(config.time_limit, lambda: clock.now)
    study = Study(settings, space, budgets, archive=_Paths() if tools else None)
    found = len(study.results)
    trials = TimeLimited(study, deadline, Screened(study, screened_at_once(setup)))
    log = _Log(study, space, clock, sim)
    if tools:
        take_up(study, CONDITIONS)
    source = Timed(trials, study, log.read, sim.get("workers", 1)) if tools else trials
    if sim.get("sensitivities") and study.remaining > 0:
        study.learn_sensitivities({each.name: 0.3 / (1 + i) for i, each in enumerate(space.variable)})
    log.source = source
    try:
        _work_off(log, space, config.train.epochs, sim)
    except KeyboardInterrupt:
        log.told.append("stopped")
    study.close()
    dense = DenseResult(0.95, 0.94, space.dense_cost)
    plain = dataclasses.asdict(config)
    result = SearchResult(
        plain, budgets, dense, study.results, targets=study.targets, time_limited=trials.ended, latency={}
    )
    facts = {
        "taken up": found,
        "handed out": log.given,
        "measured": log.reads,
        "front and area after each": log.told,
        "repeats": study.repeats,
        "asked for": study.settings.trials,
        "left": [study.remaining, study.unfinished],
        "ending": ending(result),
        "best of the front": getattr(study.front.best(study.budgets), "label", None),
        "best at targets": [getattr(study.best_at(each), "label", None) for each in study.targets],
    }
    return facts | _facts(result, list(space.full), {})


def search_for_real(folder: Path, flags: Sequence[tuple[str, Any]], epochs: int) -> dict[str, Any]:
    """Search with real training and return the facts; the seconds of trials are made up, since methods go by them."""
    config = tiny_config(folder, **dict(flags))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
    runners.local.LocalRunner = _Steady  # type: ignore[misc]
    result = run(config)
    names = [group["group"] for group in result.space["groups"]]
    facts = _facts(result, names, {"digits": 6})
    control = {"control": result.control, **{f"control of {k}": v for k, v in result.target_controls.items()}}
    facts["controls"] = [[name, _network(each, names, 6)] for name, each in control.items() if each is not None]
    return facts | {"dense": [round(result.dense.val_accuracy, 6), round(result.dense.test_accuracy or 0, 6)]}


def _facts(result: SearchResult, names: Sequence[str], how: Mapping[str, int]) -> dict[str, Any]:
    chosen, compared, before = result.chosen, result.uniform_comparison, result.screening_audit
    return {
        "groups": " ".join(names),
        "trials": [_row(each, names, **how) for each in result.results],
        "front": " ".join(each.label for each in result.front),
        "reported": " ".join(each.label for each in result.reported),
        "chosen": None if chosen is None else chosen.label,
        "best at": [[each.label, best_at_text(result, each)] for each in result.reported],
        "comparison": compared.statement,
        "rival, won, beaten, arms": [compared.rival, compared.won, compared.beaten, compared.arms],
        "audit of rungs": [dataclasses.astuple(each) for each in result.proxy_audit],
        "audit before training": None if before is None else dataclasses.astuple(before),
    }


def _row(result: TrialResult, names: Sequence[str], digits: int = 12) -> dict[str, Any]:
    trial = result.trial
    return {
        "number": trial.number,
        "method": trial.method,
        "seed": trial.seed,
        "baseline": trial.arm == "uniform",
        "settings": dict(trial.settings),
        "training": dict(trial.training),
        "goal": [[each.quantity, each.limit] for each in trial.goal.budgets],
        "asked widths": _widths(trial.goal.widths, names),
        "passed": [_network(each, names, digits) for each in result.passed],
        **_network(result, names, digits),
    }


def _network(result: TrialResult, names: Sequence[str], digits: int) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, digits)

    again = result.confirmation
    return {
        "label": result.label,
        "state": str(result.state),
        "accuracy": rounded(result.accuracy),
        "test": rounded(result.test_accuracy),
        "flops, params": None if result.cost is None else [result.cost.flops, result.cost.params],
        "widths": _widths(result.widths, names),
        "curve": [[each.epoch, rounded(each.accuracy)] for each in result.curve],
        "parts": [[epochs, rounded(accuracy)] for epochs, accuracy in result.rungs],
        "note": {NOTES.get(key, key): value for key, value in result.note.items() if "seconds" not in key},
        "error": result.error,
        "weights": result.checkpoint is not None or bool(result.path),
        "latency": [[each["refused"], each["seconds"], each["high"]] for each in result.latency],
        "again": None if again is None else [again.seeds, [rounded(each) for each in again.accuracies], again.at],
    }


def _widths(widths: Mapping[str, int] | None, names: Sequence[str]) -> list[int] | None:
    return None if widths is None else [widths[name] for name in names]


class _Paths(InMemory):
    """Gives every network a path, as if its weights were on disk: what has none is not measured."""

    def keep(self, result: TrialResult) -> TrialResult:
        return result.with_each(lambda each: dataclasses.replace(each, path=f"{each.stem}-e{each.trained}"))


class _Log:
    """Stands between the runner and the search: notes what passes, and makes things happen on the way."""

    def __init__(self, study: Study, space: SearchSpace, clock: Any, sim: Mapping[str, Any]) -> None:
        self.study, self.space, self.clock, self.sim, self.source = study, space, clock, sim, Any
        self.given, self.told, self.reads = list[str](), list[Any](), list[str]()
        self._seen, self._cut = set[str](), set[int]()

    def ask(self) -> Trial | None:
        if len(self.told) >= self.sim.get("stop", 10_000):
            raise KeyboardInterrupt
        trial = self.source.ask()
        if trial is not None:
            leg = trial.leg
            part = "whole" if leg is None else f"{leg.trained}+{leg.epochs}"
            self.given.append(f"{trial.number} {trial.method} {part}")
        return trial

    def report(self, report: EpochReport) -> bool:
        self.clock.now += 1.0  # a second
        go_on = self.source.report(report)
        stops = report.trial in self.sim.get("stopped", ()) and report.epoch > 1 and report.trial not in self._cut
        self._cut |= {report.trial} if stops else set()
        return go_on and not stops

    def tell(self, result: TrialResult) -> None:
        if result.state is not TrialState.FAILED and (result.trial.leg is None or not result.trial.leg.compares):
            result = dataclasses.replace(result, checkpoint=b"weights")
            if result.trial.number % 3 == 1 and self.sim.get("passing"):
                result = dataclasses.replace(result, passed=tuple(self._passed(result)))
        self.source.tell(result)
        self.told.append([len(self.study.front), self.study.front.hypervolume(self._reference)])

    @property
    def _reference(self) -> float:
        return (
            1e-6 * self.space.dense_cost.params if self.study.front.axis == "latency" else self.space.dense_cost.flops
        )

    def _passed(self, result: TrialResult) -> Iterator[TrialResult]:
        """Yield two wider networks, the wider one first."""
        for number, more in ((1, 9), (2, 3)):
            widths = Widths({k: min(v, (result.widths or v)[k] + more) for k, v in self.space.full.items()})  # type: ignore[index]
            accuracy = (result.accuracy or 0.0) + 0.002 * (more - 4)
            curve = (EpochReport(result.trial.number, number, accuracy, 0.1 * number),)
            changes = {"accuracy": accuracy, "widths": widths, "cost": self.space.cost(widths), "curve": curve}
            yield dataclasses.replace(result, **changes, waypoint=number, rungs=())

    def read(self, network: TrialResult) -> list[Any]:
        number, first = network.trial.number, network.label not in self._seen
        self._seen.add(network.label)
        self.reads.append(f"{network.label} after {len(self.study.results)}")
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
        each = running[turn % len(running)]
        try:
            each[1] = log.report(each[0].send(each[1]))
        except StopIteration as end:
            running.remove(each)
            log.tell(end.value)


class _Steady(LocalRunner):
    """Tells made-up seconds in place of those that passed."""

    def run(self, ask_tell: Any, workbench: Any) -> None:
        def tell(result: TrialResult) -> None:
            seconds = 1.0 + (result.cost.params / 1000 if measured(result) and result.cost else 0.0)
            ask_tell.tell(dataclasses.replace(result, seconds=seconds, train_seconds=seconds))

        super().run(SimpleNamespace(ask=ask_tell.ask, report=ask_tell.report, tell=tell), workbench)  # type: ignore[arg-type]
