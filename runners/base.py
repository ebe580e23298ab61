"""The contract of a runner, and the registry of runners."""

from collections.abc import Callable, Generator
from typing import Any, Protocol

from runners.trial import EpochReport, Trial, TrialResult
from spaces.errors import SlimfrontError
from spaces.registry import Registry

RUNNERS = Registry(
    "runner",
    {
        "local": "runners.local:LocalRunner",
        "ray": "runners.ray.runner:RayRunner",
        "simulated": "runners.simulated.runner:SimulatedRunner",
    },
)


class RunnerError(SlimfrontError):
    """Trials that cannot run: settings out of range, a cluster that does not answer, or no room for a single trial."""


# A running trial: it yields a report per epoch, is sent False to end after that report, and returns its result.
Evaluation = Generator[EpochReport, bool | None, TrialResult]
# The second argument is a `runners.evaluation.context.SearchContext`, which all trials of a search share. Its type
# is Any here because evaluation lies above this module.
Evaluator = Callable[[Trial, Any], Evaluation]


class AskTell(Protocol):
    """Where trials come from and where results go; the package above implements it."""

    def ask(self) -> Trial | None:
        """Return the next trial, or None when there is none.

        While other trials run, None may mean "none yet": a runner asks again after it has told the next result.
        """
        ...

    def report(self, report: EpochReport) -> bool:
        """Take an intermediate report; return whether the trial continues."""
        ...

    def tell(self, result: TrialResult) -> None:
        """Take the result of a finished trial, whatever its state."""
        ...


class Runner(Protocol):
    """Takes trials from an AskTell until it has no more, evaluates them, and tells the results.

    The registry builds every runner as `RUNNERS[name](config, evaluator)`.
    """

    def run(self, ask_tell: AskTell, search_context: Any) -> None:
        """Return when every trial is told. A KeyboardInterrupt passes through after the workers are stopped."""
        ...
