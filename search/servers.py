"""Whether the servers that a search is to use answer; asked before anything is read, trained or written."""

import textwrap
from collections.abc import Callable, Iterator

from configs.passwords import masked
from configs.schema import RunConfig
from runners.placement import pick_runner
from search.storage.study_storage import check_storage
from search.tracking.store import check_store
from spaces.errors import SlimfrontError


class ServerError(SlimfrontError):
    """Servers that do not answer, before a search has begun."""


def check_servers(config: RunConfig) -> None:
    """Ask the storage, the MLflow server and the Ray cluster that the settings name.

    Raises:
        ServerError: some do not answer; the message names all of them.
        SlimfrontError: an address that cannot be used, or a driver that is not installed.
    """
    silent = [f"{name} does not answer ({reason})" for name, ask in _servers(config) if (reason := _failure(ask))]
    if silent:
        raise ServerError(f"{'; '.join(silent)}; start what is missing or give another address, nothing was begun")


def _servers(config: RunConfig) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield name and question of every server that is named."""
    storage, tracking, cluster = config.storage_address, config.tracking_address, config.runner.cluster
    if storage:
        yield f"--storage {masked(storage)!r}", lambda: check_storage(storage)
    if tracking:
        yield f"MLflow at {masked(tracking)!r}", lambda: check_store(tracking)
    if cluster and pick_runner(config.runner, config.train.device) == "ray":
        from runners.ray.start import check_answers  # loads Ray

        yield f"the Ray cluster at {cluster!r}", lambda: check_answers(cluster)


def _failure(ask: Callable[[], None]) -> str:
    """Return why a server does not answer, in one line; empty where it does."""
    try:
        ask()
    except SlimfrontError:
        raise
    except Exception as error:  # of the driver of any database, or of the network
        lines = str(getattr(error, "orig", None) or error).split()
        return masked(textwrap.shorten(" ".join(lines), 160, placeholder="...")) or type(error).__name__
    return ""
