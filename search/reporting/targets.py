"""The answers of a search to its targets: the best network at each, beside the best uniform one."""

from dataclasses import dataclass

from runners.trial import TrialResult
from search.reporting.wording import TextTable, percent
from search.results.comparison import UNIFORM, confirmed_statement, reached_on_test
from search.results.pareto import objectives
from search.results.result import SearchResult
from spaces.budget import Budget


@dataclass(frozen=True)
class Answer:
    """The answer to one target.

    Attributes:
        target: absolute.
        best: the most accurate network on validation inside the target and all budgets; None when none is inside.
        uniform: the most accurate uniform network of the baseline there.
    """

    target: Budget
    best: TrialResult | None
    uniform: TrialResult | None

    @property
    def gain(self) -> float | None:
        """The difference of both in validation accuracy, in [-1, 1]; None unless both exist."""
        if self.best is None or self.uniform is None:
            return None
        return objectives(self.best)[1] - objectives(self.uniform)[1]

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


def targets_table(result: SearchResult) -> TextTable | None:
    """Tabulate the answers, the largest target first; None without targets."""
    rows = [_row(answer, result) for answer in answers(result)]
    columns = ("target", "network", "of target", "val acc.", "test acc.", "uniform val", "uniform test", "gain on val")
    return TextTable("Best at each target", columns, rows) if rows else None


def target_statements(result: SearchResult) -> list[str]:
    """Describe the answer to each target in a sentence; after retraining, say whether it beats uniform widths."""
    lines = []
    for answer in answers(result):
        share, name, _, val, test, uniform_val, uniform_test, _ = _row(answer, result)
        if answer.best is None:
            lines.append(f"At {share} no network was found.")
            continue
        text = f"Best at {share}: network {name}, validation {val}, test {test}; "
        text += f"uniform widths {uniform_val} and {uniform_test}."
        uniform = answer.best.trial.baseline == UNIFORM
        lines.append(text + confirmed_statement(answer.best, result.retrained_baseline_of(answer.best), uniform, "it"))
    return lines


def _row(answer: Answer, result: SearchResult) -> tuple[str, ...]:
    target, best = answer.target, answer.best
    name = "-" if best is None else f"{best.label} {best.trial.method}"
    used = "-" if best is None else percent(getattr(best.cost, target.quantity) / target.limit, 1)
    share = f"{percent(target.limit / getattr(result.dense.cost, target.quantity), 1)} of {target.quantity}"
    return (share, name, used, *_accuracies(best), *_accuracies(answer.uniform), answer.verdict)


def _accuracies(network: TrialResult | None) -> tuple[str, str]:
    return ("-", "-") if network is None else (percent(network.accuracy), reached_on_test(network))
