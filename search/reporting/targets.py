"""The answers of a search to its targets: the best network at each, beside the best baseline."""

from dataclasses import dataclass

from runners.trial import TrialResult
from search.reporting.wording import TextTable, percent
from search.results.comparison import baseline_text, confirmed_statement, reached_on_test
from search.results.pareto import objectives
from search.results.result import SearchResult
from spaces.budget import Budget


@dataclass(frozen=True)
class Answer:
    """The answer to one target.

    Attributes:
        target: absolute.
        best: the most accurate network on validation inside the target and all budgets; None when none is inside.
        baseline: the most accurate network of a baseline there; None when none is inside.
    """

    target: Budget
    best: TrialResult | None
    baseline: TrialResult | None

    @property
    def gain(self) -> float | None:
        """The difference of both in validation accuracy, in [-1, 1]; None unless both exist."""
        if self.best is None or self.baseline is None:
            return None
        return objectives(self.best)[1] - objectives(self.baseline)[1]

    @property
    def verdict(self) -> str:
        """Say whether the search has beaten the best baseline here."""
        if self.best is None:
            return "no network"
        if self.best.trial.baseline:
            return "baseline is best"
        return "no baseline" if self.gain is None else f"{100 * self.gain:+.2f}"


def answers(result: SearchResult) -> tuple[Answer, ...]:
    """Return the answer to every target, the largest first."""
    return tuple(
        Answer(target, result.best_at(target), result.best_at(target, baselines=True)) for target in result.targets
    )


def targets_table(result: SearchResult) -> TextTable | None:
    """Tabulate the answers, the largest target first; None without targets."""
    rows = [_row(answer, result) for answer in answers(result)]
    heads = "target, network, of target, val acc., test acc., best baseline, its val, its test, gain on val"
    return TextTable("Best at each target", tuple(heads.split(", ")), rows) if rows else None


def target_statements(result: SearchResult) -> list[str]:
    """Describe the answer to each target in a sentence; after retraining, say whether it beats the best baseline."""
    lines = []
    for answer in answers(result):
        share, name, _, val, test, _, baseline_val, baseline_test, _ = _row(answer, result)
        if answer.best is None:
            lines.append(f"At {share} no network was found.")
            continue
        text = f"Best at {share}: network {name}, validation {val}, test {test}; "
        is_baseline = bool(answer.best.trial.baseline)
        if is_baseline:
            text += f"this is the best baseline, {baseline_text(answer.best.trial)}: the search did not beat it."
        elif answer.baseline is None:
            text += "no baseline is inside."
        else:
            text += f"the best baseline, {baseline_text(answer.baseline.trial)}, {baseline_val} and {baseline_test}."
        again = confirmed_statement(answer.best, result.retrained_baseline_of(answer.best), is_baseline, "it")
        lines.append(text + again)
    return lines


def _row(answer: Answer, result: SearchResult) -> tuple[str, ...]:
    target, best = answer.target, answer.best
    used = "-" if best is None else percent(getattr(best.cost, target.quantity) / target.limit, 1)
    share = f"{percent(target.limit / getattr(result.dense.cost, target.quantity), 1)} of {target.quantity}"
    names = _name(best), _name(answer.baseline)
    return (share, names[0], used, *_accuracies(best), names[1], *_accuracies(answer.baseline), answer.verdict)


def _name(network: TrialResult | None) -> str:
    return (
        "-"
        if network is None
        else f"{network.label} {network.trial.baseline} {network.trial.method}".replace("  ", " ")
    )


def _accuracies(network: TrialResult | None) -> tuple[str, str]:
    return ("-", "-") if network is None else (percent(network.accuracy), reached_on_test(network))
