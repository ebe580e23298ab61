"""Journal: everything that MLflow is to have of a search, in a file of the run folder, written before it is sent.

So a server may be away, and the process may be killed, without a record being lost. A record says what a run of MLflow
has from then on, with the times of its figures: sent twice, it changes nothing. The store itself knows how many records
it has taken (`search.tracking.runs`).
"""

import json
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from configs.loading import RUN_FILE
from search.results.serialization import ResultError, from_plain, to_plain

FILE = "mlflow.jsonl"  # of a run folder


class Figures(NamedTuple):
    """Metrics of one time, in milliseconds since 1970, and one step."""

    time: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class ModelRecord:
    """A network that is logged as a model.

    Attributes:
        name: of the model, such as "trial-0007".
        path: of its checkpoint in the run folder.
        input_shape: (channels, height, width).
        figures: shown on the page of the model.
        register: name in the model registry under which it becomes a version; empty registers nothing.
    """

    name: str
    path: str
    input_shape: Sequence[int]
    params: Mapping[str, str]
    figures: Figures
    register: str = ""


@dataclass(frozen=True)
class Record:
    """What a run of MLflow has from now on, beside what earlier records gave it.

    Attributes:
        run: name of a trial's run; empty for the parent run of the search.
        start: time when the run began, in milliseconds since 1970; of a trial's first record.
        params: a parameter that has another value already keeps it, and the new one becomes the tag "now.NAME".
        documents: JSON artifacts by their names.
        files: files and folders of the run folder, each with the folder of artifacts that it goes to.
        dataset: fields of an MLflow dataset.
        view: name and value of a tag of the experiment, which is set unless there is one.
        status: with which the run ends.
        end: time when it ended, in milliseconds since 1970.
    """

    run: str = ""
    start: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[Figures] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, str]] = ()
    dataset: Mapping[str, str] = field(default_factory=dict)
    view: tuple[str, str] | None = None
    model: ModelRecord | None = None
    status: str = ""
    end: int = 0


@dataclass(frozen=True)
class Heading:
    """The first line of a journal: which runs its records are about.

    Attributes:
        search: id of the search, by which a store knows its parent run again.
        experiment: name of the experiment.
        name: of the parent run.
        began: time in milliseconds since 1970.
    """

    experiment: str
    name: str
    began: int
    search: str = field(default_factory=lambda: uuid.uuid4().hex)


def journal_file(folder: Path) -> Path:
    """Return the journal of a run folder.

    Raises:
        ResultError: there is none.
    """
    if (file := folder / FILE).is_file():
        return file
    told = f"{str(folder)!r} has no {FILE} with records for MLflow"
    if (folder / RUN_FILE).is_file():
        raise ResultError(f"{told}: its search kept none, --resume {shlex.quote(str(folder))} records it anew")
    raise ResultError(f"{told}; give the run folder of a search")


class Journal:
    """The records of a search; one process at a time writes them.

    Args:
        folder: run folder.
        heading: of a journal that is made now; None opens the one that is there.

    Attributes:
        earlier: number of records that were there.

    Raises:
        ResultError: there is none, or it was changed.
    """

    def __init__(self, folder: Path, heading: Heading | None = None) -> None:
        if heading is not None:
            (folder / FILE).write_bytes(_line(asdict(heading)))
        self._file = journal_file(folder)
        self._drop_torn_line()
        lines = self._lines()
        self.heading = from_plain(Heading, next(lines, {}))
        self.earlier = self._count = sum(1 for _ in lines)

    def __len__(self) -> int:
        """Return the number of records."""
        return self._count

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records from a number on."""
        for number, line in enumerate(self._lines(), start=-1):
            if number >= start:
                yield from_plain(Record, line)

    def append(self, record: Record) -> int:
        """Write a record, whole or not at all, and return its number.

        Raises:
            OSError: there is no room, or the file is gone.
        """
        plain = {name: value for name, value in to_plain(record).items() if value}
        with self._file.open("r+b") as file:
            place = file.seek(0, 2)
            try:
                file.write(_line(plain))
                file.flush()
            except OSError:
                file.truncate(place)
                raise
        self._count += 1
        return self._count - 1

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            with self._file.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
        except ValueError as error:
            raise ResultError(
                f"{self._file} is no journal of a search ({error}); remove it, and --resume records anew"
            ) from error

    def _drop_torn_line(self) -> None:
        """Drop a record in whose midst the process was killed."""
        content = self._file.read_bytes()
        if whole := len(content) - (content.rfind(b"\n") + 1):
            with self._file.open("r+b") as file:
                file.truncate(len(content) - whole)


def _line(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"
