"""SearchRuns: the MLflow runs of one search in an open store, to which the records of its journal are sent."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.reporting.picture import write_png
from search.results.loading import load
from search.results.result import SearchResult
from search.results.serialization import ResultError
from search.tracking.description import KIND_TAG, MODEL_TRAINING
from search.tracking.journal import Figures, Heading, ModelRecord, Record
from search.tracking.models import ALIAS, NetworkModel, drop_unfinished, log_model, register
from search.tracking.store import ARTIFACTS, PARENT_TAG, open_store, page_address, rebase_artifacts, ui_command

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

PICTURE = "front.png"  # artifact, renewed while the search runs
CHANGED_PREFIX = "now."  # of the tags of a run that hold the settings which a resumed search has changed
SEARCH_TAG = "slimfront.search"  # tag of a parent run: the id of its search
TAKEN_TAG = "slimfront.records"  # tag of a parent run: how many records of the journal the store has taken
MOST_AT_ONCE = 1000  # values in a request, by the rules of MLflow's servers
MODEL_TAG, MODEL_OF_TAG = "model_id", "model_of"  # tags of a trial's run: its model, and the checkpoint it was made of


class SearchRuns:
    """The runs of one search: a parent run, and one child run per trial. Used by one thread alone.

    Runs are addressed by their ids, never by MLflow's global state, so an MLFLOW_RUN_ID in the environment changes
    nothing.

    Attributes:
        experiment: id of the experiment.
        parent: id of the parent run.
        taken: number of records that the store had taken when it was opened.
    """

    def __init__(self, client: "MlflowClient", heading: Heading, folder: Path, trust: bool, place: str | None) -> None:
        self._client, self._folder, self._trust = client, folder, trust
        known = client.get_experiment_by_name(heading.experiment)
        self.experiment = (
            known.experiment_id if known else client.create_experiment(heading.experiment, artifact_location=place)
        )
        if known is None or KIND_TAG not in known.tags:
            client.set_experiment_tag(self.experiment, KIND_TAG, MODEL_TRAINING)
        # Whether the store may have runs and models that this process does not know.
        self._in_doubt = True
        tags = {SEARCH_TAG: heading.search}
        self.parent, self._in_doubt = self._find_or_create(heading.name, tags, heading.began)
        self.taken = int(client.get_run(self.parent).data.tags.get(TAKEN_TAG, 0)) if self._in_doubt else 0
        self._children: dict[str, str] = {}  # name of a trial's run -> its id

    @classmethod
    def open(cls, uri: str, folder: Path, heading: Heading, local: bool, *, trust: bool = True) -> "SearchRuns":
        """Open the store and the parent run of a journal, which is made where there is none.

        Args:
            local: whether the store is in the run folder; its artifacts then are there, too.
            trust: whether code that a network of the run folder names may be imported and called.
        """
        if local:
            rebase_artifacts(folder)
        return cls(open_store(uri), heading, folder, trust, (folder / ARTIFACTS).as_uri() if local else None)

    def answers(self) -> bool:
        """Return whether the store answers."""
        try:
            self._client.get_run(self.parent)
        except Exception:  # whatever its library raises
            return False
        return True

    def command(self, uri: str) -> str:
        """Return the command line that opens MLflow on this search, or on a server the address of its page."""
        if uri.startswith(("http://", "https://")):
            return page_address(uri, self.experiment, self.parent)
        return ui_command(uri, self.experiment)

    def go_on(self) -> None:
        """Mark the parent run as running again."""
        self._client.update_run(self.parent, status="RUNNING")

    def stop(self) -> None:
        """End the parent run of a search whose process was killed."""
        self._client.set_terminated(self.parent, "KILLED")

    def send(self, record: Record) -> None:
        """Make the store have what a record says; whether it has a part of it already makes no difference.

        Raises:
            WeightsError: the record has a network that names code, which is not trusted.
            ResultError: it names a file outside the run folder.
            Exception: whatever MLflow raises when a store does not take it.
        """
        try:
            self._send(record)
        except BaseException:
            self._in_doubt = True
            raise

    def confirm(self, taken: int) -> None:
        """Note in the store how many records it has taken."""
        self._client.set_tag(self.parent, TAKEN_TAG, str(taken))

    def write_picture(self, result: SearchResult) -> None:
        """Draw the search so far in place of the picture before."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PICTURE
            write_png(result, file)
            self._client.log_artifact(self.parent, str(file))

    def _send(self, record: Record) -> None:
        run, is_new = self._run(record)
        self._log_values(run, record, is_new)
        if record.dataset:
            self._log_dataset(run, record.dataset)
        for name, content in record.documents.items():
            self._client.log_dict(run, content, name)
        for path, place in record.files:
            written = self._inside(path)
            if written.is_dir():
                self._client.log_artifacts(run, str(written), place or None)
            else:
                self._client.log_artifact(run, str(written), place or None)
        if record.view is not None:
            self._save_view(*record.view)
        if record.model is not None:
            self._log_model(run, record.model)
        if record.status:
            self._client.set_terminated(run, record.status, record.end)

    def _run(self, record: Record) -> tuple[str, bool]:
        """Return the id of the run that a record is about, and whether it was made for it."""
        if not record.run:
            return self.parent, False
        if record.run in self._children:
            return self._children[record.run], False
        found, was_there = self._find_or_create(record.run, {PARENT_TAG: self.parent}, record.start or None)
        self._children[record.run] = found
        return found, not was_there

    def _find_or_create(self, name: str, tags: Mapping[str, str], start: int | None) -> tuple[str, bool]:
        """Return the id of the run with this name and these tags, and whether it was there."""
        if self._in_doubt:
            same = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
            condition = f"{same} and attributes.run_name = '{name}'" if PARENT_TAG in tags else same
            found = self._client.search_runs(
                [self.experiment], condition, max_results=1, order_by=["attributes.start_time"]
            )
            if found:
                return str(found[0].info.run_id), True
        made = self._client.create_run(self.experiment, start_time=start, tags=dict(tags), run_name=name)
        return str(made.info.run_id), False

    def _log_values(self, run: str, record: Record, is_new: bool) -> None:
        """Log parameters, tags and metrics, at once if they fit into one request.

        MLflow never changes a parameter, so that another value of one becomes a tag.
        """
        from mlflow.entities import Param, RunTag

        known = {} if is_new or not record.params else self._client.get_run(run).data.params
        params = [Param(name, value) for name, value in record.params.items() if name not in known]
        changed = {name: value for name, value in record.params.items() if known.get(name, value) != value}
        tags = [RunTag(name, value) for name, value in record.tags.items()]
        tags += [RunTag(CHANGED_PREFIX + name, value) for name, value in changed.items()]
        metrics = _metrics(record.figures)
        if len(params) + len(tags) + len(metrics) > MOST_AT_ONCE:
            self._client.log_batch(run, params=params, tags=tags)
            params, tags = [], []
        if params or tags or metrics:
            self._client.log_batch(run, metrics, params, tags)

    def _log_dataset(self, run: str, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = [InputTag("mlflow.data.context", "training")]
        self._client.log_inputs(run, [DatasetInput(Dataset(**dataset), tags)])

    def _save_view(self, tag: str, view: str) -> None:
        """Save a view of the front in the experiment, unless it has one, which the user may have changed."""
        if tag not in self._client.get_experiment(self.experiment).tags:
            self._client.set_experiment_tag(self.experiment, tag, view)

    def _log_model(self, run: str, record: ModelRecord) -> None:
        """Log a network as a model of its trial's run; one that has not changed keeps its model.

        Raises:
            UnexportableError: torch cannot export the network.
        """
        tags = self._client.get_run(run).data.tags
        if tags.get(MODEL_OF_TAG) != record.path or MODEL_TAG not in tags:
            if self._in_doubt:
                drop_unfinished(self._client, self.experiment, run, tags.get(MODEL_TAG))
            net = load(self._inside(record.path), trust=self._trust)
            at, _, values = record.figures
            network = NetworkModel(record.name, net, record.input_shape, record.params, values, at)
            tags = {MODEL_TAG: log_model(self._client, self.experiment, run, network), MODEL_OF_TAG: record.path}
            for name, value in tags.items():
                self._client.set_tag(run, name, value)
        if record.register:
            version = register(self._client, record.register, tags[MODEL_TAG], run)
            self._client.set_tag(self.parent, "registered", f"{record.register}@{ALIAS}, version {version.version}")

    def _inside(self, path: str) -> Path:
        """Return a path of the run folder, which may come from someone else and must name nothing outside it."""
        folder = self._folder.resolve()
        if not (found := (folder / path).resolve()).is_relative_to(folder):
            raise ResultError(f"the journal of {str(self._folder)!r} names {path!r}, which is outside the folder")
        return found


def _metrics(figures: Sequence[Figures]) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, at, step) for at, step, values in figures for name, value in values.items()]
