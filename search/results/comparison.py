"""Comparison of a network with the best baseline: on validation, and on test over several trainings.

The test accuracy of one network varies by a good part of a point over the seeds of its training. So a difference counts
only when it is larger than that noise, which is the noise of training again, read on these test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from runners.trial import Confirmation, Trial, TrialResult
from search.results.pareto import ParetoFront, dominates, most_accurate, objectives

CERTAINTY = 0.95  # probability that of two equally good networks the first is not ahead by more than the noise


@dataclass(frozen=True)
class Difference:
    """Mean test accuracy of one re-trained network minus that of another.

    Attributes:
        standard_error: of the mean, from the standard deviations over the seeds of both networks.
        noise: largest difference that may come from the seeds alone; at least one test image.
    """

    mean: float
    standard_error: float
    noise: float

    @property
    def beyond_noise(self) -> bool:
        """Whether one network is better than the other by more than the noise."""
        return abs(self.mean) > self.noise


def difference(left: TrialResult | None, right: TrialResult | None) -> Difference | None:
    """Compare two re-trained networks; None unless both have two accuracies or more.

    The noise is the standard error of the difference times the quantile of Student's t distribution at `CERTAINTY`, for
    unequal variances. Welch, Biometrika 34, 1947.
    """
    found = [network.confirmation for network in (left, right) if network is not None]
    sides = [confirmation for confirmation in found if confirmation is not None and len(confirmation.accuracies) > 1]
    if len(sides) < 2:
        return None
    from scipy.special import stdtrit

    means = [side.mean or 0.0 for side in sides]
    counts = [len(side.accuracies) for side in sides]
    variances = [(side.std or 0.0) ** 2 / count for side, count in zip(sides, counts, strict=True)]
    error = math.sqrt(sum(variances))
    noise = 0.0
    if error > 0:
        freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, counts, strict=True))
        noise = float(stdtrit(freedom, CERTAINTY)) * error
    return Difference(means[0] - means[1], error, max(noise, 1 / sides[0].images))


def is_ahead(reached: float, other: float, images: int) -> bool:
    """Return whether an accuracy is above another by more than the noise of two readings on so many images.

    The noise is the standard error of a difference of two proportions times the normal quantile at `CERTAINTY`.
    """
    error = math.sqrt((reached * (1 - reached) + other * (1 - other)) / images)
    return reached - other > NormalDist().inv_cdf(CERTAINTY) * error


@dataclass(frozen=True)
class BaselineComparison:
    """Whether the search did better than the best of its baselines.

    Attributes:
        baseline_trial: number of the trial with the most accurate baseline network inside the budgets; None without.
        won: whether the chosen network is of no baseline, and more accurate on validation than that network, or
            as accurate and cheaper.
        dominated: number of baseline networks, of those that were measured, that a searched network dominates.
        statement: the same in plain words, with the test accuracies where they are known.
        difference: of the chosen network to the best baseline at its FLOPs, on test, where both were trained again.
    """

    baseline_trial: int | None
    won: bool
    dominated: int
    baselines: int
    statement: str
    difference: Difference | None = None


def baseline_text(trial: Trial) -> str:
    """Write a baseline in words, such as "di with own widths"."""
    return f"{trial.method} with {trial.baseline} widths"


def compare_with_baselines(
    measured: Sequence[TrialResult], inside: Sequence[TrialResult], retrained: TrialResult | None, axis: str
) -> BaselineComparison:
    """Compare the chosen network of a search with the best of its baselines.

    Args:
        measured: networks of the baselines, inside the budgets or not.
        inside: every network inside the budgets.
        retrained: the best baseline at the FLOPs of the chosen network, trained again; None where there is none.
        axis: of the front, "flops" or "latency".
    """
    chosen = most_accurate(ParetoFront(tuple(inside), axis))
    best = most_accurate(network for network in inside if network.trial.baseline)
    searched = [network for network in inside if not network.trial.baseline]
    dominated = sum(any(dominates(other, network, axis) for other in searched) for network in measured)
    won = chosen is not None and not chosen.trial.baseline and chosen is most_accurate(filter(None, (chosen, best)))
    confirmed = confirmed_statement(chosen, retrained, not won)
    gap = difference(chosen, retrained)
    if best is None or chosen is None:
        text = "No baseline network is inside the budgets" if measured else "No baseline finished"
        return BaselineComparison(None, False, dominated, len(measured), text + ": no comparison." + confirmed, gap)
    text = validation_statement(chosen, best, won)
    text += f" Searched networks dominate {dominated} of the {len(measured)} baseline networks." + confirmed
    return BaselineComparison(best.trial.number, won, dominated, len(measured), text, gap)


def validation_statement(chosen: TrialResult, baseline: TrialResult, won: bool) -> str:
    """Say how the chosen network compares with the best baseline network of the search.

    The single test accuracies are named only where the chosen network was not trained again, which says more.
    """
    name = baseline_text(baseline.trial)
    flops, baseline_flops = objectives(chosen)[0], objectives(baseline)[0]
    reached, baseline_reached = chosen.settled_accuracy or 0.0, baseline.settled_accuracy or 0.0
    where = "on validation" + (" over the last epochs" if chosen.final_epochs or baseline.final_epochs else "")
    if not won:
        return (
            f"The search did not beat its best baseline, {name} ({baseline_reached:.2%} {where}, "
            f"{baseline_flops:,} FLOPs)."
        )
    text = (
        f"The chosen network beats the best baseline, {name}, {where}: {reached:.2%} at {flops:,} FLOPs against "
        f"{baseline_reached:.2%} at {baseline_flops:,}"
    )
    if chosen.test_accuracy is None or baseline.test_accuracy is None or chosen.confirmation is not None:
        return text + "."
    verdict = "confirms it" if chosen.test_accuracy > baseline.test_accuracy else "does not confirm it"
    return text + f"; test {verdict} ({chosen.test_accuracy:.2%} against {baseline.test_accuracy:.2%})."


def confirmed_statement(
    chosen: TrialResult | None, retrained: TrialResult | None, is_baseline: bool, name: str = "the chosen one"
) -> str:
    """Say what training again has shown, with a space before it; empty when nothing was trained again.

    Args:
        retrained: the best baseline at the FLOPs of `chosen`, trained again; None when there is no such network.
        is_baseline: whether `chosen` is of a baseline itself.
        name: how the text calls `chosen`.
    """
    if chosen is None or (confirmed := chosen.confirmation) is None:
        return ""
    again = len(confirmed.accuracies)
    text = f" Trained again from the dense network with {again} fresh seed{'' if again == 1 else 's'}, {name} "
    text += f"has {_figure(confirmed)} on test"
    if is_baseline:
        return text + "; it is a baseline itself."
    if retrained and (retrained.trial.method, retrained.widths) == (chosen.trial.method, chosen.widths):
        return text + "; the best baseline at its FLOPs is the same network."
    if retrained is None:
        return text + "; no baseline inside the budgets has as few FLOPs."
    gap, other = difference(chosen, retrained), retrained.confirmation
    if gap is None or other is None:
        return text + "; too few trainings have ended to compare it with the best baseline at its FLOPs."
    found = "is more" if gap.beyond_noise else "is not more"
    so = "so it is not shown to beat the baseline"
    if gap.beyond_noise:
        so = "so it beats the baseline" if gap.mean > 0 else "so the baseline beats it"
    return text + (
        f", the best baseline at its FLOPs, {baseline_text(retrained.trial)}, {_figure(other)} "
        f"({objectives(retrained)[0]:,} against {objectives(chosen)[0]:,} FLOPs): the difference of "
        f"{100 * gap.mean:+.2f} points, with a standard error of {100 * gap.standard_error:.2f}, {found} than the "
        f"noise of training ({100 * gap.noise:.2f}), {so}."
    )


def failed_again(*networks: TrialResult | None) -> list[str]:
    """Say which trainings of the confirmation failed and why, one line per network."""
    lines = []
    for network in networks:
        if network is not None and network.confirmation is not None and (errors := network.confirmation.errors):
            tried = len(errors) + len(network.confirmation.accuracies)
            name = f"trial {network.label} ({network.trial.method})"
            lines.append(f"{name} trained again: {len(errors)} of {tried} failed: {' '.join(errors[0].split())}")
    return lines


def reached_on_test(network: TrialResult) -> str:
    """Write the test accuracy: mean and standard deviation over several trainings, else the one that was read once."""
    if network.confirmation is not None and network.confirmation.std is not None:
        return _figure(network.confirmation).replace(" ", "")  # 80 columns are few
    return "-" if network.test_accuracy is None else f"{network.test_accuracy:.2%}"


def confirmed_figures(network: TrialResult) -> dict[str, float | None]:
    """Return test_mean, test_std and test_seeds of a network; None where it was not trained again."""
    found = network.confirmation
    if found is None:
        return {"test_mean": None, "test_std": None, "test_seeds": None}
    return {"test_mean": found.mean, "test_std": found.std, "test_seeds": len(found.accuracies)}


def _figure(confirmation: Confirmation) -> str:
    if confirmation.mean is None:
        return "no accuracy"
    spread = "" if confirmation.std is None else f" ± {100 * confirmation.std:.2f}"
    return f"{100 * confirmation.mean:.2f}{spread}%"
