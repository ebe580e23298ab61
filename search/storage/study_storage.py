"""Record: a search as an Optuna study in a storage, which outlives the process."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import OptunaError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from search.searchers.study_settings import StudySettings
from spaces.errors import SlimfrontError

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)  # validation accuracy, FLOPs
FRACTION = "budget_fraction"
_WORDS = {"widths": "another network or space", "methods": "other methods", "budgets": "other budgets"}


class StudyError(SlimfrontError):
    """A study that cannot be opened, or that is told something it did not ask for."""


class Record:
    """The stored study of one search.

    Args:
        settings: with a storage.
        identity: "widths", "methods" and "budgets", in which a stored search must agree; a resumed one may have other
            budgets, and is noted to have these from now on.

    Raises:
        StudyError: a storage that cannot be used or holds another search.
    """

    def __init__(self, settings: StudySettings, identity: Mapping[str, Any]) -> None:
        self._where = f"storage {settings.storage!r}"
        try:
            self._study = _opened(settings.storage, settings.name)
            stored = self._study.user_attrs.get("identity")
            if stored is None:
                self._study.set_user_attr("identity", dict(identity))
        except (OptunaError, SQLAlchemyError, ImportError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise StudyError(
                f"{self._where} cannot hold the study ({reason}); give a writable place or another URL"
            ) from error
        self._agree(stored or identity, identity, settings.resumed)

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """Every trial that has ended, failed ones and those of a stopped process too."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    @property
    def earlier(self) -> int:
        """How many of the trials were tried under other budgets, all of them before the rest."""
        return int(self._study.user_attrs.get("earlier", 0))

    def add(self, trial: FrozenTrial) -> None:
        """Write a trial, or another leg of one, that has ended, whole or not at all."""
        self._study.add_trial(trial)

    @property
    def latencies(self) -> Mapping[str, Any]:
        """Label of a network -> its readings as plain data, the last ones noted."""
        start = "latency "
        return {name[len(start) :]: each for name, each in self._study.user_attrs.items() if name.startswith(start)}

    def note_latency(self, label: str, readings: Sequence[Mapping[str, Any]]) -> None:
        """Note what was measured of a network after its trial had ended."""
        self._study.set_user_attr(f"latency {label}", [dict(each) for each in readings])

    def pinned(self, name: str) -> str | None:
        """Return what was pinned under this name."""
        found: str | None = self._study.user_attrs.get(f"pinned {name}")
        return found

    def pin(self, name: str, value: str) -> None:
        """Note what every result rests on.

        Raises:
            StudyError: there are results that rest on something else.
        """
        stored = self.pinned(name)
        if stored not in (None, value) and any("result" in trial.user_attrs for trial in self.trials):
            raise StudyError(
                f"{self._where} holds a search with other {name} (digest {str(stored)[:12]} there, {value[:12]} here); "
                "bring those back, or start a new search"
            )
        if stored != value:
            self._study.set_user_attr(f"pinned {name}", value)

    def _agree(self, stored: Mapping[str, Any], identity: Mapping[str, Any], resumed: bool) -> None:
        differing = [name for name in identity if stored.get(name) != identity[name]]
        if differing == ["budgets"] and resumed:
            self._study.set_user_attr("earlier", len(self.trials))
            self._study.set_user_attr("identity", dict(identity))
        elif differing:
            named = ", ".join(
                _WORDS[each] + ("" if each == "widths" else f" ({stored.get(each)} there, {identity[each]} here)")
                for each in differing
            )
            raise StudyError(f"{self._where} holds a search of {named}; give a fresh one, or those")


def _opened(url: str, name: str) -> optuna.Study:
    """Return the study of this name, made where there is none.

    Looked for before it is made: a process that was killed while it made the tables may have left that of the studies
    without the index which keeps names unique, and by which `create_study` would know that it has it.
    """
    storage = optuna.storages.get_storage(url)
    if name in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, directions=DIRECTIONS, load_if_exists=True)


def continued(trial: FrozenTrial, values: Sequence[float], attributes: Mapping[str, Any]) -> FrozenTrial:
    """Return what a trial is after another leg: the same parameters, other values (accuracy, FLOPs) and attributes."""
    return optuna.trial.create_trial(
        values=list(values), params=trial.params, distributions=trial.distributions, user_attrs=dict(attributes)
    )


def restated(trial: FrozenTrial, fraction: float, lowest: float) -> FrozenTrial | None:
    """Return a trial as if the budgets of now had been its own; None when these would not have let it be proposed.

    Args:
        fraction: of the scaled budget of now that it may cost.
        lowest: the least fraction that is proposed now.
    """
    if not lowest <= fraction <= 1 or FRACTION not in trial.params:
        return None
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params={**trial.params, FRACTION: fraction},
        distributions={**trial.distributions, FRACTION: FloatDistribution(lowest, 1.0, log=True)},
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
    )
