"""The last act of a search: confirm the front, export it, and write the report."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import nn

from pruning import checkpoint
from runners.latency.meter import REFERENCE, LatencyMeter, to_plain
from runners.training.loop import accuracy
from runners.trial import TrialResult
from search.finalization.export import export_member
from search.finalization.retraining import Confirmer
from search.problem import Setup
from search.reporting import page
from search.reporting import picture as figures
from search.reporting import summary as report
from search.reporting.latency import GIVE_UP
from search.reporting.latency import figures as latency_figures
from search.reporting.live import Display
from search.results.comparison import confirmation_to_dict
from search.results.result import UNIFORM, DenseResult, SearchResult, best_at_text
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.files import write_atomically
from spaces.space import describe

_log = logging.getLogger(__name__)
_PACKAGES = ("slimfront", "torch", "torchvision", "optuna", "ray", "mlflow", "fvcore", "torch-pruning")


class ConfirmationError(SlimfrontError):
    """A stored network that is not what its trial reported."""


class Finish:
    """Confirms, exports and reports.

    Args:
        dense: the trained dense network.
        dense_accuracy: on validation.
        confirmer: trains the front again, where that is asked for.
    """

    def __init__(
        self, setup: Setup, dense: nn.Module, dense_accuracy: float, confirmer: Confirmer, display: Display
    ) -> None:
        self._setup, self._confirmer = setup, confirmer
        self._dense, self._dense_accuracy = dense, dense_accuracy
        self._display = display

    def __call__(
        self, results: Sequence[TrialResult], seconds: float, *, brief: bool, time_limited: bool = False
    ) -> SearchResult:
        """Return the result with its front confirmed on test, after writing it to the run folder.

        Args:
            seconds: wall time of the search up to here.
            brief: the user has stopped the search and waits: the test accuracies and the programs that run without
                this project are left out, and no latency is measured any more; nor is it when a stop ends the
                confirmation.
            time_limited: the time limit has ended the search.
        """
        setup = self._setup
        test = accuracy(self._dense, setup.data.test, device=setup.device) if not brief else None
        result = SearchResult(
            config=dataclasses.asdict(setup.config),
            budgets=setup.budgets,
            dense=DenseResult(self._dense_accuracy, test, setup.space.dense_cost),
            results=tuple(results),
            targets=setup.targets,
            space={"groups": describe(setup.space.variable), "input_shape": list(setup.data.input_shape)},
            seconds=seconds,
            versions=_versions(),
            interrupted=brief,
            time_limited=time_limited,
        )
        if not brief:
            self._display.phase(f"confirming the front on {len(setup.data.test)} test images")
            result = result.with_results([self._confirmed(network) for network in _to_confirm(result)])
            result = self._confirmer(result)
        else:
            result = self._confirmer.applied(result)
        # A user who stops the confirmation waits for no measurement; what was measured during the search is there.
        if setup.latency is not None or not result.interrupted:
            began = time.perf_counter()
            result = self._timed(result)
            result = dataclasses.replace(result, seconds=result.seconds + time.perf_counter() - began)
        self._display.phase("writing the front and the report")
        return self._written(result)

    def summary(self, result: SearchResult, mlflow: str) -> list[RenderableType]:
        """Return what the user is shown at the end."""
        return report.summary(result, self._setup.folder, mlflow)

    def _confirmed(self, member: TrialResult) -> TrialResult:
        """Reload a member from disk, count it again, and read its test accuracy, once."""
        setup = self._setup
        net = checkpoint.load(setup.folder / member.path)
        counted = count_cost(net, setup.data.input_shape)
        if counted != member.cost:
            raise ConfirmationError(
                f"{member.path} holds a network of {counted}, its trial reported {member.cost}; the file was changed"
            )
        return dataclasses.replace(member, test_accuracy=accuracy(net, setup.data.test, device=setup.device))

    def _timed(self, result: SearchResult) -> SearchResult:
        """Measure the front and the dense net where `--latency-device` says; no trial runs any more by now."""
        config, tools = self._setup.config.latency, self._setup.latency
        if not config.measures:
            return result
        if tools is not None:  # whoever is on the front was measured beside the dense net of the start
            timed: dict[str, list[Any]] = {member.label: list(member.latency[:1]) for member in result.reported}
            timed[REFERENCE] = to_plain([tools.dense])
            if not result.interrupted:
                timed[REFERENCE] += tools.other_batches(REFERENCE, self._dense)
                for member in result.reported:
                    net = checkpoint.load(self._setup.folder / member.path)
                    timed[member.label] += tools.other_batches(member.label, net)
            return dataclasses.replace(result, latency=timed, latency_model=tools.described())
        self._display.phase(f"timing the dense net on {config.device}")
        meter = LatencyMeter(config, self._dense, self._setup.data.input_shape)
        readings = {REFERENCE: to_plain(meter.read(REFERENCE, self._dense))}
        refused = 0  # in a row
        for number, member in enumerate(result.reported, start=1):
            if refused == GIVE_UP:
                break
            self._display.phase(f"timing network {number}/{len(result.reported)} on {config.device}")
            net = checkpoint.load(self._setup.folder / member.path)
            read = meter.read(member.label, net)
            readings[member.label] = to_plain(read)
            refused = refused + 1 if all(each.refused for each in read) else 0
        return dataclasses.replace(result, latency=readings)

    def _written(self, result: SearchResult) -> SearchResult:
        folder = self._setup.folder
        paths = {"result": "result.json", "front table": "front.csv", "picture": "front.png", "report": "report.html"}
        shutil.rmtree(folder / "front", ignore_errors=True)  # of the search that was resumed
        for member in result.reported:
            self._export(member, folder / _member_folder(member), result)
        if len(result.front):
            paths["networks"] = "front"
        if result.chosen is not None:
            paths["chosen"] = _member_folder(result.chosen)
        for target, best in ((target, result.best_at(target)) for target in result.targets):
            if best is not None:
                paths[f"best at {target}"] = _member_folder(best)
        result = dataclasses.replace(result, paths=paths)
        report.write_csv(result, folder / paths["front table"])
        figures.write_png(result, folder / paths["picture"])
        page.write_html(result, folder / paths["report"])
        write_atomically(folder / paths["result"], result.to_json().encode())
        return result

    def _export(self, member: TrialResult, folder: Path, result: SearchResult) -> None:
        setup = self._setup
        net = checkpoint.load(setup.folder / member.path)
        widths = member.widths or setup.space.full
        exported = export_member(
            net, setup.spec, widths, setup.data.input_shape, folder, program=not result.interrupted
        )
        figures_of_member = {
            "trial": member.trial.number,
            "waypoint": member.intermediate_index,
            "epoch": member.curve[-1].epoch if member.curve else None,
            "method": member.trial.method,
            "settings": dict(member.trial.settings),
            "training": dict(member.trial.training),
            "flops": member.cost.flops if member.cost else None,
            "params": member.cost.params if member.cost else None,
            "val_accuracy": member.accuracy,
            "test_accuracy": member.test_accuracy,
            "confirmation": confirmation_to_dict(member.confirmation),
            "program_difference": exported.max_difference if exported.program else None,
            "chosen": result.is_chosen(member),
            "best_at": best_at_text(result, member),
            **latency_figures(result, member.label),
            "latency": result.latency.get(member.label),
        }
        (folder / "metrics.json").write_text(json.dumps(figures_of_member, indent=1) + "\n", encoding="utf-8")


def _to_confirm(result: SearchResult) -> Iterable[TrialResult]:
    """Return the networks that are read on test: what is reported, and uniform ones that it is compared with."""
    confirmed = {member.label: member for member in result.reported}
    baselines = [result.best_at(target, UNIFORM) for target in result.targets]
    confirmed |= {baseline.label: baseline for baseline in baselines if baseline is not None}
    rival = result.uniform_comparison.rival
    if rival is not None:  # the statement about the control arm must hold on test too
        confirmed[str(rival)] = next(each for each in result.results if each.trial.number == rival)
    return confirmed.values()


def _member_folder(member: TrialResult) -> str:
    return f"front/trial-{member.stem}"


def _versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
