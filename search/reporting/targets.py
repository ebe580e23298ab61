"""What a search answers at each of its targets: the best network there, and the uniform widths it is to beat."""

from dataclasses import dataclass

from runners.trial import TrialResult
from search.results.comparison import confirmed_statement, reached_on_test
from search.results.result import UNIFORM, SearchResult
from spaces.budget import Budget


@dataclass(frozen=True)
class Answer:
    """The answer to one target.

    Attributes:
        target: absolute.
        best: the most accurate network on validation inside the target and all budgets; None when none is inside.
        uniform: the same of the uniform control arm.
    """

    target: Budget
    best: TrialResult | None
    uniform: TrialResult | None

    @property
    def gain(self) -> float | None:
        """The difference of both in validation accuracy, in [-1, 1]; None unless there are both."""
        pair = (self.best, self.uniform)
        accuracies = [each.accuracy for each in pair if each is not None and each.accuracy is not None]
        return accuracies[0] - accuracies[1] if len(accuracies) == 2 else None

    @property
    def verdict(self) -> str:
        """Say whether the search has beaten uniform widths here."""
        if self.best is None:
            return "no network"
        if self.best.trial.baseline == UNIFORM:
            return "uniform is best"
        return "no uniform one" if self.gain is None else f"{100 * self.gain:+.2f}"


def answers(result: SearchResult) -> tuple[Answer, ...]:
    """Return the answer to every target, the largest first."""
    return tuple(Answer(target, result.best_at(target), result.best_at(target, UNIFORM)) for target in result.targets)


def target_rows(result: SearchResult) -> tuple[tuple[str, ...], ...]:
    """Return a row of texts per target, under `TARGET_HEADS`."""
    return tuple(_row(each, result) for each in answers(result))


TARGET_HEADS = ("target", "network", "of target", "val acc.", "test acc.", "uniform val", "uniform test", "gain on val")


def _row(answer: Answer, result: SearchResult) -> tuple[str, ...]:
    target, best, uniform = answer.target, answer.best, answer.uniform
    share = target.limit / getattr(result.dense.cost, target.quantity)
    used = "-"
    if best is not None and best.cost is not None:
        used = f"{getattr(best.cost, target.quantity) / target.limit:.1%}"
    name = "-" if best is None else f"{best.label} {best.trial.method}"
    return (
        f"{share:.1%} of {target.quantity}",
        name,
        used,
        *_accuracies(best),
        *_accuracies(uniform),
        answer.verdict,
    )


def _accuracies(network: TrialResult | None) -> tuple[str, str]:
    if network is None or network.accuracy is None:
        return "-", "-"
    return f"{network.accuracy:.2%}", reached_on_test(network)


def target_lines(result: SearchResult) -> tuple[str, ...]:
    """Say in words what each target got, a line each; after training again, whether that beats uniform widths."""
    return tuple(_line(each, row, result) for each, row in zip(answers(result), target_rows(result), strict=True))


def _line(answer: Answer, row: tuple[str, ...], result: SearchResult) -> str:
    what, name, _, val, test, uniform_val, uniform_test, _ = row
    if answer.best is None:
        return f"At {what} no network was found."
    text = f"Best at {what}: network {name}, validation {val}, test {test}; "
    text += f"uniform widths {uniform_val} and {uniform_test}."
    uniform = answer.best.trial.baseline == UNIFORM
    return text + confirmed_statement(answer.best, result.control_of(answer.best), uniform, "it")
