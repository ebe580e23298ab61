"""SearchResult: what a search found, as plain data that survives a round trip through JSON. No weights in it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from configs.parsing import NONE, parse_rungs
from runners.trial import TrialResult
from search.results.comparison import UNIFORM, UniformComparison, compare_with_uniform
from search.results.pareto import FLOPS, LATENCY, ParetoFront, inside, measured, most_accurate
from search.results.rank_correlation import RungAudit, audit_rungs, audit_screening
from search.results.serialization import (
    SCHEMA_VERSION,
    ResultError,
    check_schema,
    from_plain,
    plain,
    to_plain,
    trial_result_from_dict,
    trial_result_to_dict,
)
from spaces.budget import Budget
from spaces.cost import Cost


@dataclass(frozen=True)
class DenseResult:
    """How the dense network does; accuracies in [0, 1], that on test None when the search ended before."""

    val_accuracy: float
    test_accuracy: float | None
    cost: Cost


@dataclass(frozen=True)
class SearchResult:
    """A finished (or interrupted) search.

    Attributes:
        config: the effective configuration as plain data.
        budgets: absolute limits, all of which hold for `chosen`.
        space: summary of the search space for reports, plain data.
        results: every candidate tried, in the order of their numbers.
        seconds: wall time of the search; of a resumed one, since then.
        control: uniform widths at the FLOPs of `chosen`, trained again as often; no result of the search.
        target_controls: label of the best network at a target -> the same at its FLOPs.
        paths: what was written -> where, relative to the run folder.
        time_limited: whether the time limit ended it before all its trials were done.
        targets: absolute budgets on one quantity, the largest first, each of which is answered; none unless asked for.
        latency: "dense" or label -> readings of `runners.latency.meter` as plain data; empty when none was asked for.
        latency_model: how the model was built that proposed by latency, and its errors, plain data; empty without one.
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
    interrupted: bool = False
    time_limited: bool = False
    control: TrialResult | None = None
    target_controls: Mapping[str, TrialResult] = field(default_factory=dict)
    targets: tuple[Budget, ...] = ()
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Bring the free-form fields to what JSON gives back, so that a round trip is exact."""
        for name in ("config", "space", "versions", "paths", "latency", "latency_model"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    @cached_property
    def front(self) -> ParetoFront:
        """The non-dominated networks inside all budgets, those that a trial passed on its way too, cheapest first."""
        return ParetoFront(self._inside, self.axis)

    @property
    def axis(self) -> str:
        """What the cost of the front is: "flops", or "latency" as measured at the first batch size."""
        return LATENCY if str(self.config.get("objective", "")).endswith(LATENCY) else FLOPS

    @cached_property
    def chosen(self) -> TrialResult | None:
        """The most accurate network on validation inside all budgets; of equals the cheaper. None when all failed."""
        return most_accurate(self._inside)

    def best_at(self, budget: Budget | str, baseline: str | None = None) -> TrialResult | None:
        """Return the most accurate network on validation inside all budgets and this one, such as "0.1gflops" or "20%".

        Args:
            arm: of which alone, such as `UNIFORM`; None takes every network.

        Raises:
            BudgetError: a text that is no budget, or one on latency.
        """
        limit = (Budget.parse(budget) if isinstance(budget, str) else budget).resolve(self.dense.cost)
        own = [each for each in self._inside if baseline is None or each.trial.baseline == baseline]
        return most_accurate(each for each in own if each.cost is not None and limit.allows(each.cost))

    def control_of(self, network: TrialResult) -> TrialResult | None:
        """Return uniform widths at the FLOPs of the chosen network or of the best at a target, trained again."""
        return self.control if self.is_chosen(network) else self.target_controls.get(network.label)

    @cached_property
    def reported(self) -> tuple[TrialResult, ...]:
        """The front, and what is best at a target without being on it: one on params may cost FLOPs to be met best."""
        best = [each for each in map(self.best_at, self.targets) if each is not None]
        known = {each.label: each for each in (*self.front, *best)}
        return tuple(known.values())

    @cached_property
    def uniform_comparison(self) -> UniformComparison:
        """How the chosen network compares with the uniform control arm."""
        baselines = [r for r in self.results if measured(r) and r.trial.baseline == UNIFORM]
        if self.axis == LATENCY:
            baselines = [r for r in baselines if r.timed]
        return compare_with_uniform(baselines, self._inside, self.control, self.axis)

    @cached_property
    def _inside(self) -> tuple[TrialResult, ...]:
        return inside(self.results, self.budgets, self.axis)

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the rungs that trials grew through, the last the whole training; none when they had none."""
        config = self.config  # older files have no rungs
        text, epochs = config.get("rungs", NONE), config.get("train", {}).get("epochs", 0)
        return parse_rungs(text, epochs, config.get("trials", 0), config.get("search_training", ""))

    @cached_property
    def proxy_audit(self) -> tuple[RungAudit, ...]:
        """How well each rung but the last has told the end of training."""
        return audit_rungs(self.results, self.rungs)

    @cached_property
    def screening_audit(self) -> RungAudit | None:
        """How well the accuracy before training has told the end of it; None where nothing was compared by it."""
        return audit_screening(self.results, self.rungs)

    def is_chosen(self, network: TrialResult) -> bool:
        """Whether this is the chosen network."""
        return self.chosen is not None and network.label == self.chosen.label

    def with_results(self, changed: Iterable[TrialResult]) -> "SearchResult":
        """Return the search with these networks in place of those of the same labels, e.g. confirmed on test."""
        by_label = {network.label: network for network in changed}
        results = tuple(
            result.map_networks(lambda network: by_label.get(network.label, network)) for result in self.results
        )
        return dataclasses.replace(self, results=results)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; front, chosen, comparison and audits are added for readers, and derived when read back."""
        networks = {
            "results": [trial_result_to_dict(result) for result in self.results],
            "control": None if self.control is None else trial_result_to_dict(self.control),
            "target_controls": {
                label: trial_result_to_dict(network) for label, network in self.target_controls.items()
            },
        }
        derived = {
            "front": [network.label for network in self.front],
            "chosen": _label(self.chosen),
            "best_at_targets": [
                {"best": _label(self.best_at(target)), UNIFORM: _label(self.best_at(target, UNIFORM))}
                for target in self.targets
            ],
            "uniform_comparison": to_plain(self.uniform_comparison),
            "proxy_audit": [to_plain(audit) for audit in self.proxy_audit],
            "screening_audit": None if self.screening_audit is None else to_plain(self.screening_audit),
        }
        return {"schema": self.schema, **to_plain(self, set(networks)), **derived, **networks}

    def to_json(self) -> str:
        """Write the result as JSON without weights."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "SearchResult":
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
            networks = {
                "results": [trial_result_from_dict(result) for result in data["results"]],
                "control": None if data["control"] is None else trial_result_from_dict(data["control"]),
                "target_controls": {
                    label: trial_result_from_dict(network) for label, network in data["target_controls"].items()
                },
            }
        except KeyError as error:
            raise ResultError(f"this search result has no {error.args[0]!r}; was the file changed?") from error
        return from_plain(cls, {**data, **networks})


def _label(network: TrialResult | None) -> str | None:
    return None if network is None else network.label


def best_at_text(result: SearchResult, network: TrialResult) -> str:
    """Write the targets that a network is the best at, such as "0.3gflops, 0.1gflops"; empty for none."""
    found = [(target, result.best_at(target)) for target in result.targets]
    return ", ".join(str(target) for target, best in found if best is not None and best.label == network.label)
