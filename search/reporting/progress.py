"""The progress of a running search: a bar at the bottom of a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
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
from search.time_left import TimeLeft

BAR = 10  # characters
NEVER_WHOLE = 0.9999
BESIDE = 1 + BAR + len("0:00:00") + 4  # characters of spinner, bar, clock and the gaps between the columns


@dataclass(frozen=True)
class _Phase:
    """How far the present phase is, by the steps that it counts.

    Attributes:
        began: `time.monotonic()` at its first word.
        share: done, in [0, 1]; 0 as long as it has counted none.
        told: `time.monotonic()` when it said so.
    """

    began: float
    share: float = 0.0
    told: float = 0.0

    def left(self, now: float) -> str:
        """Say how much is done and how long the rest takes at the pace so far; empty for a phase without steps."""
        if not self.share:
            return ""
        seconds = (self.told - self.began) / self.share - (now - self.began)
        return f"{percent(self.share, 0)}, {duration(max(0.0, seconds))} left"


class _TimeLeft(ProgressColumn):
    """The time that is left of the phase, else of the trials."""

    @override
    def render(self, task: Task) -> Text:
        return Text(_time_left(task))


class _Words(ProgressColumn):
    """The name of the phase, cut where the line would not fit `width` with all that stands beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width - BESIDE

    @override
    def render(self, task: Task) -> Text:
        words = Text(task.description)
        words.truncate(max(1, self._width - len(_time_left(task))), overflow="ellipsis")
        return words


def _time_left(task: Task) -> str:
    """Return what is done of the phase and the time that is left of it, else that of the trials."""
    phase: _Phase = task.fields["phase"]
    return phase.left(time.monotonic()) or str(task.fields["left"])


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
        self._trials: tuple[int, int | None] = (0, None)  # finished, and of how many
        if console.is_interactive and not console.is_dumb_terminal:
            self._bar = _Bar(
                SpinnerColumn(),
                _Words(console.width),
                BarColumn(bar_width=BAR),
                TimeElapsedColumn(),
                _TimeLeft(),
                console=console,
                refresh_per_second=8,
                transient=True,
            )
            phase = _Phase(self._began)
            self._task = self._bar.add_task("starting", total=None, state="", left="", phase=phase)

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
            self._show(*self._trials, description=text, left="", phase=_Phase(time.monotonic()))
            return
        self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()

    @override
    def on_steps(self, done: float, total: float) -> None:
        if self._bar is None or not total:
            return
        phase, now = self._bar.tasks[0].fields["phase"], time.monotonic()
        share = min(1.0, done / total)
        began = now if share < phase.share else phase.began  # other steps of the same phase
        self._show(share, 1.0, phase=_Phase(began, share, now))

    def _show(self, done: float, total: float | None, **fields: Any) -> None:
        """Update the bar; a total of None lets it pulse."""
        if self._bar is not None:
            self._bar.tasks[0].total = total  # which `update` takes for no change where it is None
            # The bar and its clock would stop at the total, and the search goes on.
            self._bar.update(self._task, completed=min(done, NEVER_WHOLE * total) if total else 0, **fields)

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
        self._trials = finished, total
        self._show(finished, total, state=state, left=left, phase=_Phase(time.monotonic()))
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
        environment = plan.environment
        flops = environment.problem.space.dense_cost.flops
        self._time_left = TimeLeft(plan.work, plan.epochs, environment.workers, flops)
        self._hypervolume = 0.0
        self._since_growth = 0  # trials

    def after(self, result: TrialResult, front: ParetoFront) -> str:
        """Describe the front after a trial, and say when its hypervolume last grew."""
        self._time_left.note(result)
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
        """Say how long the rest will take; empty when nothing is left."""
        seconds = self._time_left.seconds(progress.finished, progress.total, progress.final_left)
        return f"{duration(min(seconds, max(0.0, self._ends - time.monotonic())))} left" if seconds else ""


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
