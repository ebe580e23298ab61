"""SearchResult: the outcome of a search, which survives a round trip through JSON. It holds no weights."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.parsing import NONE, parse_rungs
from runners.learning_curve import LearningCurve
from runners.trial import TrialResult
from search.results.comparison import BaselineComparison, compare_with_baselines, is_ahead
from search.results.int8 import Int8
from search.results.pareto import FLOPS, LATENCY, ParetoFront, inside, measured, most_accurate
from search.results.rank_correlation import RungAudit, audit_rungs, audit_screening
from search.results.score_names import ACCURACY
from search.results.serialization import (
    SCHEMA_VERSION,
    ResultError,
    check_schema,
    from_plain,
    to_plain,
    trial_result_from_dict,
    trial_result_to_dict,
)
from spaces.budget import Budget
from spaces.cost import Cost

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class DenseResult:
    """Accuracies, in [0, 1], and cost of the dense network.

    Attributes:
        test_accuracy: None where the search was stopped before it was read.
        learning_curve: of its training; None when its weights were given.
        val_top5, test_top5: top-5 accuracy; None where it was not read, or there are no more than five classes.
    """

    val_accuracy: float
    test_accuracy: float | None
    cost: Cost
    learning_curve: LearningCurve | None = None
    val_top5: float | None = None
    test_top5: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """A finished (or interrupted) search.

    Attributes:
        config: the effective configuration as plain data.
        budgets: absolute limits, inside all of which `chosen` is.
        results: of every trial, in the order of the trial numbers.
        space: summary of the search space for reports, plain data.
        seconds: wall time of the search; of a resumed search, since it was resumed.
        versions: package -> version.
        paths: name of a written file or folder -> path relative to the run folder.
        latency: "dense" or label -> readings of `runners.latency.meter` as plain data; empty when none was asked for.
        int8: label of a reported network -> its int8 file beside float32; empty when none was asked for.
        latency_model: settings and errors of the latency predictor, plain data; empty without one.
        time_limited: whether the time limit ended it before all its trials were done.
        lost: which cluster went away before all its trials were done; empty where none did.
        retrained_baseline: the best baseline at the FLOPs of `chosen`, trained again as often; no result of the search.
        target_baselines: label of the best network at a target -> the best baseline there, at the FLOPs of the network,
            trained again as often.
        targets: absolute budgets on one quantity, the largest first, each of which is answered; none unless asked for.
        val_images: number of validation images; 0 where it is not known.
        score_name: of the task; every accuracy here is this score.
        folder: run folder that holds the networks; it is not written, because a run folder may be moved.
    """

    config: Mapping[str, Any]
    budgets: tuple[Budget, ...]
    dense: DenseResult
    results: tuple[TrialResult, ...]
    space: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    latency_model: Mapping[str, Any] = field(default_factory=dict)
    int8: Mapping[str, Int8] = field(default_factory=dict)
    interrupted: bool = False
    time_limited: bool = False
    lost: str = ""
    retrained_baseline: TrialResult | None = None
    target_baselines: Mapping[str, TrialResult] = field(default_factory=dict)
    targets: tuple[Budget, ...] = ()
    val_images: int = 0
    score_name: str = ACCURACY
    schema: int = SCHEMA_VERSION
    folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Turn the free-form fields into plain JSON data, so that writing and reading gives equal values."""
        for name in ("config", "space", "versions", "paths", "latency", "latency_model"):
            object.__setattr__(self, name, to_plain(getattr(self, name)))

    @cached_property
    def front(self) -> ParetoFront:
        """The non-dominated networks inside all budgets, intermediate ones too, cheapest first."""
        return ParetoFront(self._inside, self.axis)

    @property
    def axis(self) -> str:
        """The cost of the front: "flops", or "latency" as measured at the first batch size."""
        return LATENCY if str(self.config.get("objective", "")).endswith(LATENCY) else FLOPS

    @cached_property
    def chosen(self) -> TrialResult | None:
        """The most accurate network of the front on validation; of equals the cheaper. None when all failed.

        The front compares single readings, and this the means of the last epochs: without the front, a network that it
        leaves out for an equal one would be chosen.
        """
        return most_accurate(self.front)

    @cached_property
    def best_baseline(self) -> TrialResult | None:
        """The most accurate network of a baseline on validation inside all budgets; None when all failed."""
        return most_accurate(network for network in self._inside if network.trial.baseline)

    def best_at(self, budget: Budget | str, *, baselines: bool = False) -> TrialResult | None:
        """Return the most accurate network on validation inside all budgets and this one, such as "0.1gflops" or "20%".

        A network that the final training has finished for this target gives way to a cheaper one only when that is
        ahead by more than the noise of two validation accuracies: wider networks are the better ones, noise aside.

        Args:
            baselines: whether only networks of baselines are taken.

        Raises:
            BudgetError: the text is no budget, or the budget is on latency.
        """
        limit = (Budget.parse(budget) if isinstance(budget, str) else budget).resolve(self.dense.cost)
        inside = [network for network in self._inside if network.cost is not None and limit.allows(network.cost)]
        best = most_accurate(network for network in inside if network.trial.baseline or not baselines)
        finished = None if baselines else self._finished_for(limit, inside)
        if best is None or finished is None:
            return best
        reached, own = best.settled_accuracy or 0.0, finished.settled_accuracy or 0.0
        return best if is_ahead(reached, own, self.val_images) else finished

    def _finished_for(self, limit: Budget, inside: Sequence[TrialResult]) -> TrialResult | None:
        """Return the best network that was finished for this target, and not for a smaller one; None without."""
        below = [target.limit for target in self.targets if target.limit < limit.limit]
        if not self.val_images or not self.targets or limit.quantity != self.targets[0].quantity:
            return None
        above = max(below, default=0.0)
        return most_accurate(
            network for network in inside if network.final_epochs and getattr(network.cost, limit.quantity) > above
        )

    def retrained_baseline_of(self, network: TrialResult) -> TrialResult | None:
        """Return the best baseline at the FLOPs of the chosen network or of the best at a target, trained again."""
        return self.retrained_baseline if self.is_chosen(network) else self.target_baselines.get(network.label)

    @cached_property
    def reported(self) -> tuple[TrialResult, ...]:
        """The front, and the best networks at targets that are not on it: at a target on params one may cost FLOPs."""
        best = [network for network in map(self.best_at, self.targets) if network is not None]
        return tuple({network.label: network for network in (*self.front, *best)}.values())

    @cached_property
    def baseline_comparison(self) -> BaselineComparison:
        """How the chosen network compares with the best baseline."""
        baselines = [result for result in self.results if measured(result, self.axis) and result.trial.baseline]
        return compare_with_baselines(baselines, self._inside, self.retrained_baseline, self.axis)

    @cached_property
    def _inside(self) -> tuple[TrialResult, ...]:
        return inside(self.results, self.budgets, self.axis)

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the rungs, the last of which is the whole training; empty where trials were trained at once."""
        config = self.config
        text, epochs = config.get("rungs", NONE), config.get("train", {}).get("epochs", 0)
        return parse_rungs(text, epochs, config.get("trials", 0), config.get("search_training", ""))

    @cached_property
    def rung_audits(self) -> tuple[RungAudit, ...]:
        """How well the accuracies at each rung but the last have ranked networks as the end of training does."""
        return audit_rungs(self.results, self.rungs)

    @cached_property
    def screening_audit(self) -> RungAudit | None:
        """How well the proxies have ranked networks as the end of training does; None without screening."""
        return audit_screening(self.results, self.rungs)

    @property
    def trained_epochs(self) -> int:
        """The epochs of training of all trials and of the final training; those of the dense network do not count."""
        return sum(result.trained or 0 for result in self.results)

    @property
    def network(self) -> str:
        """Name of the dense network with its factor of widths, such as resnet20 or resnet20-x1.5."""
        model, widen = self.config.get("model"), self.config.get("widen", 1.0)
        return f"{model}" if widen == 1 else f"{model}-x{widen:g}"

    def is_chosen(self, network: TrialResult) -> bool:
        """Whether this is the chosen network."""
        return self.chosen is not None and network.label == self.chosen.label

    def with_results(self, changed: Iterable[TrialResult]) -> "SearchResult":
        """Return the search with networks replaced by these of the same labels, e.g. confirmed on test."""
        by_label = {network.label: network for network in changed}
        results = (result.map_networks(lambda network: by_label.get(network.label, network)) for result in self.results)
        return dataclasses.replace(self, results=tuple(results))

    def to_dataframe(self) -> "DataFrame":
        """Return one row per network, intermediate ones too: its figures, and a column for the width of every group.

        Costs and accuracies that are not known are NaN.
        """
        from pandas import DataFrame

        front, rows = {network.label for network in self.front}, []
        for network in (network for result in self.results for network in result.networks):
            row = {
                "network": network.label,
                "method": network.trial.method,
                "baseline": network.trial.baseline,
                "state": str(network.state),
                "accuracy": network.accuracy,
                "test_accuracy": network.test_accuracy,
                "val_top5": network.val_top5,
                "test_top5": network.test_top5,
                "flops": network.cost.flops if network.cost else None,
                "params": network.cost.params if network.cost else None,
                "latency": network.timed["seconds"] if network.timed else None,
                "epochs": network.trained,
                "on_front": network.label in front,
                "chosen": self.is_chosen(network),
            }
            rows.append(row | {f"width.{name}": width for name, width in (network.widths or {}).items()})
        numbers = ("accuracy", "test_accuracy", "val_top5", "test_top5", "flops", "params", "latency", "epochs")
        return DataFrame(rows).astype(dict.fromkeys(numbers, float))

    def plot(self) -> Any:
        """Draw accuracy against the cost of the front, for all networks and the dense one; return matplotlib's axes."""
        frame = self.to_dataframe().dropna(subset=["accuracy", self.axis])
        axes = frame.plot.scatter(x=self.axis, y="accuracy", logx=True, color="tab:gray", label="trials")
        front = frame[frame["on_front"]].sort_values(self.axis)
        front.plot(x=self.axis, y="accuracy", marker="o", ax=axes, label="front")
        if self.axis == FLOPS:
            axes.plot([self.dense.cost.flops], [self.dense.val_accuracy], "k*", label="dense")
        axes.set(xlabel={FLOPS: "FLOPs", LATENCY: "seconds"}[self.axis], ylabel=f"validation {self.score_name}")
        axes.legend()
        return axes

    def load(self, network: int | str | TrialResult, model: Any = None, *, trust: bool = False) -> Any:
        """Return a network of the search as an `nn.Module` in evaluation mode, on the CPU.

        Args:
            network: number of a trial, label such as "7.2", or a result such as `chosen`.
            model: the dense network, for a search that was given a module.
            trust: whether the "package.module:factory" of the search may be imported and called.

        Raises:
            ResultError: there is no such network, it has no weights, or the run folder is not known.
            WeightsError: the file is damaged or gone, or names code and is not trusted.
        """
        from pruning.checkpoint import load

        label = network.label if isinstance(network, TrialResult) else str(network)
        networks = {found.label: found for result in self.results for found in result.networks}
        if label not in networks:
            raise ResultError(f"the search has no network {label!r}; it has {', '.join(networks)}")
        if not self.folder or not networks[label].path:
            known = "its run folder is not known; get the result by search.read_result(FOLDER)"
            raise ResultError(f"network {label} cannot be loaded: {'it has no weights' if self.folder else known}")
        return load(Path(self.folder) / networks[label].path, model, trust=trust).eval()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the front as a table, and the comparison with the best baseline."""
        frame = self.to_dataframe()
        front = frame[frame["on_front"]].sort_values(self.axis, ascending=False)
        shown = ["network", "method", "flops", "params", "accuracy", "test_accuracy", "chosen"]
        formats = {"flops": "{:,.0f}".format, "params": "{:,.0f}".format}
        formats |= dict.fromkeys(("accuracy", "test_accuracy"), "{:.2%}".format)
        table = front[shown].to_html(index=False, formatters=formats, na_rep="-", border=0)
        dense = f"dense network: {self.dense.cost.flops:,} FLOPs, {self.dense.val_accuracy:.2%} on validation"
        return f"<p>{escape(self.baseline_comparison.statement)}</p>{table}<p>{dense}</p>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; front, chosen, comparison and audits are added for readers, and derived when read back."""
        networks = _map_networks(vars(self), trial_result_to_dict)
        derived = {
            "front": [network.label for network in self.front],
            "chosen": _label(self.chosen),
            "best_at_targets": [
                {"best": _label(self.best_at(target)), "baseline": _label(self.best_at(target, baselines=True))}
                for target in self.targets
            ],
            "baseline_comparison": self.baseline_comparison,
            "trained_epochs": self.trained_epochs,
            "rung_audits": self.rung_audits,
            "screening_audit": self.screening_audit,
        }
        return {"schema": self.schema, **to_plain(self, {*networks, "folder"}), **to_plain(derived), **networks}

    def to_json(self) -> str:
        """Write the result as JSON without weights."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "SearchResult":
        """Read back what `to_json` wrote.

        Raises:
            ResultError: text that is no result, or one of another schema version.
        """
        try:
            data = json.loads(text)
            schema = data["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(f"this is no search result ({error!r}); give the result.json of a run folder") from error
        check_schema(schema, "search result")
        try:
            networks = _map_networks(data, trial_result_from_dict)
        except KeyError as error:
            raise ResultError(f"this search result has no {error.args[0]!r}; was the file changed?") from error
        except (AttributeError, TypeError) as error:
            raise ResultError(f"this is no search result ({error}); was the file changed?") from error
        return from_plain(cls, {**data, **networks})


def _map_networks(fields: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the fields of a search result that hold results of trials, each of which is changed."""
    baseline = fields["retrained_baseline"]
    return {
        "results": [change(result) for result in fields["results"]],
        "retrained_baseline": None if baseline is None else change(baseline),
        "target_baselines": {label: change(result) for label, result in fields["target_baselines"].items()},
    }


def _label(network: TrialResult | None) -> str | None:
    return None if network is None else network.label


def best_at_text(result: SearchResult, network: TrialResult) -> str:
    """Write the targets that a network is the best at, such as "0.3gflops, 0.1gflops"; empty for none."""
    found = [(target, result.best_at(target)) for target in result.targets]
    return ", ".join(str(target) for target, best in found if best is not None and best.label == network.label)
