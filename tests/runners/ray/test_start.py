"""What Ray needs before it starts."""

import importlib
import socket
import sys
import threading
from pathlib import Path

import pytest

import runners
from runners.base import RunnerError
from runners.ray.runner import _shut_down
from runners.ray.start import check_answers, import_folders, own_modules


def test_an_address_at_which_something_listens_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:2"])
def test_an_address_at_which_nothing_listens_is_an_error(address: str) -> None:
    with pytest.raises(OSError, match="refused"):
        check_answers(address)


@pytest.mark.parametrize("address", ["", "auto"])
def test_addresses_that_only_ray_understands_are_left_to_ray(address: str) -> None:
    check_answers(address)


def test_a_ray_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    monkeypatch.setattr("ray.shutdown", waits.wait)
    monkeypatch.setattr("runners.ray.runner.SHUTDOWN_SECONDS", 0.05)
    _shut_down()
    waits.set()


def test_the_address_of_a_ray_client_is_refused_with_the_way_out() -> None:
    with pytest.raises(RunnerError, match="take the head's own address as host:port"):
        check_answers("ray://127.0.0.1:10001")


def test_imported_modules_that_are_not_installed_travel_to_the_nodes_of_a_cluster(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "travelling_net.py").write_text("")
    (tmp_path / "travelling_package").mkdir()
    (tmp_path / "travelling_package" / "__init__.py").write_text("")
    (tmp_path / "travelling_package" / "images.py").write_text("")
    (tmp_path / "not_imported.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("travelling_net")
    importlib.import_module("travelling_package.images")
    modules = own_modules()
    assert {str(tmp_path / "travelling_net.py"), str(tmp_path / "travelling_package")} <= set(modules)
    assert str(tmp_path / "not_imported.py") not in modules
    assert str(Path(runners.__file__).parent) in modules
    assert not any(module.startswith(sys.prefix) for module in modules)


def test_workers_import_from_the_folders_of_this_process_and_not_from_installed_packages(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folders = import_folders()
    assert str(tmp_path) in folders
    assert not any(folder.startswith(sys.prefix) for folder in folders)
