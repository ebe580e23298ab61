"""Sentences about how a search went: why it ended, its rungs, its screening, its fine-tuning, its failures."""

from collections import Counter
from collections.abc import Iterable, Sequence

from runners.learning_curve import LearningCurve
from runners.trial import TrialResult, TrialState
from search.problem import BASELINES
from search.reporting.wording import one_line, plural, training_text
from search.results.rank_correlation import (
    LEAST_TO_JUDGE,
    SCREENED,
    TRUSTED,
    USEFUL,
    RungAudit,
    first_rung,
    misleads,
    switched_off,
)
from search.results.result import SearchResult
from search.schedulers.segments import KEPT_AFTER, NOT_CONTINUED


def ending(result: SearchResult) -> str:
    """Say what ended a search before all its trials were finished; empty when nothing did."""
    trials = plural(len(result.results), "finished trial")
    if result.interrupted:
        return f"Stopped early: {trials}, the front and the report are kept."
    if result.lost:
        return f"Ended early: {result.lost}. {trials}, the front and the report are kept."
    if not result.time_limited:
        return ""
    text = f"The time limit of {result.config['time_limit']} ended the search after {trials}"
    return f"{text}." if len(result.front) else f"{text}, none of which gave a network inside the budgets."


def dense_statement(curve: LearningCurve | None) -> str:
    """Say that the dense network was still improving as its training ended; empty where it was not, or is not known."""
    if curve is None or not curve.still_improving:
        return ""
    return (
        f"The dense network was still improving as its training of {plural(curve.epochs, 'epoch')} ended: more "
        "--dense-epochs lift every network of the front."
    )


def training_statements(result: SearchResult) -> list[str]:
    """Say how the networks of the report were fine-tuned, one per line; empty where nothing was searched."""
    networks = result.reported[::-1]
    if not any(network.trial.training for network in networks):
        return []
    lines = [f"  network {network.label}: {training_text(network.trial.training) or 'as set'}" for network in networks]
    return ["Fine-tuning of the networks above:", *lines]


def rung_statements(result: SearchResult) -> list[str]:
    """Say how many trials ended at which rung, which of the front are not trained to the end, and what went wrong."""
    rungs = result.rungs
    if not rungs:
        return []
    trained = [trial for trial in result.results if trial.rungs]
    ended = Counter(trial.rungs[-1][0] for trial in trained)
    spent = sum(epochs * trials for epochs, trials in ended.items())
    places = ", ".join(f"{plural(ended[epochs], 'trial')} ended after {epochs}" for epochs in sorted(ended))
    lines = [
        f"Rungs after {', '.join(map(str, rungs[:-1]))} of {rungs[-1]} epochs: {places or 'no trial has ended'}; "
        f"{spent} epochs of training instead of {len(trained) * rungs[-1]}."
    ]
    short = [member for member in result.front if member.rungs and (member.trained or 0) < rungs[-1]]
    if short:
        named = ", ".join(f"{member.label} ({member.trained})" for member in short)
        lines.append(f"Not trained to the end, though on the front (epochs): {named}.")
    for trial in trained:
        name = f"Trial {trial.trial.number}"
        if NOT_CONTINUED in trial.note:
            lines.append(f"{name} did not go on {trial.note[NOT_CONTINUED]}.")
        if KEPT_AFTER in trial.note:
            kept = trial.note[KEPT_AFTER]
            lines.append(f"{name} was better after {kept} epochs than after {trial.trained}: that network is kept.")
    return [*lines, audit_statement(result.rung_audits, rungs)]


def audit_statement(audits: Sequence[RungAudit], rungs: Sequence[int]) -> str:
    """Say from which rung on trials were judged, and why."""
    if not audits or audits[0].trials < LEAST_TO_JUDGE or audits[0].correlation is None:
        return f"Proxy audit: fewer than {LEAST_TO_JUDGE} different trials came to the end, too few to judge a rung by."
    first = first_rung(audits)
    known = ", ".join(f"{audit.correlation or 0:.2f} after {audit.epochs}" for audit in audits)
    text = f"Proxy audit: rank correlation with the end is {known} epochs over {audits[0].trials} trials; "
    if (audits[first].correlation or 0) < TRUSTED:
        return f"{text}none reaches {TRUSTED:g}, so trials were first judged where it is highest, after {rungs[first]}."
    return f"{text}trials were first judged after {rungs[first]}, the first to reach {TRUSTED:g}."


def screening_statements(result: SearchResult) -> list[str]:
    """Say how many trials were chosen before training, how far that can be trusted, and whether it was given up."""
    sizes = [trial.note[SCREENED] for trial in result.results if SCREENED in trial.note]
    if not sizes:
        return []
    least, most = min(sizes), max(sizes)
    searched = sum(not trial.trial.final for trial in result.results)
    lines = [
        f"Screening: {len(sizes)} of {searched} trials were the best of {least}"
        + (f" to {most}" if most > least else "")
        + f" candidates before training; {sum(sizes)} candidates were compared."
    ]
    if heirs := [trial for trial in result.results if SCREENED in trial.note and trial.trial.parent]:
        lines[0] += f" {len(heirs)} of them began with a trained network instead of the dense one."
    audit = result.screening_audit
    if audit is not None and audit.correlation is not None:
        lines[0] += (
            " Rank correlation of the proxy before training with the end of training: "
            f"{audit.correlation:.2f} over {audit.trials} trials."
        )
        if misleads(audit):
            lines.append(f"That is under {USEFUL:g}: this network and data are better searched with --screen none.")
    if switched_off(result.results):
        lines.append(f"Screening was switched off on the way, when that correlation was under {USEFUL:g}.")
    return lines


def commonest_failure(results: Sequence[TrialResult]) -> str | None:
    """Say why most trials failed, in a search none of whose trials gave a network; None where one did."""
    if not results or any(result.state is not TrialState.FAILED for result in results):
        return None
    reason, count = Counter(one_line(result.error) for result in results).most_common(1)[0]
    return f"{count} of {plural(len(results), 'trial')} failed with: {reason}"


def baseline_statements(result: SearchResult) -> list[str]:
    """Say which baselines of the search are missing, and why, one per line."""
    trials = [trial for trial in result.results if trial.trial.baseline]
    lines = [
        f"Missing baseline: {trial.trial.method} with {trial.trial.baseline} widths (trial {trial.trial.number}), "
        f"{one_line(trial.error)}."
        for trial in trials
        if trial.state is TrialState.FAILED
    ]
    begun = {(trial.trial.method, trial.trial.baseline) for trial in trials}
    if result.interrupted or result.time_limited or result.lost:
        lines += [
            f"Missing baseline: {baseline.method} with {baseline.widths} widths, the search ended before it."
            for baseline in BASELINES
            if (baseline.method, baseline.widths) not in begun
        ]
    return lines


def failure_statements(results: Iterable[TrialResult]) -> list[str]:
    """Say which trials failed and why, one line per trial."""
    failed = [result for result in results if result.state is TrialState.FAILED]
    lines = [f"{plural(len(failed), 'trial')} failed:"] if failed else []
    return lines + [f"  trial {r.trial.number} ({r.trial.method}): {one_line(r.error)}" for r in failed]
