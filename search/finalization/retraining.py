"""Train the front again: how accurate its networks are over fresh seeds, and whether the chosen one beats baselines.

The search has seen one training of each network, and has chosen networks whose training came out well. So every network
of the front is trained again from what it was cut from (the dense network, or a finished wider one), with fresh seeds
that are the same for all, by the runner of the search, and every training is read on test once. Beside them the best
baseline of the search is trained, at the FLOPs of the chosen network and inside the budgets too. The chosen network and
its baseline come first, so that a user who stops the retraining has their comparison; then come the best networks at
the targets with the best baselines there.

A network is trained again with the method, the settings and the widths that it has, for all the epochs of a trial, or
as many in one schedule as it had with its final training. Its baseline gets as many from the dense network. A network
whose widths the method chose, or an intermediate one, is trained at the widths that it got; only a method that takes no
widths works again from budgets, which are the cost of that network. The files of the networks stay those that the
search found.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from pruning import checkpoint
from pruning.base import METHODS, Goal
from runners.base import RUNNERS, AskTell, RunnerError
from runners.evaluation.context import SearchContext
from runners.evaluation.evaluate import evaluate
from runners.training.scoring import exact_score
from runners.trial import (
    DENSE,
    DISTILL_WEIGHT,
    TEACHER,
    Confirmation,
    EpochReport,
    Teaching,
    TrainingSegment,
    Trial,
    TrialResult,
    TrialState,
    derive_seed,
)
from search.callbacks import SearchCallback
from search.environment import Environment
from search.results.pareto import counted
from search.results.result import SearchResult
from spaces.budget import Budget
from spaces.errors import BudgetError, LostError
from spaces.space import SearchSpace, uniform_ratios

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainingPlan:
    """The trials that are trained again; their numbers and seeds do not count.

    Attributes:
        members: label of a reported network -> the trial that trains it again.
        baselines: label of the chosen network and of the best at each target -> the best baseline, at the FLOPs of the
            network; None when the space has none so small, or the network is of a baseline itself.
    """

    members: Mapping[str, Trial]
    baselines: Mapping[str, Trial | None]

    @property
    def trials(self) -> dict[str, Trial]:
        """Every trial by its key, each once."""
        trials = (*self.members.values(), *self.baselines.values())
        return {trial.key(): trial for trial in trials if trial is not None}

    def schedule(self, seeds: Sequence[int], number: int) -> list[Trial]:
        """Return every training in order, numbered from `number`: seed by seed within a group of trials.

        A network and its baseline are a group, because they are compared side by side; the other trials come last.
        """
        waiting = self.trials
        pairs = [(self.members[label], baseline) for label, baseline in self.baselines.items()]
        groups = [[waiting.pop(trial.key()) for trial in pair if trial and trial.key() in waiting] for pair in pairs]
        groups.append(list(waiting.values()))
        trainings = [(trial, seed) for group in groups for seed in seeds for trial in group]
        return [
            dataclasses.replace(trial, number=place, seed=seed)
            for place, (trial, seed) in enumerate(trainings, start=number)
        ]


def retraining_plan(result: SearchResult, space: SearchSpace) -> RetrainingPlan:
    """List what is trained again of a search, the chosen network before the best at the targets."""
    best = [result.best_at(target, baselines=True) for target in result.targets]
    # Where no baseline is inside the budgets, one that is not says which method and which kind of widths are trained.
    known = [found for found in result.results if found.trial.baseline]
    compared = zip((result.chosen, *map(result.best_at, result.targets)), (result.best_baseline, *best), strict=True)
    baselines: dict[str, Trial | None] = {}
    for network, baseline in compared:
        if network is not None:
            kind = baseline or next(iter(known), None)
            trial = _baseline_at(network, kind, result, space)
            segment = _segment(network)
            baselines.setdefault(network.label, trial and dataclasses.replace(trial, segment=segment))
    members = {member.label: retraining_trial(member) for member in result.reported}
    return RetrainingPlan(members, baselines)


def _segment(network: TrialResult) -> TrainingSegment | None:
    """Return the training of a network with final training, in one schedule; None for the training of a trial.

    Its teacher is that of its last segment.
    """
    if not network.final_epochs:
        return None
    weight, teacher = network.note.get(DISTILL_WEIGHT), str(network.note.get(TEACHER, DENSE))
    teaching = None if weight is None else Teaching(weight, "" if teacher == DENSE else teacher)
    return TrainingSegment(network.trained or 0, teaching=teaching, completes=True)


def retraining_trial(network: TrialResult) -> Trial:
    """Return the trial that trains a network again: at its widths, or within its cost by a method that takes none."""
    cost = network.cost
    trial = dataclasses.replace(network.trial, segment=_segment(network))
    if trial.goal.widths is not None and not network.intermediate_index:
        return trial
    limits = [
        dataclasses.replace(budget, limit=getattr(cost, budget.quantity)) for budget in counted(trial.goal.budgets)
    ]
    widths = network.widths if METHODS[trial.method].takes_widths else None
    return dataclasses.replace(trial, goal=Goal(widths, tuple(limits)))


def _baseline_at(
    network: TrialResult, baseline: TrialResult | None, result: SearchResult, space: SearchSpace
) -> Trial | None:
    """Return the trial of a baseline at the FLOPs of a network; None when there is none."""
    if baseline is None or network.trial.baseline or network.cost is None:
        return None
    limits = (*counted(result.budgets), Budget("flops", network.cost.flops))
    try:
        widths = space.fit(uniform_ratios(space), limits)
    except BudgetError:  # a network that is not merely narrow may cost less than any of the space
        return None
    goal = Goal(None if baseline.trial.goal.widths is None else widths, limits)
    return dataclasses.replace(baseline.trial, goal=goal)


class Retraining(AskTell):
    """Hands the trainings out, and reads each network on test once, when it comes back.

    Args:
        number: of the first trial.
        context: of the trials; its dense network is what they are cut from, but for those with a parent.
        weights: of a network of the search by its label, for those that are cut from it, or that it teaches.
        on_done: is called after every training with the numbers of trainings done and in all.
    """

    def __init__(
        self,
        plan: RetrainingPlan,
        seeds: Sequence[int],
        number: int,
        context: SearchContext,
        weights: Callable[[str], bytes],
        on_done: Callable[[int, int], None],
    ) -> None:
        self._plan, self._context, self._weights, self._on_done = plan, context, weights, on_done
        self._waiting = plan.schedule(seeds, number)
        self._total = len(self._waiting)
        self._finished: dict[str, list[TrialResult]] = {key: [] for key in plan.trials}

    @override
    def ask(self) -> Trial | None:
        if not self._waiting:
            return None
        trial = self._waiting.pop(0)
        trial = trial.started_from(self._weights(trial.parent)) if trial.parent else trial
        segment = trial.segment
        if segment is None or segment.teaching is None or not segment.teaching.teacher:
            return trial
        teaching = dataclasses.replace(segment.teaching, weights=self._weights(segment.teaching.teacher))
        return dataclasses.replace(trial, segment=dataclasses.replace(segment, teaching=teaching))

    @override
    def report(self, report: EpochReport) -> bool:
        return math.isfinite(report.accuracy)

    @override
    def tell(self, result: TrialResult) -> None:
        if result.state is not TrialState.FAILED:
            net = checkpoint.from_bytes(result.checkpoint or b"", self._context.net)
            read = exact_score(net, self._context.data.test, self._context.train)
            result = dataclasses.replace(result, test_accuracy=read.score, test_top5=read.top5)
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
        baselines = {label: trial for label, trial in self._plan.baselines.items() if trial is not None}
        baseline = None if result.chosen is None else baselines.pop(result.chosen.label, None)
        if baseline is not None and any(self._finished.values()):
            result = dataclasses.replace(result, retrained_baseline=self._retrained(baseline))
        finished = {label: self._retrained(trial) for label, trial in baselines.items() if self._finished[trial.key()]}
        return dataclasses.replace(result, target_baselines=finished).with_results(changed)

    def _retrained(self, trial: Trial) -> TrialResult:
        """Return the first network that a baseline trial gave, with the confirmation by all of them."""
        none = TrialResult(trial, TrialState.FAILED, error="stopped before it was trained")
        finished = self._finished[trial.key()] or [none]
        first = next((found for found in finished if found.state is not TrialState.FAILED), finished[0])
        own = dataclasses.replace(first.trial, baseline=trial.baseline)  # a member of the front may be the same network
        return dataclasses.replace(first, trial=own, confirmation=self._confirmation(trial))

    def _confirmation(self, trial: Trial) -> Confirmation:
        finished = self._finished[trial.key()]
        read = [(found, found.test_accuracy) for found in finished if found.test_accuracy is not None]
        return Confirmation(
            seeds=tuple(found.trial.seed for found, _ in read),
            accuracies=tuple(test_accuracy for _, test_accuracy in read),
            flops=tuple(found.cost.flops for found, _ in read if found.cost is not None),
            images=len(self._context.data.test),
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
        environment, config = self._environment, self._environment.config
        if config.confirm < 2 or not len(result.front):
            return result
        paths = {found.label: found.path for found in result.results}
        self._retraining = Retraining(
            retraining_plan(result, environment.problem.space),
            seeds=[derive_seed(config.seed, f"confirmation {number}") for number in range(config.confirm)],
            number=1 + max(found.trial.number for found in result.results),
            context=self._search_context,
            weights=lambda label: checkpoint.read(environment.folder / paths[label]),
            on_done=lambda done, total: self._callback.on_phase(f"training the front again, {done}/{total} done"),
        )
        try:
            RUNNERS[environment.runner](config.runner, evaluate).run(self._retraining, self._search_context)
        except KeyboardInterrupt:
            result = dataclasses.replace(result, interrupted=True)
        except (RunnerError, LostError) as error:  # the result of the search is worth more than its confirmation
            _log.warning("the front is not trained again to the end: %s", error)
        return self.confirmed(result)

    def confirmed(self, result: SearchResult) -> SearchResult:
        """Return the search with the confirmations so far; unchanged when nothing was trained again."""
        return result if self._retraining is None else self._retraining.confirmed(result)
