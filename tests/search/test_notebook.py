import csv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from search.tracking import store

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def test_the_worked_notebook_runs_and_shows_its_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_store(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.source.splitlines()[0]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    shown = outputs["result"][0].data["text/html"]
    with (tmp_path / "runs" / "notebook" / "front.csv").open() as file:
        front = list(csv.DictReader(file))
    assert front
    assert shown.count("<tr") == 1 + len(front)
    assert all(f"{int(row['flops']):,}" in shown for row in front)
    assert "image/png" in outputs["axes = result.plot()"][-1].data
    assert outputs["net = result.load(result.chosen)"][-1].data["text/plain"] == "torch.Size([1, 10])"
    assert (tmp_path / "runs" / "notebook" / "exports").is_dir()
