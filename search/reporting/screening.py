"""What a reader is told of screening: what it will do and cost, and what has come of it."""

from configs.parsing import screen_images
from pruning.base import METHODS
from pruning.traits import screenable
from search.results.result import SearchResult
from search.results.screening_correlation import SCREENED, USEFUL, misleads, switched_off
from search.searchers.candidate_space import CandidateSpace
from search.searchers.initial_design import Starts


def screened_trials(candidates: CandidateSpace, trials: int) -> float:
    """Return about how many trials will be the best of several candidates: those that are proposed, with methods that
    can be compared before training.
    """
    able, starts = comparable(candidates), Starts(candidates)
    planned = len(starts.baselines(trials)) + len(starts.warm_starts(trials))
    return (trials - planned) * len(able) / len(candidates.methods)


def comparable(candidates: CandidateSpace) -> list[str]:
    """Return the methods whose candidates can be compared before training."""
    return [each for each in candidates.methods if screenable(METHODS[each], candidates.fixed.get(each, {}))]


def screening_plan(size: int, candidates: CandidateSpace, trials: int, training: float, val_images: int) -> str:
    """Say what will be compared before training, and what it costs; empty when nothing is.

    Args:
        size: candidates for each one that is trained.
        training: images that a trial is trained on, over all its epochs.
        val_images: on which candidates are compared.
    """
    if size == 1:
        return ""
    able = comparable(candidates)
    if not able:
        return f"Screening: none, because {', '.join(candidates.methods)} cannot be compared without training."
    cost = size * screen_images(val_images) / training
    count = screened_trials(candidates, trials)
    return (
        f"Screening: about {count:.0f} trials ({', '.join(able)}) are the best of {size} candidates each before any "
        f"training, which takes about {cost:.0%} of the time that training the best one does."
    )


def screening_lines(result: SearchResult) -> list[str]:
    """Say how many trials were chosen before training, what that leaves in doubt, and whether it was given up."""
    sizes = [each.note[SCREENED] for each in result.results if SCREENED in each.note]
    if not sizes:
        return []
    lines = [
        f"Screening: {len(sizes)} of {len(result.results)} trials were the best of {min(sizes)}"
        + (f" to {max(sizes)}" if max(sizes) > min(sizes) else "")
        + f" candidates before training, {sum(sizes)} in all."
    ]
    audit = result.screening_audit
    if audit is not None and audit.correlation is not None:
        lines[0] += f" Rank correlation with the end of training: {audit.correlation:.2f} over {audit.trials} trials."
        if misleads(audit):
            lines.append(f"That is under {USEFUL:g}: this network and data are better searched with --screen none.")
    if switched_off(result.results):
        lines.append(f"Screening was switched off on the way, when that correlation was under {USEFUL:g}.")
    return lines
