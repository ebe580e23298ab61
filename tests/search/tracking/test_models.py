"""Networks as MLflow models: they load without this project."""

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from search.tracking import store
from search.tracking.models import NetworkModel, drop_unfinished, log_model, register
from spaces.zoo.cifar import LeNet

SHAPE = (1, 28, 28)
# On a machine with torch and MLflow: the script makes the packages of this project unfindable.
SCRIPT = """
import sys
for name in ("search", "configs", "runners", "pruning", "spaces"):
    sys.modules[name] = None
import mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
images = numpy.load(sys.argv[2])
with torch.no_grad():
    plain = mlflow.pytorch.load_model("models:/lenet@chosen")(torch.from_numpy(images)).numpy()
generic = mlflow.pyfunc.load_model(sys.argv[3]).predict(images)
numpy.savez(sys.argv[4], plain=plain, generic=generic)
"""


@pytest.fixture
def net() -> LeNet:
    torch.manual_seed(0)
    return LeNet(10, SHAPE).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's and torch's own
def test_a_registered_network_loads_where_this_project_is_not(net: LeNet, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client: MlflowClient = store.open_store(uri)
    experiment = client.create_experiment("one", artifact_location=(tmp_path / "mlartifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    network = NetworkModel("trial-0007", net, SHAPE, {"trial": "7"}, {"accuracy": 0.9})
    model = log_model(client, experiment, run, network)
    unfinished = client.create_logged_model(experiment, name="trial-0007", source_run_id=run).model_id
    drop_unfinished(client, experiment, run, kept=model)
    assert [left.model_id for left in client.search_logged_models([experiment])] == [model]
    assert unfinished != model
    versions = [int(register(client, "lenet", model, run).version) for _ in range(2)]
    other = client.create_run(experiment).info.run_id  # another search goes on in the same name
    versions.append(int(register(client, "lenet", log_model(client, experiment, other, network), other).version))
    assert versions == [1, 1, 2]
    logged = client.get_logged_model(model)
    assert {metric.key: metric.value for metric in logged.metrics} == {"accuracy": 0.9}
    files = Path(logged.artifact_location.removeprefix("file://"))
    described = mlflow.models.Model.load(str(files))
    assert described.signature.inputs.inputs[0].shape == (-1, *SHAPE)
    requirements = (files / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements

    images = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    arguments = [uri, tmp_path / "images.npy", f"models:/{model}", tmp_path / "logits.npz"]
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, arguments)], check=True, cwd=tmp_path)
    expected = net(torch.from_numpy(images)).detach().numpy()
    for logits in np.load(tmp_path / "logits.npz").values():
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
