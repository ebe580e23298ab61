"""The token of a Ray: Ray runs the code of whoever connects to it, and it listens on every interface.

A Ray that is started here gets a token of its own, whatever the environment says. Towards a running cluster the
environment counts: the user has its token.
"""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator

from ray.exceptions import AuthenticationError

from runners.base import RunnerError
from runners.ray.internals import present_token, reread_token
from runners.ray.start import host_and_port

_MODE, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"
_OTHER_TOKENS = ("RAY_AUTH_TOKEN", "RAY_ENABLE_K8S_TOKEN_AUTH")  # would be taken instead of the file


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Have a Ray that starts inside the block demand a token that only this user can read; restore the environment.

    The file stays until the end of the block, because every worker reads it when it starts. Ray would write one too,
    but readable by whomever the umask lets.
    """
    names = (_MODE, _FILE, *_OTHER_TOKENS)
    before = {name: os.environ[name] for name in names if name in os.environ}
    with tempfile.NamedTemporaryFile("w", prefix="slimfront-token-") as file:  # made with mode 0600
        file.write(secrets.token_hex(32))
        file.flush()
        for name in _OTHER_TOKENS:
            os.environ.pop(name, None)
        os.environ.update({_MODE: "token", _FILE: file.name})
        reread_token()
        try:
            yield
        finally:
            for name in names:
                os.environ.pop(name, None)
            os.environ.update(before)
            reread_token()


def check_token(address: str) -> None:
    """Raise a RunnerError if the head at "host:port" refuses this process; Ray would try for 20 s, and not say why.

    Addresses that only Ray understands are left to it.
    """
    if host_and_port(address) is None:
        return
    try:
        present_token(address)
    except AuthenticationError as error:
        mode = os.environ.get(_MODE)
        found = "none that fits" if mode == "token" else f"{_MODE}={mode}" if mode else f"no {_MODE}"
        raise RunnerError(
            f"the Ray cluster at {address!r} demands a token, and this process has {found}; set {_MODE}=token, and "
            f"{_FILE} to a file with the token of the cluster (docs/cluster.md)"
        ) from error
