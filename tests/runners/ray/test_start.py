"""What Ray needs before it starts."""

import socket
import sys

import pytest

from runners.ray.start import check_answers, import_folders


def test_an_address_at_which_something_listens_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:2"])
def test_an_address_at_which_nothing_listens_is_an_error(address: str) -> None:
    with pytest.raises(OSError, match="refused"):
        check_answers(address)


@pytest.mark.parametrize("address", ["", "auto", "ray://127.0.0.1:1"])
def test_addresses_that_only_ray_understands_are_left_to_ray(address: str) -> None:
    check_answers(address)


def test_workers_import_from_the_folders_of_this_process_and_not_from_installed_packages(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folders = import_folders()
    assert str(tmp_path) in folders
    assert not any(folder.startswith(sys.prefix) for folder in folders)
