"""What a user sees while a search runs: a live bar on a terminal, plain lines anywhere else."""

import os
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from configs.parsing import parse_duration
from runners.trial import TrialResult
from search.reporting.plan_table import Plan, plan_table
from search.reporting.wording import duration, percent, plural, scaled
from search.results.pareto import ParetoFront, measured
from search.results.screening_correlation import SCREENED

PLAIN_WIDTH = 120  # a file or pipe has no width of its own


class Display(Protocol):
    """Shows a search; a context manager, so that an exception leaves the terminal as it was."""

    def __enter__(self) -> Self:
        """Start showing."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing; never swallows the exception."""
        ...

    def plan(self, plan: Plan) -> None:
        """Show what is about to be done."""
        ...

    def phase(self, text: str) -> None:
        """Say what is going on now, e.g. "training the dense net, epoch 1/2"."""
        ...

    def trial_done(self, result: TrialResult, front: ParetoFront, done: int, total: int) -> None:
        """Show a finished trial; `front` includes it already. `done` of `total` trials are finished."""
        ...

    def finish(self, parts: Sequence[RenderableType]) -> None:
        """Show the outcome; nothing moves any more. Texts are printed as they are, unwrapped, to be copied."""
        ...


class _Standing:
    """What is known of the running search: enough to say how it stands and how long it will take."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ends: float | None = None  # by the time limit
        self._reference = 0.0
        self._workers = 1
        self._seconds: dict[int, float] = {}  # by trial
        self._trained: dict[int, int] = {}  # epochs, by trial
        self._wanted = 0.0  # epochs of all trials together, where they grow through rungs
        self._hypervolume = 0.0
        self._since_grown = 0  # trials

    def plan(self, plan: Plan) -> None:
        self._reference, self._workers = plan.reference, plan.workers
        self._wanted = plan.epochs
        if limit := plan.config.time_limit:
            self._ends = self._began + parse_duration("--time-limit", limit)

    def after(self, result: TrialResult, front: ParetoFront) -> str:
        """Say how the search stands after a trial, and when the hypervolume last grew."""
        self._seconds[result.trial.number] = result.seconds
        self._trained[result.trial.number] = result.trained or 0
        reached = front.hypervolume(self._reference) if self._reference else 0.0
        self._since_grown = 0 if reached > self._hypervolume else self._since_grown + 1
        self._hypervolume = reached
        return front_text(front, self._reference) + (f", {self._growth()}" if reached else "")

    def left(self, done: int, total: int) -> str:
        """Say how long the rest will take by the mean time of a trial or an epoch; empty when nothing is left."""
        trained, spent = sum(self._trained.values()), sum(self._seconds.values())
        more = self._wanted - trained
        if done >= total and more <= 0:
            return ""
        if self._wanted and trained:
            seconds = spent / trained * max(0.0, more) / self._workers
        else:
            seconds = spent / len(self._seconds) * (total - done) / self._workers
        if self._ends is not None:
            seconds = min(seconds, max(0.0, self._ends - time.monotonic()))
        return f"{duration(seconds)} left"

    def _growth(self) -> str:
        count = self._since_grown
        return f"grew {plural(count, 'trial')} ago" if count else "just grew"


class SilentDisplay:
    """Shows nothing, for searches run as a library."""

    def __enter__(self) -> Self:
        """Start showing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def plan(self, plan: Plan) -> None:
        """Show nothing."""

    def phase(self, text: str) -> None:
        """Show nothing."""

    def trial_done(self, result: TrialResult, front: ParetoFront, done: int, total: int) -> None:
        """Show nothing."""

    def finish(self, parts: Sequence[RenderableType]) -> None:
        """Show nothing."""


class PlainDisplay(SilentDisplay):
    """One line per phase and finished trial, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
        self._console = Console(file=stream, width=width, highlight=False, emoji=False)
        self._began = time.monotonic()
        self._standing = _Standing()

    def plan(self, plan: Plan) -> None:
        """Print the plan."""
        self._standing.plan(plan)
        self._console.print(plan_table(plan))

    def phase(self, text: str) -> None:
        """Print the phase."""
        self._line(text)

    def trial_done(self, result: TrialResult, front: ParetoFront, done: int, total: int) -> None:
        """Print one line about the trial and how the search stands."""
        standing = filter(None, (self._standing.after(result, front), self._standing.left(done, total)))
        self._line(f"{done}/{total} {trial_text(result)}; {', '.join(standing)}")

    def finish(self, parts: Sequence[RenderableType]) -> None:
        """Print the outcome."""
        print_parts(self._console, parts)

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"[{seconds:6.1f} s] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()


class _Bar(Progress):
    """A progress bar with a line of its own, below it, for how the search stands: both then fit 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and, once there is something to say, the line."""
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["standing"]:
                yield Text(f"  {task.fields['standing']}")


class LiveDisplay(SilentDisplay):
    """A progress bar that stays at the bottom of the terminal, with the current phase before it."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False)
        self._progress = _Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            refresh_per_second=8,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, standing="", left="")
        self._standing = _Standing()

    def __enter__(self) -> Self:
        """Start the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and show the cursor again."""
        self._progress.stop()

    def plan(self, plan: Plan) -> None:
        """Print the plan above the bar."""
        self._standing.plan(plan)
        self._console.print(plan_table(plan))

    def phase(self, text: str) -> None:
        """Write the phase before the bar."""
        self._progress.update(self._task, description=text, left="")

    def trial_done(self, result: TrialResult, front: ParetoFront, done: int, total: int) -> None:
        """Move the bar; a failed trial also leaves a line above it."""
        standing = f"trials {done}/{total}, {self._standing.after(result, front)}"
        left = self._standing.left(done, total)
        self._progress.update(self._task, completed=done, total=total, standing=standing, left=left)
        if not measured(result):
            self._console.print(trial_text(result), style="red", markup=False, soft_wrap=True)

    def finish(self, parts: Sequence[RenderableType]) -> None:
        """Take the bar away and print the outcome."""
        self._progress.stop()
        print_parts(self._console, parts)


def make_display(stream: TextIO) -> Display:
    """Return the live display on a terminal that can move its cursor, the plain one elsewhere."""
    console = Console(file=stream)
    live = console.is_interactive and not console.is_dumb_terminal
    return LiveDisplay(stream) if live else PlainDisplay(stream)


def trial_text(result: TrialResult) -> str:
    """Say in a few words what a trial gave."""
    name = f"trial {result.trial.number} {result.trial.method}"
    if result.trial.baseline:
        name += f" ({result.trial.baseline})"
    if not measured(result) or result.cost is None:
        return f"{name} {result.state}: {' '.join(result.error.split()) or 'no reason given'}"
    text = f"{name}: {percent(result.accuracy)} at {scaled(result.cost.flops, 'FLOPs')} in {duration(result.seconds)}"
    text += f" and {len(result.intermediate_networks)} on the way" if result.intermediate_networks else ""
    text += f", best of {result.note[SCREENED]} before training" if SCREENED in result.note else ""
    return text + (f", after {plural(result.trained or 0, 'epoch')}" if result.rungs else "")


def front_text(front: ParetoFront, reference: float) -> str:
    """Say how the search stands: best accuracy inside the budget, size of the front, and its hypervolume."""
    best = front.best()
    text = f"best {percent(None if best is None else best.accuracy)}, front {len(front)}"
    return f"{text}, hypervolume {front.hypervolume(reference):.3f}" if reference else text


def print_parts(console: Console, parts: Sequence[RenderableType]) -> None:
    """Print tables fitted to the width, and texts as they are."""
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)
