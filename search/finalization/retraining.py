"""Train the front again: how good its networks are over fresh seeds, and whether the chosen one beats uniform widths.

The search has seen one training of each network, and has chosen those that came out well. So every network of the
front is trained again from the dense one with fresh seeds, the same for all, through the runner of the search, and
read on test once each. Beside them, uniform widths by L2 norm at the FLOPs of the chosen network, which must meet the
budgets too. The chosen network and those come first: if the user stops it, their comparison is the one to have. Then
come the best at each target, if there are any, with uniform widths at theirs.

What is trained again is the network: same method, settings and widths, with all the epochs of a trial. So one that
the method chose the widths of, or passed on its way, is trained at the widths that it has got; only where a method
takes no widths it works again from budgets, as low as what that network costs. The files of the networks stay those
that the search found.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from pruning import checkpoint
from pruning.base import METHODS, Goal
from runners.base import RUNNERS, RunnerError
from runners.data.splits import Split
from runners.evaluation.evaluate import SearchContext, evaluate
from runners.training.loop import accuracy
from runners.trial import Confirmation, EpochReport, Trial, TrialResult, TrialState, derive_seed
from search.callbacks import SearchCallback
from search.environment import Environment
from search.results.comparison import UNIFORM
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.space import SearchSpace, uniform_ratios

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainingPlan:
    """What is trained again.

    Attributes:
        members: label of a front member -> the trial that trains it again; its number and seed do not count.
        control: uniform widths at the FLOPs of the chosen network; None when there are none, or it is an arm itself.
        target_controls: label of the best network at a target -> the same at its FLOPs, the chosen one left out.
        first: keys of the trials that are trained before the others, those that are compared side by side.
    """

    members: Mapping[str, Trial]
    control: Trial | None
    first: tuple[tuple[str, ...], ...]
    target_controls: Mapping[str, Trial] = field(default_factory=dict)

    @property
    def trials(self) -> dict[str, Trial]:
        """Every trial by its key, each once."""
        controls = [*([self.control] if self.control else []), *self.target_controls.values()]
        everything = [*self.members.values(), *controls]
        return {trial.key(): trial for trial in everything}


def retraining_plan(result: SearchResult, space: SearchSpace) -> RetrainingPlan:
    """List what is trained again of a search."""
    members = {member.label: again(member) for member in result.reported}
    chosen = result.chosen
    control = None if chosen is None else _control(chosen, result, space)
    best = [each for each in map(result.best_at, result.targets) if each is not None and not result.is_chosen(each)]
    rivals = {each.label: _control(each, result, space) for each in best}
    pairs = [] if chosen is None else [(members[chosen.label], control)]
    pairs += [(members[label], rival) for label, rival in rivals.items()]
    first = tuple(tuple(trial.key() for trial in pair if trial is not None) for pair in pairs)
    return RetrainingPlan(
        members, control, first, {label: trial for label, trial in rivals.items() if trial is not None}
    )


def again(member: TrialResult) -> Trial:
    """Return the trial that trains a network again: at its widths, or where its method takes none within its cost."""
    trial, cost = member.trial, member.cost
    if trial.goal.widths is not None and not member.intermediate_index:
        return trial
    limits = [dataclasses.replace(each, limit=getattr(cost, each.quantity)) for each in _counted(trial.goal.budgets)]
    widths = member.widths if METHODS[trial.method].takes_widths else None
    return dataclasses.replace(trial, goal=Goal(widths, tuple(limits)))


def _control(chosen: TrialResult, result: SearchResult, space: SearchSpace) -> Trial | None:
    """Return the trial of a control arm of the search, at uniform widths as dear as the chosen network."""
    baseline = next((each.trial for each in result.results if each.trial.baseline == UNIFORM), None)
    if baseline is None or chosen.trial.baseline == UNIFORM or chosen.cost is None:
        return None
    limits = (*_counted(result.budgets), Budget("flops", chosen.cost.flops))
    try:
        widths = space.fit(uniform_ratios(space), limits)
    except BudgetError:  # a network that is not merely narrow may cost less than any of the space
        return None
    return dataclasses.replace(baseline, goal=Goal(widths, limits))


def _counted(budgets: Sequence[Budget]) -> list[Budget]:
    return [budget for budget in budgets if budget.quantity in ("flops", "params")]


@dataclass(frozen=True)
class Reader:
    """Reads the networks of trials on test.

    Attributes:
        dense: that they were cut from.
    """

    dense: nn.Module
    test: Split
    device: torch.device

    def __call__(self, result: TrialResult) -> float:
        """Return top-1 accuracy in [0, 1] of the weights that the result holds."""
        net = checkpoint.from_bytes(result.checkpoint or b"", self.dense)
        return accuracy(net, self.test, device=self.device)


class Retraining:
    """Hands the trainings out and reads each network on test, once, when it comes back (implements `AskTell`).

    Args:
        number: of the first trial.
        on_done: called with the trainings done and all of them, after each.
    """

    def __init__(
        self,
        plan: RetrainingPlan,
        seeds: Sequence[int],
        number: int,
        read: Reader,
        on_done: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self._plan, self._read, self._on_done = plan, read, on_done
        waiting, parts = plan.trials, []
        for pair in plan.first:
            parts.append([waiting.pop(key) for key in dict.fromkeys(pair) if key in waiting])
        parts.append(list(waiting.values()))
        orders = [(trial, seed) for part in parts for seed in seeds for trial in part]
        self._waiting = [
            dataclasses.replace(trial, number=number + place, seed=seed) for place, (trial, seed) in enumerate(orders)
        ]
        self._total = len(orders)
        self._told: dict[str, list[TrialResult]] = {key: [] for key in plan.trials}

    def ask(self) -> Trial | None:
        """Return the next training."""
        return self._waiting.pop(0) if self._waiting else None

    def report(self, report: EpochReport) -> bool:
        """Let a training go on as long as its accuracy is a number."""
        return math.isfinite(report.accuracy)

    def tell(self, result: TrialResult) -> None:
        """Read a trained network on test and let go of its weights."""
        if result.state is not TrialState.FAILED:
            result = dataclasses.replace(result, test_accuracy=self._read(result))
        told = self._told[result.trial.key()]
        told.append(dataclasses.replace(result.with_checkpoints({}), intermediate_networks=()))
        told.sort(key=lambda each: each.trial.number)  # workers end in any order
        self._on_done(sum(map(len, self._told.values())), self._total)

    def applied(self, result: SearchResult) -> SearchResult:
        """Return the search with what the trainings have shown so far."""
        members = {member.label: (member, self._plan.members[member.label]) for member in result.reported}
        changed = [
            dataclasses.replace(member, confirmation=self._confirmation(trial))
            for member, trial in members.values()
            if self._told[trial.key()]
        ]
        if self._plan.control is not None and any(self._told.values()):
            result = dataclasses.replace(result, control=self._trained_control(self._plan.control))
        told = {label: trial for label, trial in self._plan.target_controls.items() if self._told[trial.key()]}
        trained = {label: self._trained_control(trial) for label, trial in told.items()}
        result = dataclasses.replace(result, target_controls=trained)
        return result.with_results(changed)

    def _trained_control(self, trial: Trial) -> TrialResult:
        """Return the first network that the control gave, with the confirmation of all of them."""
        told = self._told[trial.key()] or [TrialResult(trial, TrialState.FAILED, error="stopped before it was trained")]
        first = next((each for each in told if each.state is not TrialState.FAILED), told[0])
        own = dataclasses.replace(first.trial, baseline=UNIFORM)  # a member of the front may be the same network
        return dataclasses.replace(first, trial=own, confirmation=self._confirmation(trial))

    def _confirmation(self, trial: Trial) -> Confirmation:
        told = self._told[trial.key()]
        read = [(each, each.test_accuracy) for each in told if each.test_accuracy is not None]
        return Confirmation(
            seeds=tuple(each.trial.seed for each, _ in read),
            accuracies=tuple(reached for _, reached in read),
            flops=tuple(each.cost.flops for each, _ in read if each.cost is not None),
            images=len(self._read.test),
            at="budgets" if trial.goal.widths is None else "widths",
            errors=tuple(each.error for each in told if each.test_accuracy is None),
        )


class Retrainer:
    """Has the front of a search trained again, when the config asks for it.

    Args:
        bench: what the trials of the search shared.
    """

    def __init__(self, environment: Environment, search_context: SearchContext, callback: SearchCallback) -> None:
        self._environment, self._search_context, self._callback = environment, search_context, callback
        self._retraining: Retraining | None = None

    def __call__(self, result: SearchResult) -> SearchResult:
        """Return the search confirmed; stopped by the user it is `interrupted`, with what was trained until then."""
        environment = self._environment
        if environment.config.confirm < 2 or not len(result.front):
            return result
        began = time.perf_counter()
        seeds = [
            derive_seed(environment.config.seed, f"confirmation {number}")
            for number in range(environment.config.confirm)
        ]
        read = Reader(self._search_context.net, environment.data.test, environment.device)
        number = 1 + max(each.trial.number for each in result.results)
        self._retraining = Retraining(
            retraining_plan(result, environment.problem.space), seeds, number, read, self._show
        )
        try:
            RUNNERS[environment.runner](environment.config.runner, evaluate).run(self._retraining, self._search_context)
        except KeyboardInterrupt:
            result = dataclasses.replace(result, interrupted=True)
        except RunnerError as error:  # what the search has found is worth more than its confirmation
            _log.warning("the front is not trained again to the end: %s", error)
        return self.applied(dataclasses.replace(result, seconds=result.seconds + time.perf_counter() - began))

    def applied(self, result: SearchResult) -> SearchResult:
        """Return the search with what the trainings have shown so far; none does no training."""
        return result if self._retraining is None else self._retraining.applied(result)

    def _show(self, done: int, total: int) -> None:
        self._callback.on_phase(f"training the front again, {done}/{total} done")
