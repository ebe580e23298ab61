"""The progress of a running search: a bar at the bottom of a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self, TextIO

from rich.console import RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text
from typing_extensions import override

from runners.trial import TrialResult
from search.callbacks import Progress, SearchCallback
from search.environment import Plan
from search.reporting.plan import plan_table
from search.reporting.summary import final_lines, summary, summary_json
from search.reporting.wording import duration, make_console, one_line, percent, plural, print_parts, scaled
from search.results.pareto import ParetoFront, measured
from search.results.rank_correlation import SCREENED
from search.results.result import SearchResult


class _Bar(ProgressBar):
    """A progress bar with the state of the search on a line of its own below it: both then fit 80 columns."""

    @override
    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["state"]:
                yield Text(f"  {task.fields['state']}")


class ConsoleProgress(SearchCallback):
    """Shows a search on a console; a context manager, so that an exception leaves the terminal as it was.

    A terminal that can move its cursor keeps a progress bar at its bottom, with the current phase before it. Any other
    stream gets a line per phase and finished trial.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = console = make_console(stream)
        self._began = time.monotonic()
        self._bar: ProgressBar | None = None
        if console.is_interactive and not console.is_dumb_terminal:
            self._bar = _Bar(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                console=console,
                refresh_per_second=8,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, state="", left="")

    def __enter__(self) -> Self:
        """Start showing."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop showing; the exception goes on."""
        if self._bar is not None:
            self._bar.stop()  # which shows the cursor again

    @override
    def on_search_start(self, plan: Plan) -> None:
        self._estimate = ProgressEstimate(plan, self._began)
        self._console.print(plan_table(plan))

    @override
    def on_phase(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text, left="")
            return
        self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()

    @override
    def on_promotion(self, number: int, epochs: int) -> None:
        self.on_phase(f"trial {number} goes on to {epochs} epochs")

    @override
    def on_trial_end(self, result: TrialResult, progress: Progress) -> None:
        finished, total = progress.finished, progress.total
        state, left = self._estimate.after(result, progress.front), self._estimate.left(progress)
        if self._bar is None:
            self.on_phase(f"{finished}/{total} {trial_text(result)}; {state}" + (f", {left}" if left else ""))
            return
        state = f"trials {finished}/{total}, {state}"
        self._bar.update(self._task, completed=finished, total=total, state=state, left=left)
        if not measured(result):
            self._console.print(trial_text(result), style="red", markup=False, soft_wrap=True)

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        self.__exit__()
        print_parts(self._console, summary(result, folder, tracking))


class QuietProgress(SearchCallback):
    """Shows nothing of a search but the final lines."""

    def __init__(self, stream: TextIO) -> None:
        self._console = make_console(stream)

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        print_parts(self._console, final_lines(result, folder, tracking))


class JsonResult(SearchCallback):
    """Writes the result of a search as one JSON object."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @override
    def on_search_end(self, result: SearchResult, folder: Path, tracking: str) -> None:
        self._stream.write(summary_json(result, folder) + "\n")
        self._stream.flush()


class ProgressEstimate:
    """Estimates from the finished trials of a running search how long it will take; describes its front.

    Args:
        began: `time.monotonic()` at the start of the search, from which the time limit counts.
    """

    def __init__(self, plan: Plan, began: float) -> None:
        self._plan = plan
        self._ends = began + plan.environment.config.time_limit_seconds
        self._latest: dict[int, TrialResult] = {}  # by trial: the result of its last training segment
        self._hypervolume = 0.0
        self._since_growth = 0  # trials

    def after(self, result: TrialResult, front: ParetoFront) -> str:
        """Describe the front after a trial, and say when its hypervolume last grew."""
        self._latest[result.trial.number] = result
        best, reference = front.best(), self._plan.reference_cost
        text = f"best {percent(None if best is None else best.accuracy)}, front {len(front)}"
        if not reference:
            return text
        hypervolume = front.hypervolume(reference)
        self._since_growth = 0 if hypervolume > self._hypervolume else self._since_growth + 1
        self._hypervolume = hypervolume
        growth = f"grew {plural(self._since_growth, 'trial')} ago" if self._since_growth else "just grew"
        return f"{text}, hypervolume {hypervolume:.3f}" + (f", {growth}" if hypervolume else "")

    def left(self, progress: Progress) -> str:
        """Say how long the rest will take by the mean time of a trial or an epoch; empty when nothing is left."""
        trained = sum(result.trained or 0 for result in self._latest.values())
        trials, epochs = progress.total - progress.finished, max(0.0, self._plan.epochs - trained)
        if trials <= 0 and epochs <= 0:
            return ""
        share = epochs / trained if self._plan.epochs and trained else trials / len(self._latest)
        spent = sum(result.seconds for result in self._latest.values())
        seconds = spent * share / self._plan.environment.workers
        return f"{duration(min(seconds, max(0.0, self._ends - time.monotonic())))} left"


def trial_text(result: TrialResult) -> str:
    """Say in a few words what a trial gave."""
    trial = result.trial
    name = f"trial {trial.number} {trial.method}" + (f" ({trial.baseline} widths)" if trial.baseline else "")
    if not measured(result) or result.cost is None:
        return f"{name} {result.state}: {one_line(result.error) or 'no reason given'}"
    text = f"{name}: {percent(result.accuracy)} at {scaled(result.cost.flops, 'FLOPs')} in {duration(result.seconds)}"
    if result.intermediate_networks:
        text += f" and {plural(len(result.intermediate_networks), 'intermediate network')}"
    text += f", best of {result.note[SCREENED]} before training" if SCREENED in result.note else ""
    text += f", cut from network {trial.parent}" if trial.parent else ""
    return text + (f", after {plural(result.trained or 0, 'epoch')}" if result.rungs else "")
