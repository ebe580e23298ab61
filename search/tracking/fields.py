"""What MLflow is given, configuration and trials as flat texts; and how runs of an earlier process are known again."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runners.trial import Trial
from search.results.serialization import plain
from spaces.budget import Budget

FOLDER = "slimfront.run_folder"  # tag of a parent run, by which a server's runs are known again
PARENT = "mlflow.parentRunId"
NOW = "now."  # begins the tags of the parent run that hold what a resumed search has changed
ENDED = ("FINISHED", "FAILED")
PAGE = 1000  # runs asked for at once

# Read by MLflow when it is imported or used; the user's own values stay. It must not call home, nor wait for minutes
# for a server that is down, nor print on standard output.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Earlier:
    """The runs that an earlier process wrote of a search.

    Attributes:
        params: of the parent run, which MLflow lets nobody change, and over them what its tags say of later ones.
        children: trial number -> run, of trials that were written whole.
    """

    parent: str
    params: Mapping[str, str] = field(default_factory=dict)
    children: Mapping[int, str] = field(default_factory=dict)


def earlier_runs(client: Any, experiment: str, folder: str, local: bool) -> Earlier | None:
    """Find the parent run of a run folder and its children; takes away those that were not written whole.

    Args:
        client: of MLflow.
        local: the store lies in the run folder and holds nothing else.
    """
    runs, token = [], None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        runs += page
        if not (token := page.token):
            break
    parents = [run for run in runs if PARENT not in run.data.tags]
    mine = [run for run in parents if local or run.data.tags.get(FOLDER) == folder]
    if not mine:
        return None
    parent = max(mine, key=lambda run: run.info.start_time)
    children = {}
    for run in runs:
        if run.data.tags.get(PARENT) == parent.info.run_id:
            if run.info.status in ENDED:
                children[int(run.info.run_name.split()[-1])] = run.info.run_id
            else:
                client.delete_run(run.info.run_id)
    now = {name.removeprefix(NOW): value for name, value in parent.data.tags.items() if name.startswith(NOW)}
    return Earlier(parent.info.run_id, dict(parent.data.params) | now, children)


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as "group.option" -> text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat[prefix + name] = ", ".join(str(item) for item in value)
        else:
            flat[prefix + name] = str(value)
    return flat


def trial_params(trial: Trial, budgets: Sequence[Budget]) -> dict[str, str]:
    """Return the parameters of a trial's run; its share of the budget among them."""
    limits = {budget.quantity: budget.limit for budget in budgets}
    shares = [b.limit / limits[b.quantity] for b in trial.goal.budgets if b.quantity in limits]
    params = {"method": trial.method, "arm": trial.baseline or "searched", "seed": str(trial.seed)}
    params["allocation"] = "method" if trial.goal.widths is None else "search"
    if shares:
        params["budget_fraction"] = f"{min(shares):.6g}"
    params |= {f"train.{name}": str(value) for name, value in trial.training.items()}
    return params | {f"{trial.method}.{name}": str(plain(value)) for name, value in trial.settings.items()}


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line, cut to 160 characters, for a line of our own."""
    return textwrap.shorten((str(error).splitlines() or [type(error).__name__])[0], 160, placeholder="...")
