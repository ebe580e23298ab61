"""How a study comes by its next candidate: planned ones first, then the sampler's, each of them once."""

from dataclasses import replace

from runners.trial import Trial, derive_seed
from search.schedulers.ladder import Ladder
from search.searchers.candidate_space import CandidateSpace, Planned
from search.searchers.sampling import Handle, Sampling
from search.searchers.study_settings import StudySettings
from search.storage.history import Known
from search.storage.pending import GivenOut
from search.storage.study_storage import FRACTION

REPEATS = 100  # proposals in a row that may repeat earlier ones before random ones are taken, and as many of those
RIVAL_REPEATS = 12  # the same before a candidate is given fewer rivals: small spaces have few at one budget fraction


class Asking:
    """Proposes candidates that were not tried yet.

    Args:
        settings: of the study.
        candidates: what is sampled.
        known: results so far.
        ladder: gives the first leg of a candidate.
        given_out: takes in what is proposed.

    Attributes:
        sampling: the sampler behind it.
        planned: candidates that come before the sampler's.
        repeats: how many proposals repeated an earlier candidate.
    """

    def __init__(
        self,
        settings: StudySettings,
        candidates: CandidateSpace,
        known: Known,
        ladder: Ladder,
        given_out: GivenOut[Handle],
    ) -> None:
        self._seed, self._candidates, self._known = settings.seed, candidates, known
        self._ladder, self._given_out = ladder, given_out
        self.sampling = Sampling(settings, candidates, known, given_out.begun)
        self.planned: list[Planned] = []
        self.repeats = 0

    def next(self) -> Trial | None:
        """Return the next candidate, which then runs; None when even chance finds none that was not tried."""
        while self.planned:
            trial = self._propose(self.planned.pop(0))
            if trial is not None:
                self._given_out.planned.add(trial.number)
                return trial
        for turn in range(REPEATS):
            if (trial := self._propose(fraction=self.sampling.next_fraction(turn))) is not None:
                return trial
        with self.sampling.at_random():
            for turn in range(REPEATS):
                if (trial := self._propose(fraction=self.sampling.next_target(turn))) is not None:
                    return trial
        return None

    def rivals(self, trial: Trial, count: int) -> list[Trial]:
        """Return up to so many other candidates with the number, method and budget fraction of a running trial.

        None where nothing could be compared with it.
        """
        handle = self._given_out.running[trial.number][0]
        if handle is None or not self.is_screenable(trial):
            return []
        found: list[Trial] = []
        repeats = 0
        while len(found) < count and repeats < RIVAL_REPEATS:
            rival = self._propose(fraction=handle.params[FRACTION], rival_of=trial)
            found += [] if rival is None else [rival]
            repeats = repeats + 1 if rival is None else 0
        return found

    def is_screenable(self, trial: Trial) -> bool:
        """Whether a running trial is new, proposed, and cut before any training."""
        handle = self._given_out.running[trial.number][0]
        return handle is not None and trial.number not in self._given_out.planned and self._candidates.screenable(trial)

    def _propose(
        self, planned: Planned | None = None, fraction: float | None = None, rival_of: Trial | None = None
    ) -> Trial | None:
        """Return the next candidate, or None when it repeats an earlier one (which is told to the sampler).

        Args:
            fraction: that the sampler finds chosen already, among the trial's fixed parameters.
            rival_of: with whose number and method.
        """
        given = None if planned is None else planned.parameters
        if planned is None and fraction is not None:
            same = {"method": rival_of.method} if rival_of is not None and len(self._candidates.methods) > 1 else {}
            given = {FRACTION: fraction, **same}
        handle = self.sampling.ask(given)
        drawn = self._candidates.draw(handle, planned)
        number = self._next_number() if rival_of is None else rival_of.number
        baseline = planned.baseline if planned else ""
        trial = Trial(number, drawn.method, drawn.goal, drawn.settings, baseline=baseline, training=drawn.training)
        key = trial.key()
        segment = self._ladder.begin(trial, self._known.results) if self._candidates.pausable(trial) else None
        trial = replace(trial, seed=derive_seed(self._seed, key), segment=segment)
        known = self._known.like(key)
        earlier = self._given_out.keys.get(key) if known is None else known.trial.number
        if earlier is not None:
            self.sampling.repeat(handle, earlier, known)
            self.repeats += 1
            return None
        if rival_of is None:
            self._given_out.running[number] = (handle, trial)
        else:
            self._given_out.add_rival(handle, trial)
        return trial

    def _next_number(self) -> int:
        return max([-1, *self._known.numbers, *self._given_out.running]) + 1
