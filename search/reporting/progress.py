"""The progress of a running search: a bar at the bottom of a terminal, plain lines anywhere else."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text
from typing_extensions import override

from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.environment import Plan
from search.reporting.plan import plan_table
from search.reporting.summary import summary
from search.reporting.wording import duration, make_console, one_line, percent, plural, scaled
from search.results.pareto import ParetoFront, measured
from search.results.rank_correlation import SCREENED
from search.results.result import SearchResult


def make_display(stream: TextIO) -> "ConsoleProgress":
    """Return a bar for a terminal that can move its cursor, plain lines for any other stream."""
    console = make_console(stream)
    return (
        TerminalProgress(console) if console.is_interactive and not console.is_dumb_terminal else LogProgress(console)
    )


class ConsoleProgress(SearchCallback):
    """Shows a search on a console; a context manager, so that an exception leaves the terminal as it was."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._estimate = ProgressEstimate()

    def __enter__(self) -> Self:
        """Start showing."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop showing; the exception goes on."""

    @override
    def on_search_start(self, plan: Plan) -> None:
        self._estimate.start(plan)
        self._console.print(plan_table(plan))

    @override
    def on_promotion(self, number: int, epochs: int) -> None:
        self.on_phase(f"trial {number} goes on to {epochs} epochs")

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        for part in summary(result, folder, tracking):
            if isinstance(part, str):  # printed as it is, unwrapped, to be copied
                self._console.print(part, markup=False, soft_wrap=True)
            else:
                self._console.print(part)


class LogProgress(ConsoleProgress):
    """Prints a line per phase and finished trial, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._began = time.monotonic()

    @override
    def on_phase(self, text: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"[{seconds:6.1f} s] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        state = filter(None, (self._estimate.after(result, progress.front), self._estimate.left(progress)))
        self.on_phase(f"{progress.finished}/{progress.total} {trial_text(result)}; {', '.join(state)}")


class _Bar(ProgressBar):
    """A progress bar with the state of the search on a line of its own below it: both then fit 80 columns."""

    @override
    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["state"]:
                yield Text(f"  {task.fields['state']}")


class TerminalProgress(ConsoleProgress):
    """Keeps a progress bar at the bottom of the terminal, with the current phase before it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = _Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            refresh_per_second=8,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, state="", left="")

    @override
    def __enter__(self) -> Self:
        self._bar.start()
        return self

    @override
    def __exit__(self, *exception: object) -> None:
        self._bar.stop()  # which shows the cursor again

    @override
    def on_phase(self, text: str) -> None:
        self._bar.update(self._task, description=text, left="")

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        finished, total = progress.finished, progress.total
        state = f"trials {finished}/{total}, {self._estimate.after(result, progress.front)}"
        left = self._estimate.left(progress)
        self._bar.update(self._task, completed=finished, total=total, state=state, left=left)
        if not measured(result):
            self._console.print(trial_text(result), style="red", markup=False, soft_wrap=True)

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        self._bar.stop()
        super().on_search_end(result, folder, tracking)


class ProgressEstimate:
    """Estimates from the finished trials of a running search how long it will take; describes its front."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ends = math.inf  # by the time limit
        self._reference_cost = 0.0
        self._workers = 1
        self._seconds: dict[int, float] = {}  # by trial
        self._trained: dict[int, int] = {}  # epochs, by trial
        self._epochs = 0.0  # of all trials together, where they pause at rungs
        self._hypervolume = 0.0
        self._since_growth = 0  # trials

    def start(self, plan: Plan) -> None:
        """Take over the expectations of the plan."""
        self._reference_cost, self._epochs = plan.reference_cost, plan.epochs
        self._workers = plan.environment.workers
        self._ends = self._began + plan.environment.config.time_limit_seconds

    def after(self, result: TrialResult, front: ParetoFront) -> str:
        """Describe the front after a trial, and say when its hypervolume last grew."""
        self._seconds[result.trial.number] = result.seconds
        self._trained[result.trial.number] = result.trained or 0
        hypervolume = front.hypervolume(self._reference_cost) if self._reference_cost else 0.0
        self._since_growth = 0 if hypervolume > self._hypervolume else self._since_growth + 1
        self._hypervolume = hypervolume
        growth = f"grew {plural(self._since_growth, 'trial')} ago" if self._since_growth else "just grew"
        return front_text(front, self._reference_cost) + (f", {growth}" if hypervolume else "")

    def left(self, progress: Progress) -> str:
        """Say how long the rest will take by the mean time of a trial or an epoch; empty when nothing is left."""
        trained, spent = sum(self._trained.values()), sum(self._seconds.values())
        trials, epochs = progress.total - progress.finished, self._epochs - trained
        if trials <= 0 and epochs <= 0:
            return ""
        if self._epochs and trained:
            seconds = spent / trained * max(0.0, epochs) / self._workers
        else:
            seconds = spent / len(self._seconds) * trials / self._workers
        return f"{duration(min(seconds, max(0.0, self._ends - time.monotonic())))} left"


def trial_text(result: TrialResult) -> str:
    """Say in a few words what a trial gave."""
    trial = result.trial
    name = f"trial {trial.number} {trial.method}" + (f" ({trial.baseline})" if trial.baseline else "")
    if not measured(result) or result.cost is None:
        return f"{name} {result.state}: {one_line(result.error) or 'no reason given'}"
    text = f"{name}: {percent(result.accuracy)} at {scaled(result.cost.flops, 'FLOPs')} in {duration(result.seconds)}"
    if result.intermediate_networks:
        text += f" and {plural(len(result.intermediate_networks), 'intermediate network')}"
    text += f", best of {result.note[SCREENED]} before training" if SCREENED in result.note else ""
    return text + (f", after {plural(result.trained or 0, 'epoch')}" if result.rungs else "")


def front_text(front: ParetoFront, reference_cost: float) -> str:
    """Describe a front: best accuracy inside the budgets, number of networks, and hypervolume where it is known."""
    best = front.best()
    text = f"best {percent(None if best is None else best.accuracy)}, front {len(front)}"
    return f"{text}, hypervolume {front.hypervolume(reference_cost):.3f}" if reference_cost else text
