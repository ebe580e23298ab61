"""Train the front again: how accurate its networks are over fresh seeds, and whether the chosen one beats the baseline.

The search has seen one training of each network, and has chosen networks whose training came out well. So every network
of the front is trained again from the dense network, with fresh seeds that are the same for all, by the runner of the
search, and every training is read on test once. Beside them the baseline is trained: uniform widths by L2 norm at the
FLOPs of the chosen network, inside the budgets too. The chosen network and its baseline come first, so that a user who
stops the retraining has their comparison; then come the best networks at the targets with their baselines.

A network is trained again with the method, the settings and the widths that it has, for all the epochs of a trial. A
network whose widths the method chose, or an intermediate one, is trained at the widths that it got; only a method that
takes no widths works again from budgets, which are the cost of that network. The files of the networks stay those that
the search found.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from typing_extensions import override

from pruning import checkpoint
from pruning.base import METHODS, Goal
from runners.base import RUNNERS, AskTell, RunnerError
from runners.data.splits import Split
from runners.evaluation.evaluate import SearchContext, evaluate
from runners.training.loop import accuracy
from runners.trial import Confirmation, EpochReport, Trial, TrialResult, TrialState, derive_seed
from search.callbacks import SearchCallback
from search.environment import Environment
from search.results.comparison import UNIFORM
from search.results.pareto import counted
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace, uniform_ratios

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainingPlan:
    """The trials that are trained again; their numbers and seeds do not count.

    Attributes:
        members: label of a front member -> the trial that trains it again.
        baseline: uniform widths at the FLOPs of the chosen network; None when the space has none so small, or the
            chosen network is of the baseline itself.
        first: groups of keys of trials that are compared side by side, and so are trained before the others.
        target_baselines: label of the best network at a target -> uniform widths at its FLOPs; without the chosen one.
    """

    members: Mapping[str, Trial]
    baseline: Trial | None
    first: tuple[tuple[str, ...], ...]
    target_baselines: Mapping[str, Trial] = field(default_factory=dict)

    @property
    def trials(self) -> dict[str, Trial]:
        """Every trial by its key, each once."""
        baselines = [*([self.baseline] if self.baseline else []), *self.target_baselines.values()]
        return {trial.key(): trial for trial in (*self.members.values(), *baselines)}

    def schedule(self, seeds: Sequence[int], number: int) -> list[Trial]:
        """Return every training in order, numbered from `number`: seed by seed within a group of trials."""
        waiting, groups = self.trials, []
        for keys in self.first:
            groups.append([waiting.pop(key) for key in dict.fromkeys(keys) if key in waiting])
        groups.append(list(waiting.values()))
        trainings = [(trial, seed) for group in groups for seed in seeds for trial in group]
        return [
            dataclasses.replace(trial, number=number + place, seed=seed)
            for place, (trial, seed) in enumerate(trainings)
        ]


def retraining_plan(result: SearchResult, space: SearchSpace) -> RetrainingPlan:
    """List what is trained again of a search."""
    members = {member.label: retraining_trial(member) for member in result.reported}
    chosen = result.chosen
    baseline = None if chosen is None else _baseline_at(chosen, result, space)
    best = [network for network in map(result.best_at, result.targets) if network is not None]
    target_baselines = {n.label: _baseline_at(n, result, space) for n in best if not result.is_chosen(n)}
    pairs = [] if chosen is None else [(members[chosen.label], baseline)]
    pairs += [(members[label], trial) for label, trial in target_baselines.items()]
    return RetrainingPlan(
        members,
        baseline,
        first=tuple(tuple(trial.key() for trial in pair if trial is not None) for pair in pairs),
        target_baselines={label: trial for label, trial in target_baselines.items() if trial is not None},
    )


def retraining_trial(network: TrialResult) -> Trial:
    """Return the trial that trains a network again: at its widths, or within its cost by a method that takes none."""
    trial, cost = network.trial, network.cost
    if trial.goal.widths is not None and not network.intermediate_index:
        return trial
    limits = [
        dataclasses.replace(budget, limit=getattr(cost, budget.quantity)) for budget in counted(trial.goal.budgets)
    ]
    widths = network.widths if METHODS[trial.method].takes_widths else None
    return dataclasses.replace(trial, goal=Goal(widths, tuple(limits)))


def _baseline_at(network: TrialResult, result: SearchResult, space: SearchSpace) -> Trial | None:
    """Return a baseline trial of the search with uniform widths at the FLOPs of a network; None when there is none."""
    baseline = next((found.trial for found in result.results if found.trial.baseline == UNIFORM), None)
    if baseline is None or network.trial.baseline == UNIFORM or network.cost is None:
        return None
    limits = (*counted(result.budgets), Budget("flops", network.cost.flops))
    try:
        widths = space.fit(uniform_ratios(space), limits)
    except BudgetError:  # a network that is not merely narrow may cost less than any of the space
        return None
    return dataclasses.replace(baseline, goal=Goal(widths, limits))


@dataclass(frozen=True)
class NetworkTester:
    """Reads the networks of trials on test.

    Attributes:
        dense: the network that they were cut from.
    """

    dense: nn.Module
    test: Split
    device: torch.device

    def __call__(self, result: TrialResult) -> float:
        """Return the top-1 accuracy, in [0, 1], of the weights that a result holds."""
        net = checkpoint.from_bytes(result.checkpoint or b"", self.dense)
        return accuracy(net, self.test, device=self.device)


class Retraining(AskTell):
    """Hands the trainings out, and reads each network on test once, when it comes back.

    Args:
        number: of the first trial.
        on_done: is called after every training with the numbers of trainings done and in all.
    """

    def __init__(
        self,
        plan: RetrainingPlan,
        seeds: Sequence[int],
        number: int,
        read: NetworkTester,
        on_done: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self._plan, self._read, self._on_done = plan, read, on_done
        self._waiting = plan.schedule(seeds, number)
        self._total = len(self._waiting)
        self._finished: dict[str, list[TrialResult]] = {key: [] for key in plan.trials}

    @override
    def ask(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    @override
    def report(self, report: EpochReport) -> bool:
        return math.isfinite(report.accuracy)

    @override
    def tell(self, result: TrialResult) -> None:
        if result.state is not TrialState.FAILED:
            result = dataclasses.replace(result, test_accuracy=self._read(result))
        finished = self._finished[result.trial.key()]
        finished.append(dataclasses.replace(result.with_checkpoints({}), intermediate_networks=()))
        finished.sort(key=lambda retrained: retrained.trial.number)  # workers end in any order
        self._on_done(sum(map(len, self._finished.values())), self._total)

    def confirmed(self, result: SearchResult) -> SearchResult:
        """Return the search with the confirmations that the trainings so far give."""
        members = [(member, self._plan.members[member.label]) for member in result.reported]
        changed = [
            dataclasses.replace(member, confirmation=self._confirmation(trial))
            for member, trial in members
            if self._finished[trial.key()]
        ]
        if self._plan.baseline is not None and any(self._finished.values()):
            result = dataclasses.replace(result, retrained_baseline=self._retrained(self._plan.baseline))
        target_baselines = {
            label: self._retrained(trial)
            for label, trial in self._plan.target_baselines.items()
            if self._finished[trial.key()]
        }
        return dataclasses.replace(result, target_baselines=target_baselines).with_results(changed)

    def _retrained(self, trial: Trial) -> TrialResult:
        """Return the first network that a baseline trial gave, with the confirmation by all of them."""
        none = TrialResult(trial, TrialState.FAILED, error="stopped before it was trained")
        finished = self._finished[trial.key()] or [none]
        first = next((found for found in finished if found.state is not TrialState.FAILED), finished[0])
        own = dataclasses.replace(first.trial, baseline=UNIFORM)  # a member of the front may be the same network
        return dataclasses.replace(first, trial=own, confirmation=self._confirmation(trial))

    def _confirmation(self, trial: Trial) -> Confirmation:
        finished = self._finished[trial.key()]
        read = [(found, found.test_accuracy) for found in finished if found.test_accuracy is not None]
        return Confirmation(
            seeds=tuple(found.trial.seed for found, _ in read),
            accuracies=tuple(test_accuracy for _, test_accuracy in read),
            flops=tuple(found.cost.flops for found, _ in read if found.cost is not None),
            images=len(self._read.test),
            at="budgets" if trial.goal.widths is None else "widths",
            errors=tuple(found.error for found in finished if found.test_accuracy is None),
        )


class Retrainer:
    """Has the front of a search trained again, when the config asks for it.

    Args:
        search_context: what the trials of the search share.
        callback: is told of the progress as a phase.
    """

    def __init__(self, environment: Environment, search_context: SearchContext, callback: SearchCallback) -> None:
        self._environment, self._search_context, self._callback = environment, search_context, callback
        self._retraining: Retraining | None = None

    def __call__(self, result: SearchResult) -> SearchResult:
        """Return the search confirmed; when the user stops it, `interrupted` and confirmed by the trainings so far."""
        environment = self._environment
        if environment.config.confirm < 2 or not len(result.front):
            return result
        began = time.perf_counter()
        self._retraining = self._begin(result)
        try:
            RUNNERS[environment.runner](environment.config.runner, evaluate).run(self._retraining, self._search_context)
        except KeyboardInterrupt:
            result = dataclasses.replace(result, interrupted=True)
        except RunnerError as error:  # the result of the search is worth more than its confirmation
            _log.warning("the front is not trained again to the end: %s", error)
        return self.confirmed(dataclasses.replace(result, seconds=result.seconds + time.perf_counter() - began))

    def confirmed(self, result: SearchResult) -> SearchResult:
        """Return the search with the confirmations so far; unchanged when nothing was trained again."""
        return result if self._retraining is None else self._retraining.confirmed(result)

    def _begin(self, result: SearchResult) -> Retraining:
        environment, config = self._environment, self._environment.config
        seeds = [derive_seed(config.seed, f"confirmation {number}") for number in range(config.confirm)]
        read = NetworkTester(self._search_context.net, environment.data.test, environment.device)
        number = 1 + max(found.trial.number for found in result.results)
        return Retraining(retraining_plan(result, environment.problem.space), seeds, number, read, self._show)

    def _show(self, done: int, total: int) -> None:
        self._callback.on_phase(f"training the front again, {done}/{total} done")
