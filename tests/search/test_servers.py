import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from configs.schema import RunConfig
from runners.config import RunnerConfig
from search.cli import main
from search.servers import ServerError, check_servers

pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed: pip install 'slimfront[postgres]'")


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(params=[200, 401, 503])
def answer(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """The status with which a server answers, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield request.param, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_plan_and_search_name_all_servers_that_do_not_answer(
    closed_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.environment.load_data", lambda *_: pytest.fail("images were read"))
    place = f"127.0.0.1:{closed_port}"
    flags = ["--budget", "50%", "--storage", f"postgresql://user:secret@{place}/one", "--ray-address", place]
    for command in (["plan"], []):
        assert main([*command, *flags, "--tracking-uri", f"http://user:secret@{place}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--storage 'postgresql://user:***@{place}/one' does not answer" in line
        assert f"MLflow at 'http://user:***@{place}' does not answer" in line
        assert f"the Ray cluster at '{place}' does not answer" in line


def test_a_server_that_asks_for_a_password_answers_and_one_without_its_database_does_not(
    answer: tuple[int, str],
) -> None:
    status, address = answer
    config = RunConfig(budget=("50%",), tracking_uri=address, runner=RunnerConfig("local"))
    if status == 503:
        with pytest.raises(ServerError, match="Service Unavailable"):
            check_servers(config)
    else:
        check_servers(config)
