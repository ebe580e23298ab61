import logging
import logging.config
from pathlib import Path
from typing import Any

import mlflow.tracking
import pytest

from search.tracking.store import create_store as create_for_good  # bound before the stores of tests become copies
from search.tracking.store import missing_file, open_store


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that MLflow has created."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    create_for_good(file)
    return file


def test_a_store_is_created_once_and_then_opened(created: Path, tmp_path: Path) -> None:
    assert missing_file(f"sqlite:///{created}") is None
    assert missing_file(f"sqlite:///{tmp_path / 'mlflow.db'}") == tmp_path / "mlflow.db"
    assert missing_file(f"sqlite:///{tmp_path / 'no folder' / 'mlflow.db'}") is None
    assert missing_file("http://server:5000") is None
    assert open_store(f"sqlite:///{created}").search_experiments()


def test_a_store_that_a_kill_left_half_made_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, file = [], tmp_path / "mlflow.db"

    class Killed(mlflow.tracking.MlflowClient):
        def search_experiments(self, *arguments: Any, **settings: Any) -> Any:
            super().search_experiments(*arguments, **settings)
            made.append(sorted(path.name for path in tmp_path.iterdir()))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.tracking, "MlflowClient", Killed)
        with pytest.raises(KeyboardInterrupt):
            create_for_good(file)
    ((name,),) = made
    assert name.startswith(".mlflow.db.")
    (tmp_path / name).write_bytes(b"half made")
    create_for_good(file)
    assert open_store(f"sqlite:///{file}").search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_creating_a_store_leaves_the_logging_of_the_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Configuring:
        """Configures logging while it creates a store, as the migrations of MLflow 3.1 do."""

        def __init__(self, tracking_uri: str) -> None:
            self.file = Path(tracking_uri.removeprefix("sqlite:///"))

        def search_experiments(self, max_results: int) -> None:
            logging.config.fileConfig("no such file")
            self.file.touch()

    configure = logging.config.fileConfig
    monkeypatch.setattr(mlflow.tracking, "MlflowClient", Configuring)
    create_for_good(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").exists()
    assert logging.config.fileConfig is configure
