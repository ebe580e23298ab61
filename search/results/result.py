"""SearchResult: what a search found, as plain data that survives a round trip through JSON. No weights in it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from configs.parsing import NONE, parse_rungs
from runners.trial import TrialResult
from search.results import comparison
from search.results.pareto import FLOPS, LATENCY, ParetoFront, dominates, inside, measured, objectives, rank
from search.results.rank_correlation import RungAudit, audit
from search.results.screening_correlation import audit_screening
from search.results.serialization import plain, trial_result_from_dict, trial_result_to_dict
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.errors import SlimfrontError

SCHEMA_VERSION = 2
UNIFORM = "uniform"
_FREE_FORM = ("config", "space", "seconds", "versions", "paths", "latency", "latency_model", "interrupted")


class ResultError(SlimfrontError):
    """A search result that cannot be read."""


@dataclass(frozen=True)
class DenseResult:
    """How the dense network does; accuracies in [0, 1], that on test None when the search ended before."""

    val_accuracy: float
    test_accuracy: float | None
    cost: Cost


@dataclass(frozen=True)
class UniformComparison:
    """Whether the search did better than narrowing every layer by the same factor (the uniform control arm).

    Attributes:
        rival: trial number of the most accurate control-arm network inside the budgets; None when there is none.
        won: the chosen network is no control arm, and more accurate on validation than the rival (or equally
            accurate and cheaper).
        beaten: how many control-arm networks another network dominates (no fewer correct, no more FLOPs).
        arms: how many control-arm networks were measured.
        statement: the same in plain words, with the test accuracies where they are known.
        difference: of the chosen network to uniform widths at its FLOPs, on test, where both were trained again.
    """

    rival: int | None
    won: bool
    beaten: int
    baselines: int
    statement: str
    difference: comparison.Difference | None = None


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
        return _best(self._inside)

    def best_at(self, budget: Budget | str, baseline: str | None = None) -> TrialResult | None:
        """Return the most accurate network on validation inside all budgets and this one, such as "0.1gflops" or "20%".

        Args:
            arm: of which alone, such as `UNIFORM`; None takes every network.

        Raises:
            BudgetError: a text that is no budget, or one on latency.
        """
        limit = (Budget.parse(budget) if isinstance(budget, str) else budget).resolve(self.dense.cost)
        own = [each for each in self._inside if baseline is None or each.trial.baseline == baseline]
        return _best(each for each in own if each.cost is not None and limit.allows(each.cost))

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
        axis = self.axis
        baselines = [
            r for r in self.results if measured(r) and r.trial.baseline == UNIFORM and (axis == FLOPS or r.timed)
        ]
        others = [r for r in self._inside if r.trial.baseline != UNIFORM]
        beaten = sum(any(dominates(other, baseline, axis) for other in others) for baseline in baselines)
        rival, chosen = _best([r for r in self._inside if r.trial.baseline == UNIFORM]), self.chosen
        won = chosen is not None and chosen.trial.baseline != UNIFORM
        confirmed = comparison.confirmed_statement(chosen, self.control, not won)
        gap = comparison.difference(chosen, self.control)
        if rival is None or chosen is None:
            text = "No uniform network is inside the budgets" if baselines else "No uniform control arm finished"
            text += ": no comparison." + confirmed
            return UniformComparison(None, False, beaten, len(baselines), text, gap)
        text = comparison.validation_statement(chosen, rival, won)
        text += f" Searched networks dominate {beaten} of the {len(baselines)} uniform ones." + confirmed
        return UniformComparison(rival.trial.number, won, beaten, len(baselines), text, gap)

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
        return audit(self.results, self.rungs)

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
        """Return plain data; front, chosen and comparison are added for readers and derived again on the way back."""
        return {
            "schema": self.schema,
            "config": self.config,
            "budgets": [dataclasses.asdict(budget) for budget in self.budgets],
            "targets": [self._target_to_dict(target) for target in self.targets],
            "dense": dataclasses.asdict(self.dense),
            "space": self.space,
            "front": [network.label for network in self.front],
            "chosen": None if self.chosen is None else self.chosen.label,
            "uniform_comparison": dataclasses.asdict(self.uniform_comparison),
            "proxy_audit": [dataclasses.asdict(each) for each in self.proxy_audit],
            "screening_audit": None if self.screening_audit is None else dataclasses.asdict(self.screening_audit),
            "results": [trial_result_to_dict(result) for result in self.results],
            "control": None if self.control is None else trial_result_to_dict(self.control),
            "target_controls": {label: trial_result_to_dict(each) for label, each in self.target_controls.items()},
            "seconds": self.seconds,
            "versions": self.versions,
            "paths": self.paths,
            "latency": self.latency,
            "latency_model": self.latency_model,
            "interrupted": self.interrupted,
            "time_limited": self.time_limited,
        }

    def _target_to_dict(self, target: Budget) -> dict[str, Any]:
        found = {"best": self.best_at(target), "uniform": self.best_at(target, UNIFORM)}
        labels = {name: None if each is None else each.label for name, each in found.items()}
        return {"budget": dataclasses.asdict(target), **labels}

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
            data = {"latency": {}, "latency_model": {}, **json.loads(text)}  # which none had once
            schema = data["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(f"this is no search result ({error!r}); give the result.json of a run folder") from error
        if schema != SCHEMA_VERSION:
            raise ResultError(
                f"search result has schema {schema!r}, this version reads {SCHEMA_VERSION}; "
                "read it with the version that wrote it (see its `versions`)"
            )
        dense, control = data["dense"], data.get("control")
        return cls(
            budgets=tuple(Budget(**budget) for budget in data["budgets"]),
            dense=DenseResult(dense["val_accuracy"], dense["test_accuracy"], Cost(**dense["cost"])),
            results=tuple(trial_result_from_dict(result) for result in data["results"]),
            time_limited=data.get("time_limited", False),  # older files have none
            control=None if control is None else trial_result_from_dict(control),
            target_controls={
                label: trial_result_from_dict(each) for label, each in data.get("target_controls", {}).items()
            },
            targets=tuple(Budget(**target["budget"]) for target in data.get("targets", [])),
            **{name: data[name] for name in _FREE_FORM},
        )


def best_at_text(result: SearchResult, network: TrialResult) -> str:
    """Write the targets that a network is the best at, such as "0.3gflops, 0.1gflops"; empty for none."""
    found = [(target, result.best_at(target)) for target in result.targets]
    return ", ".join(str(target) for target, best in found if best is not None and best.label == network.label)


def _best(results: Iterable[TrialResult]) -> TrialResult | None:
    """Return the most accurate; of equals the cheaper, then the earlier."""
    return min(results, key=lambda r: (-objectives(r)[1], objectives(r)[0], *rank(r)), default=None)
