"""WidthTuner: a search for callers who train themselves, in the way of Optuna: ask, train, tell.

It puts the parts of a search together as `search.orchestrator` does, without a runner: the caller is the runner. Trials
are neither paused nor screened, and no final training follows; networks are cut from the dense one.
"""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from configs.loading import RUN_FILE, check_resumed
from configs.schema import RunConfig
from pruning.base import METHODS
from pruning.checkpoint import load, to_bytes
from pruning.export import export_network
from runners.config import LatencyConfig, RunnerConfig
from runners.training.compute_format import PLAIN, StepTiming
from runners.training.dense import weights_digest
from runners.trial import EpochReport, Trial, TrialResult, TrialState
from search.callbacks import CallbackList, SearchCallback
from search.environment import Environment, Plan
from search.library.calibration import Calibration, untrained
from search.library.prune import Pruned, absolute, cut, cutting_method
from search.problem import Problem
from search.reporting.page.report import write_html
from search.reporting.picture import write_png
from search.reporting.rows import write_csv
from search.results.loading import RESULT
from search.results.pareto import ParetoFront
from search.results.result import DenseResult, SearchResult
from search.results.serialization import trial_result_to_dict
from search.schedulers.asha import MultiObjectiveASHA
from search.schedulers.final_training import FinalTraining
from search.schedulers.screening import Screening
from search.searchers.candidate_space import CandidateSpace
from search.searchers.optuna_searcher import OptunaSearcher, TrialCounts
from search.storage import run_folder
from search.storage.checkpoints import CheckpointFolder
from search.storage.pending import PendingTrials
from search.tracking.mlflow_tracker import MlflowTracker
from search.tuner import Tuner
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.files import write_atomically
from spaces.space import ModelSpec, SpaceConfig, describe
from spaces.zoo.inputs import taking_inputs, taking_packed

# Settings of a search in which the caller trains: no training, no runner, and nothing that asks for more training.
LEFT_TO_THE_CALLER: Mapping[str, Any] = {
    "weights": "given",
    "rungs": "none",
    "screen": "none",
    "final_epochs": "none",
    "inherit": False,
    "train": untrained(torch.device("cpu")),
    "runner": RunnerConfig("local"),
    "latency": LatencyConfig("none"),
}


class TellError(SlimfrontError):
    """A score or a network that a trial cannot have."""


@dataclass(eq=False)
class AskedTrial:
    """A trial that the caller trains.

    Attributes:
        number: of the trial in its search.
        method: name of the method that cuts its network.
    """

    number: int
    method: str
    _trial: Trial = field(repr=False)
    _tuner: "WidthTuner" = field(repr=False)
    _pruned: Pruned | None = field(default=None, repr=False)
    _began: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def pruned(self) -> Pruned:
        """The network with its cost and its selection; cut when it is first asked for."""
        if self._pruned is None:
            self._pruned = self._tuner._cut(self._trial)
        return self._pruned

    def network(self) -> nn.Module:
        """Return the narrow network with the weights it inherits, which the caller trains in place."""
        return self.pruned.net


class WidthTuner:
    """Proposes narrow versions of a live network, and is told how good they became.

    Every search begins with the three baselines (`l2` with uniform widths, `di` with its own and with uniform ones).
    The run folder holds what that of a search holds: study, weights, front, report, MLflow; a folder that holds a
    search goes on with it. Use it as a context manager, or call `finish` at the end.

    Args:
        net: dense network with trained weights; not changed.
        images: batches for statistics, as in `search.prune`.
        budget: limit on FLOPs, parameters, activations or the size of a safetensors file, or several that must all
            hold; `targets` as in `--targets`.
        dense_score: of `net`, by the caller's measure.
        method: comma-separated methods that cut without training.
        trials: number of trials; a higher one for a folder that holds a search adds some.
        folder: run folder; empty takes a fresh one under ./runs.
        seed: of the proposals.
        space: bounds of the widths.
        track: whether MLflow records the search.
        callbacks: observe the search.

    Raises:
        SlimfrontError: as `search.prune` does, and for a folder that holds another search.
    """

    def __init__(
        self,
        net: nn.Module,
        images: Any,
        budget: str | Sequence[str] = "50%",
        *,
        dense_score: float,
        method: str = "di",
        targets: str = "",
        trials: int = 12,
        folder: str | Path = "",
        seed: int = 0,
        space: SpaceConfig | None = None,
        track: bool = True,
        callbacks: Sequence[SearchCallback] = (),
    ) -> None:
        place = Path(folder) if folder else Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{type(net).__name__}"
        goes_on = (place / RUN_FILE).is_file()
        config = RunConfig(
            budget=(budget,) if isinstance(budget, str) else tuple(budget),
            targets=targets,
            model=type(net).__name__,
            method=method,
            trials=trials,
            seed=seed,
            space=space or SpaceConfig(),
            out="" if goes_on else str(place),
            resume=str(place) if goes_on else "",
            **LEFT_TO_THE_CALLER,
        )
        check_resumed(config)
        for name in config.methods:
            cutting_method(name)
        self._began, self._dense_score = time.perf_counter(), _score(dense_score)
        self._calibration = Calibration.of(net, images, config.space)
        self._prepared: dict[str, Any] = {}
        self._environment = environment = _environment(config, self._calibration, place)
        problem = environment.problem
        with ExitStack() as stack:
            opened = stack.enter_context(run_folder.opened(environment))
            opened.storage.check_fingerprint(run_folder.DENSE_WEIGHTS, weights_digest(net))
            self._tracker = MlflowTracker(place, config) if track else None
            self._callback = CallbackList([*([self._tracker] if self._tracker else []), *callbacks])
            candidates, pending = CandidateSpace(problem), PendingTrials()
            self._history = opened.history
            self._tuner = Tuner(
                history=opened.history,
                pending=pending,
                searcher=OptunaSearcher(candidates, opened.history, pending, opened.stored),
                scheduler=MultiObjectiveASHA(problem, candidates.objective_cost, opened.history.results),
                final_training=FinalTraining(candidates, 0),
                screening=Screening(problem, 1, opened.history.results),
                storage=opened.storage,
                checkpoints=CheckpointFolder(place),
                callback=self._callback,
            )
            total = TrialCounts.of(problem, opened.stored).total
            self._callback.on_search_start(Plan(environment).remaining(opened.history.searched, total))
            self._callback.on_dense_evaluated(self._dense_score, problem, opened.history.results)
            self._open = stack.pop_all()
        self._finished: SearchResult | None = None

    def __enter__(self) -> Self:
        """Return the tuner."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the search; after an error it stays as it is recorded, and goes on from its folder."""
        if kind is None:
            self.finish()
        else:
            self._tuner.close()
            self._callback.on_search_abort()
            self._open.close()

    def __iter__(self) -> Iterator[AskedTrial]:
        """Yield trials until there are no more; tell each of them before the next."""
        while (trial := self.ask()) is not None:
            yield trial

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._environment.folder

    @property
    def front(self) -> ParetoFront:
        """The front of the trials that were told so far."""
        return self._history.front

    def ask(self) -> AskedTrial | None:
        """Return the next trial, or None when all are asked for; several may be open at once."""
        trial = self._tuner.ask()
        return None if trial is None else AskedTrial(trial.number, trial.method, trial, self)

    def tell(
        self, trial: AskedTrial, score: float | None, *, network: nn.Module | None = None, error: str = ""
    ) -> None:
        """Record how good a trial's network became; its weights go to the run folder.

        Args:
            score: higher is better, in [0, 1]; None or NaN records the trial as failed.
            network: the trained network; None takes the one that `trial.network()` gave.
            error: why the trial failed.

        Raises:
            TellError: a score out of range, or a network of another cost than the trial's.
            StudyError: the trial was told already.
        """
        seconds = time.perf_counter() - trial._began
        if score is None or not math.isfinite(score):
            reason = error or f"the score is {score}"
            self._tuner.tell(TrialResult(trial._trial, TrialState.FAILED, seconds=seconds, error=reason))
            return
        net, pruned, space = network or trial.network(), trial.pruned, self._calibration.space
        packed = taking_packed(copy.deepcopy(net), self._calibration.packing)
        if not (counted := count_cost(packed, space.input_shape)).agrees(pruned.cost):
            raise TellError(
                f"the network of trial {trial.number} costs {pruned.cost}, and the one that is told {counted}; train "
                "the network that trial.network() gave, or a copy of it"
            )
        checkpoint = to_bytes(net, None, pruned.widths)
        result = TrialResult(
            trial._trial,
            TrialState.COMPLETE,
            accuracy=_score(score),
            cost=dataclasses.replace(counted, size=len(checkpoint)),
            widths=pruned.widths,
            curve=(EpochReport(trial.number, 1, score, seconds),),
            seconds=seconds,
            train_seconds=seconds,
            checkpoint=checkpoint,
        )
        self._tuner.tell(result)

    def load(self, member: TrialResult) -> nn.Module:
        """Return the network of a result, e.g. of a member of the front, with its trained weights on the CPU."""
        return load(self.folder / member.path, taking_inputs(copy.deepcopy(self._calibration.net)).cpu()).eval()

    def finish(self) -> SearchResult:
        """Write the front and the report to the run folder, end the record in MLflow, and return the result."""
        if self._finished is not None:
            return self._finished
        self._tuner.close()
        environment, problem = self._environment, self._environment.problem
        result = SearchResult(
            config=dataclasses.asdict(environment.config),
            budgets=problem.budgets,
            dense=DenseResult(self._dense_score, None, problem.space.dense_cost),
            results=tuple(self._history.results),
            targets=problem.targets,
            space={"groups": describe(problem.space.variable), "input_shape": list(problem.space.input_shape)},
            seconds=time.perf_counter() - self._began,
            folder=str(self.folder),
        )
        self._finished = result = self._write(result)
        tracking = self._tracker.command() if self._tracker else ""
        self._callback.on_search_end(result, self.folder, tracking)
        self._open.close()
        return result

    def _cut(self, trial: Trial) -> Pruned:
        """Cut the network of a trial; the statistics of its method are gathered once."""
        method = self._calibration.suited(METHODS[trial.method](**trial.settings))
        context = self._calibration.context(trial.seed, self._prepared.get(trial.method))
        pruned = cut(self._calibration, method, trial.goal, context)
        self._prepared[trial.method] = context.prepared
        return pruned

    def _write(self, result: SearchResult) -> SearchResult:
        paths = {"result": RESULT, "front table": "front.csv", "picture": "front.png", "report": "report.html"}
        for member in result.reported:
            place = f"front/trial-{member.stem}"
            widths = member.widths or self._environment.problem.space.full
            shape = self._environment.problem.space.input_shape
            export_network(self.load(member), None, widths, shape, self.folder / place, program=False)
            figures = trial_result_to_dict(dataclasses.replace(member, curve=()))
            (self.folder / place / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            paths |= {"networks": "front"} | ({"chosen": place} if result.is_chosen(member) else {})
        result = dataclasses.replace(result, paths=paths)
        write_csv(result, self.folder / paths["front table"])
        write_png(result, self.folder / paths["picture"])
        write_html(result, self.folder / paths["report"])
        write_atomically(self.folder / paths["result"], result.to_json().encode())
        return result


def _score(score: float) -> float:
    if not 0 <= score <= 1:
        raise TellError(f"score {score} is not in [0, 1], as an accuracy is; scale it so, e.g. 1 / (1 + loss)")
    return float(score)


def _environment(config: RunConfig, calibration: Calibration, folder: Path) -> Environment:
    absolute(config.budgets, calibration.space)
    threads = torch.get_num_threads()
    return Environment(
        problem=Problem.resolve(config, calibration.space),
        data=calibration.data,
        spec=ModelSpec(config.model, calibration.data.num_classes, calibration.space.input_shape),
        net=calibration.net,
        weighted=True,
        folder=folder,
        device=torch.device("cpu"),
        runner="local",
        workers=1,
        steps=StepTiming(PLAIN, 0.0, 0.0, threads),
        threads=threads,
    )
