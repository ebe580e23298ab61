"""Networks of the front as MLflow models: they load where torch and MLflow are, without this project.

A model holds a `torch.export` program, its signature, an input example and its requirements. The client makes every
step, never MLflow's global state; `mlflow.pytorch` is used for the files alone.
"""

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.tracking import MlflowClient

ALIAS = "chosen"  # of the registered version
_EXAMPLES = 2  # images of the input example: torch.export takes the size 1 for a constant
_VERSIONS = "mlflow.modelVersions"  # tag of a model by which the UI links its registered versions


class UnexportableError(Exception):
    """A network of which torch makes no program."""


@dataclass(frozen=True)
class NetworkModel:
    """A network to be logged as a model.

    Attributes:
        name: of the model, such as "trial-0007".
        input_shape: (channels, height, width).
        metrics: which the model's page shows.
        at: time of the metrics, in milliseconds since 1970.
    """

    name: str
    net: nn.Module
    input_shape: Sequence[int]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    at: int = 0


def log_model(client: "MlflowClient", experiment: str, run: str, network: NetworkModel) -> str:
    """Log a network as a model of a run, and return the id of the model.

    Raises:
        UnexportableError: torch cannot export the network; the model is then marked as failed.
    """
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    params = dict(network.params)
    logged = client.create_logged_model(experiment, name=network.name, source_run_id=run, params=params)
    try:
        with tempfile.TemporaryDirectory() as folder:
            described = Model(artifact_path=logged.artifact_location, run_id=run, model_id=logged.model_id)
            try:
                save_model(network.net, network.input_shape, Path(folder) / "model", described)
            except Exception as error:  # torch raises errors of any class for what it cannot capture
                raise UnexportableError(str(error).partition("\n")[0]) from error
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, 0)])
    metrics = [Metric(name, value, network.at, 0, model_id=logged.model_id) for name, value in network.metrics.items()]
    client.log_batch(run, metrics=metrics)
    return str(logged.model_id)


def save_model(net: nn.Module, input_shape: Sequence[int], path: Path, described: "Model") -> None:
    """Write the files of a model into a folder that is made; `net` is on the CPU, in evaluation mode."""
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    # Eighths are written in few digits, so that the example stays a small file.
    drawn = np.random.default_rng(0).integers(0, 9, size=(_EXAMPLES, *input_shape)) / 8
    example = drawn.astype(np.float32)
    number, torch_version = np.dtype("float32"), torch.__version__.partition("+")[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export and MLflow warn of their own internals
        classes = net(torch.from_numpy(example)).shape[1:]
        signature = ModelSignature(
            Schema([TensorSpec(number, (-1, *input_shape))]), Schema([TensorSpec(number, (-1, *classes))])
        )
        mlflow.pytorch.save_model(
            net,
            str(path),
            mlflow_model=described,
            signature=signature,
            input_example=example,
            pip_requirements=[f"torch=={torch_version}", f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}"],
            serialization_format="pt2",
        )


def drop_unfinished(client: "MlflowClient", experiment: str, run: str, kept: str | None) -> None:
    """Delete the models of a run but one: a process that was killed, or an outage, left them unfinished."""
    for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'"):
        if model.model_id != kept:
            client.delete_logged_model(model.model_id)


def register(client: "MlflowClient", name: str, model: str, run: str) -> Any:
    """Make a logged model a version of a registered one, named by the alias `chosen`; return the version.

    A model that is a version already stays the same one.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not "models:/ID", which the store would look up in the store of MLflow's global state.
    source = client.get_logged_model(model).artifact_location
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    version = next((version for version in versions if version.source == source), None)
    if version is None:
        version = client.create_model_version(name, source=source, run_id=run, model_id=model)
    client.set_registered_model_alias(name, ALIAS, version.version)
    client.set_logged_model_tags(model, {_VERSIONS: json.dumps([{"name": name, "version": version.version}])})
    return version
