"""Who may connect to a Ray."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from runners.ray.authentication import own_token

# Tries to enter the Ray at the first argument with several settings, and prints how each of them fared.
STRANGER = """
import json, os, sys
from runners.base import RunnerError
from runners.ray.authentication import check_token
from runners.ray.internals import reread_token

for settings in json.loads(sys.argv[2]):
    os.environ.update(settings)
    reread_token()
    try:
        print(json.dumps([check_token(sys.argv[1]), ""]))
    except RunnerError as error:
        print(json.dumps([str(error), str(error.__cause__)]))
"""


def test_the_ray_of_a_search_lets_in_who_has_its_token_and_tells_others_what_they_lack(
    ray_of_two: None, tmp_path: Path
) -> None:
    settings = [
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]},
        {"RAY_AUTH_TOKEN": "0" * 64},  # counts more than a file
    ]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    address = ray.get_runtime_context().gcs_address
    output = subprocess.run(
        [sys.executable, "-c", STRANGER, address, json.dumps(settings)],
        env=others | {"HOME": str(tmp_path)},  # where Ray looks for a token
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    unset, disabled, missing, right, wrong = [json.loads(line) for line in output.splitlines()]
    assert right == [None, ""]
    for error, reason in (unset, disabled, wrong):
        assert f"the Ray cluster at '{address}' demands a token" in error
        assert "InvalidAuthToken" in reason  # the answer of Ray itself
    assert "no authentication token was found" in missing[1]
    assert "this process has no RAY_AUTH_MODE; set RAY_AUTH_MODE=token" in unset[0]
    assert "this process has RAY_AUTH_MODE=disabled; set" in disabled[0]
    assert "this process has none that fits; set" in missing[0]


def test_only_the_owner_reads_the_token_and_the_environment_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.ray.authentication.reread_token", lambda: None)  # the Ray of other tests may run
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    before, tokens = dict(os.environ), set()
    umask = os.umask(0)
    try:
        for _ in range(2):
            with own_token():
                assert os.environ["RAY_AUTH_MODE"] == "token"
                assert "RAY_AUTH_TOKEN" not in os.environ
                file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                tokens.add(file.read_text())
            assert dict(os.environ) == before
            assert not file.exists()
    finally:
        os.umask(umask)
    assert [len(token) for token in tokens] == [64, 64]
