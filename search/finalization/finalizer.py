"""Finalizer: the last act of a search, which reads the front on test, exports it and writes the report."""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from configs.passwords import masked_settings
from pruning import checkpoint
from pruning.export import Exported, export_network
from pruning.formats import parse_formats
from pruning.inference import layers_with_forms
from pruning.steps import counted, hearing_steps
from runners.latency.devices import make_meter
from runners.latency.meter import REFERENCE, LatencyMeter, to_plain
from runners.training.scoring import exact_score
from runners.trial import TrialResult
from search.callbacks import SearchCallback
from search.environment import Environment, installed_versions
from search.finalization.exports import export_formats
from search.finalization.int8 import Quantizer
from search.finalization.retraining import Retrainer
from search.latency.calibration import LatencyCalibration
from search.planning import LEAST_TIMING, TIMING_SHARE
from search.reporting.latency import GIVE_UP, latency_columns
from search.reporting.page.report import write_html
from search.reporting.picture import write_png
from search.reporting.rows import write_csv
from search.reporting.wording import plural
from search.results.int8 import Int8
from search.results.loading import RESULT
from search.results.result import DenseResult, SearchResult, best_at_text
from search.results.score_names import with_score_names
from search.results.serialization import trial_result_to_dict
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.files import write_atomically
from spaces.space import describe

_log = logging.getLogger(__name__)


class ConfirmationError(SlimfrontError):
    """A stored network that does not have the cost that its trial reported."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a search ended before its finalization: after which wall time, and whether the user or the limit ended it.

    Attributes:
        lost: which cluster went away; empty where none did.
    """

    seconds: float
    interrupted: bool = False
    time_limited: bool = False
    lost: str = ""


@dataclasses.dataclass(frozen=True)
class Finalizer:
    """Confirms the front on test, exports it and writes the report.

    Attributes:
        latency: calibration before the search; None for a search that needs no latency.
        dense_accuracy: on validation, in [0, 1].
        forms: label of a network -> name of a layer that has several forms -> the one that is exported.
    """

    environment: Environment
    latency: LatencyCalibration | None
    dense: nn.Module
    dense_accuracy: float
    retrainer: Retrainer
    callback: SearchCallback
    forms: dict[str, Mapping[str, str | None]] = dataclasses.field(default_factory=dict)

    def __call__(self, results: Sequence[TrialResult], ending: Ending) -> SearchResult:
        """Return the result with its front confirmed on test, after writing it to the run folder.

        When the user has stopped the search, test accuracies and programs are left out and no latency is measured,
        because the user waits. A stop during the retraining leaves out the measurement of latency alone.

        Raises:
            ConfirmationError: a network on disk has another cost than its trial reported.
        """
        began = time.perf_counter()
        result = self._result(results, ending)
        if not ending.interrupted:
            self.callback.on_phase(f"confirming the front on {len(self.environment.data.test)} test images")
            with hearing_steps(self.callback.on_steps):
                result = result.with_results([self._confirm(network) for network in counted(_read_on_test(result))])
        result = self.retrainer.confirmed(result) if ending.interrupted else self.retrainer(result)
        # After a stop nothing is measured, but the readings of a search that needs latency are still put in.
        if self.latency is not None or not result.interrupted:
            self._choose_forms(result)
            result = self._measure(result)
        result = dataclasses.replace(result, seconds=result.seconds + time.perf_counter() - began)
        self.callback.on_phase("writing the front and the report")
        return self._write(result)

    def _result(self, results: Sequence[TrialResult], ending: Ending) -> SearchResult:
        environment, problem = self.environment, self.environment.problem
        dense = DenseResult(self.dense_accuracy, None, problem.space.dense_cost, environment.dense_curve)
        if not ending.interrupted:
            read = exact_score(self.dense, environment.data.test, environment.config.train)
            val_top5 = environment.top5(self.dense, environment.data.val)
            dense = dataclasses.replace(dense, test_accuracy=read.score, val_top5=val_top5, test_top5=read.top5)
        return SearchResult(
            config=masked_settings(dataclasses.asdict(environment.config)),
            budgets=problem.budgets,
            dense=dense,
            results=tuple(results),
            targets=problem.targets,
            val_images=len(environment.data.val),
            score_name=environment.task.score_name,
            folder=str(environment.folder),
            space={"groups": describe(problem.space.variable), "input_shape": list(environment.data.input_shape)},
            seconds=ending.seconds,
            versions=installed_versions(),
            interrupted=ending.interrupted,
            time_limited=ending.time_limited,
            lost=ending.lost,
        )

    def _load(self, member: TrialResult) -> nn.Module:
        net = checkpoint.load(self.environment.folder / member.path, self.dense)  # whatever its header names
        for name, layer in layers_with_forms(net).items():
            layer.form = self.forms.get(member.label, {}).get(name)
        return net

    def _choose_forms(self, result: SearchResult) -> None:
        """Choose the fastest forms of the layers of the networks that are exported; no trial runs any more."""
        config = self.environment.config.latency
        if not config.measures or config.command or config.agents:
            return
        meter = LatencyMeter(config, self.dense, self.environment.data.input_shape)
        for member in result.reported:
            net = self._load(member)
            if layers_with_forms(net):
                self.forms[member.label] = meter.forms(net)

    def _confirm(self, member: TrialResult) -> TrialResult:
        """Load a network from disk, count its cost again, and read it on test once."""
        data, net = self.environment.data, self._load(member)
        counted = count_cost(net, data.input_shape)
        if member.cost is None or not counted.agrees(member.cost):
            raise ConfirmationError(
                f"{member.path} holds a network of {counted}, its trial reported {member.cost}; the file was changed"
            )
        read = exact_score(net, data.test, self.environment.config.train)
        val_top5 = self.environment.top5(net, data.val)
        return dataclasses.replace(member, test_accuracy=read.score, val_top5=val_top5, test_top5=read.top5)

    def _measure(self, result: SearchResult) -> SearchResult:
        """Measure the latency of the front, the chosen network first, and of the dense network; no trial runs any more.

        No network is begun once a tenth of the search's time is spent: readings on a busy machine may take long.
        """
        config = self.environment.config.latency
        if not config.measures:
            return result
        if self.latency is not None:
            return self._measure_other_batches(result, self.latency)
        self.callback.on_phase(f"timing the dense net on {config.place}")
        began = time.perf_counter()
        meter = make_meter(config, self.dense, self.environment.data.input_shape)
        readings = {REFERENCE: to_plain(meter.read(REFERENCE, self.dense))}
        refused = 0  # networks in a row
        ends = began + max(LEAST_TIMING, TIMING_SHARE * result.seconds)
        self.callback.on_phase(f"timing {plural(len(result.reported), 'network')} on {config.place}")
        for number, member in enumerate(sorted(result.reported, key=lambda one: not result.is_chosen(one))):
            if refused == GIVE_UP or time.perf_counter() > ends:
                break
            self.callback.on_steps(number, len(result.reported))
            read = meter.read(member.label, self._load(member))
            readings[member.label] = to_plain(read)
            refused = refused + 1 if all(reading.refused for reading in read) else 0
        return dataclasses.replace(result, latency=readings)

    def _measure_other_batches(self, result: SearchResult, latency: LatencyCalibration) -> SearchResult:
        """Add the other batch sizes to the readings of the search, which measured its front at the first batch size."""
        timed: dict[str, list[Any]] = {member.label: list(member.latency[:1]) for member in result.reported}
        timed[REFERENCE] = to_plain([latency.dense])
        if not result.interrupted:
            timed[REFERENCE] += latency.other_batches(REFERENCE, self.dense)
            for member in result.reported:
                timed[member.label] += latency.other_batches(member.label, self._load(member))
        return dataclasses.replace(result, latency=timed, latency_model=latency.described())

    def _write(self, result: SearchResult) -> SearchResult:
        folder = self.environment.folder
        paths = {"result": RESULT, "front table": "front.csv", "picture": "front.png", "report": "report.html"}
        shutil.rmtree(folder / "front", ignore_errors=True)  # of a resumed search
        result = self._quantize(result)
        for member in result.reported:
            self._export(member, folder / _member_folder(member), result)
        if len(result.front):
            paths["networks"] = "front"
        named = {"chosen": result.chosen} | {f"best at {target}": result.best_at(target) for target in result.targets}
        paths |= {name: _member_folder(network) for name, network in named.items() if network is not None}
        result = dataclasses.replace(result, paths=paths)
        write_csv(result, folder / paths["front table"])
        write_png(result, folder / paths["picture"])
        write_html(result, folder / paths["report"])
        write_atomically(folder / paths["result"], result.to_json().encode())
        return result

    def _quantize(self, result: SearchResult) -> SearchResult:
        """Write the int8 files of the reported networks, where they are asked for and no user waits."""
        config, made = self.environment.config, dict[str, Int8]()
        if not config.quantize or result.interrupted:
            return result
        self.callback.on_phase(f"quantising {plural(len(result.reported), 'network')} to {config.quantize}")
        quantizer = Quantizer(self.environment.data, config)
        for number, member in enumerate(result.reported):
            self.callback.on_steps(number, len(result.reported))
            folder = self.environment.folder / _member_folder(member)
            made[member.label] = quantizer(member, self._load(member).eval(), folder)
            if reason := made[member.label].refused:
                _log.warning("network %s has no int8 file: %s", member.label, reason)
        return dataclasses.replace(result, int8=made)

    def _export(self, member: TrialResult, folder: Path, result: SearchResult) -> None:
        environment = self.environment
        widths = member.widths or environment.problem.space.full
        shape, program = environment.data.input_shape, not result.interrupted
        exported = export_network(self._load(member), environment.spec, widths, shape, folder, program=program)
        metrics = {
            "trial": member.trial.number,
            "intermediate_index": member.intermediate_index,
            "epoch": member.curve[-1].epoch if member.curve else None,
            "method": member.trial.method,
            "settings": dict(member.trial.settings),
            "training": dict(member.trial.training),
            "cut_from": member.trial.parent or "dense",
            "final_epochs": member.final_epochs,
            "searched_accuracy": member.searched_accuracy,
            "flops": member.cost.flops if member.cost else None,
            "params": member.cost.params if member.cost else None,
            "activations_bytes": member.cost.activations if member.cost else None,
            "size_bytes": member.cost.size if member.cost else None,
            "val_accuracy": member.accuracy,
            "test_accuracy": member.test_accuracy,
            "val_top5": member.val_top5,
            "test_top5": member.test_top5,
            "confirmation": trial_result_to_dict(member)["confirmation"],
            "program_difference": exported.max_difference if exported.program else None,
            "chosen": result.is_chosen(member),
            "best_at": best_at_text(result, member),
            **latency_columns(result, member.label),
            "latency": result.latency.get(member.label),
            "int8": dataclasses.asdict(result.int8[member.label]) if member.label in result.int8 else None,
        }
        self._export_further(result, member, exported)
        (folder / "metrics.json").write_text(
            json.dumps(with_score_names(metrics, result.score_name), indent=1) + "\n", encoding="utf-8"
        )

    def _export_further(self, result: SearchResult, member: TrialResult, exported: Exported) -> None:
        """Write a network in the formats of the config too, and its model card."""
        written = exported.files
        asked = parse_formats(self.environment.config.export) if self.environment.config.export else ()
        formats = [] if result.interrupted else [name for name in asked if name not in {file.name for file in written}]
        if formats:
            self.callback.on_phase(f"exporting network {member.label} as {', '.join(formats)}")
        header = checkpoint.read_header(self.environment.folder / member.path)
        export = export_formats(result, member, self._load(member).eval(), header, exported.folder, formats, written)
        for error in export.refused.values():
            _log.warning("network %s: %s", member.label, error)
        for file in export.files[len(written) :]:
            difference = "" if file.max_difference is None else f", largest difference {file.max_difference:.1e}"
            self.callback.on_phase(f"network {member.label} is written as {file.name}{difference}")


def _read_on_test(result: SearchResult) -> Collection[TrialResult]:
    """Return the networks that are read on test: the reported ones, and the baseline networks of the comparisons."""
    best = (result.best_at(target, baselines=True) for target in result.targets)
    baselines = [result.best_baseline, *best]  # the statements must hold on test too
    networks = [*result.reported, *(baseline for baseline in baselines if baseline is not None)]
    return {network.label: network for network in networks}.values()


def _member_folder(member: TrialResult) -> str:
    return f"front/trial-{member.stem}"
