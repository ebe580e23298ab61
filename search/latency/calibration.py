"""LatencyCalibration: what a search that limits or compares latency measures before any training.

The dense network and the smallest are measured, and a latency model is built. Latency depends on widths and not on
weights, so the untrained network serves. A budget that the smallest network misses ends the search here, before it has
cost anything.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pruning import checkpoint
from runners.latency.devices import make_meter
from runners.latency.meter import REFERENCE, Conditions, Meter, Reading, to_plain
from runners.latency.prediction.model import ModelError
from runners.latency.prediction.model_building import Building, at_widths, build_model
from runners.trial import TrialResult
from search.callbacks import SearchCallback
from search.environment import Environment
from search.latency.predictor import LatencyPredictor
from search.latency.queue import Read
from spaces.budget import Budget
from spaces.errors import BudgetError
from spaces.files import write_atomically

DENSE_LATENCY = "dense_latency.json"  # of a run folder
BUSY = 4  # a brief timing beside other processes takes at most this many times as long as alone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatencyCalibration:
    """What a search measures before any training.

    Attributes:
        dense: reading of the dense network at the first batch size, which may be refused.
        dense_seconds: latency of the dense network at the first batch size; a brief timing where its reading was
            refused.
        whole_seconds: latency of the dense network that budgets are shares of; that of the search's first process.
        held_out: number of errors of the model that are of networks which the search has not measured.
    """

    meter: Meter
    predictor: LatencyPredictor
    building: Building
    dense: Reading
    dense_seconds: float
    whole_seconds: float
    held_out: int

    @property
    def conditions(self) -> Conditions:
        """Conditions of the readings that budgets and the axis go by."""
        return self.dense.conditions

    def reader(self, environment: Environment) -> Read:
        """Return a function that measures a network whose weights are in the run folder, at the first batch size."""

        def read(network: TrialResult) -> tuple[Reading, ...]:
            with self.meter.preparing:
                net = checkpoint.load(environment.folder / network.path, environment.net)
            return (self.meter.read_at(network.label, net, self.meter.first_batch),)

        return read

    def other_batches(self, network: str, net: nn.Module) -> list[dict[str, Any]]:
        """Measure a net at the batch sizes that only the report shows; return the readings as plain data."""
        others = self.meter.config.batch[1:]
        return to_plain([self.meter.read_at(network, net, batch) for batch in others])

    def keep(self, folder: Path) -> None:
        """Write to the run folder what budgets are shares of, so that a resumed search has the same limits."""
        kept = {"seconds": self.whole_seconds, "conditions": dataclasses.asdict(self.conditions)}
        write_atomically(folder / DENSE_LATENCY, json.dumps(kept).encode())

    def described(self) -> dict[str, Any]:
        """Return how the model was built and its errors, as plain data."""
        during = self.predictor.model.errors[self.held_out :]
        return {
            **dataclasses.asdict(self.building),
            "during": dataclasses.asdict(ModelError.of(during)) if during else None,
        }


def calibrate_latency(environment: Environment, callback: SearchCallback) -> LatencyCalibration | None:
    """Measure the dense network and the smallest and build the model; None for a search that needs no latency.

    A budget on a share of the dense latency is absolute in the problem of the predictor. In a resumed search it is a
    share of the latency that was measured first, as long as that was under the present conditions.

    Raises:
        BudgetError: a latency budget under the measured latency of the smallest network.
        LatencyError: a command or an agent gives no figures.
    """
    problem, config = environment.problem, environment.config.latency
    if not problem.needs_latency:
        return None
    meter = make_meter(config, environment.net, environment.data.input_shape)
    where = f"{config.place} at batch {config.batch[0]}"
    callback.on_phase(f"timing the dense net and the smallest on {config.place}")
    dense = meter.read_at(REFERENCE, environment.net, meter.first_batch)
    dense_seconds = dense.seconds or meter.brief_seconds(meter.dense)
    whole_seconds = _first_seconds(environment, dense.conditions) or dense_seconds
    problem = problem.with_dense_latency(whole_seconds)
    speed = whole_seconds / dense_seconds  # of the machine now, by that when the search began, as its limits are
    narrow = at_widths(environment.net, problem.space, problem.space.smallest)
    smallest = meter.read_at("smallest", narrow, meter.first_batch)
    if smallest.seconds is None or smallest.low is None or smallest.high is None:
        check_smallest(problem.latency_limit, speed * meter.brief_seconds(narrow), None, where)
        _log.warning("whether the smallest network meets the latency budget is not known: %s", smallest.refused)
    else:
        interval = speed * smallest.low, speed * smallest.high
        check_smallest(problem.latency_limit, speed * smallest.seconds, interval, where)
    if differing := meter.disagreement(narrow):
        _log.warning("the agents disagree: %s", differing)
    callback.on_phase(f"building the latency model of {where}, unless it is cached")
    model, building = build_model(meter, problem.space, dense_seconds)
    if building.cached and dense.seconds is not None:  # the machine may be faster or slower than then
        model.observe(problem.space.full, dense.seconds)
    error = building.error
    callback.on_phase(f"the latency model is off by {error.median:.1%} at the median over {error.nets} random networks")
    predictor = LatencyPredictor(model, problem)
    return LatencyCalibration(meter, predictor, building, dense, dense_seconds, whole_seconds, len(model.errors))


def _first_seconds(environment: Environment, conditions: Conditions) -> float | None:
    """Return the dense latency that a resumed search began with; None where that was measured elsewhere, or is lost."""
    file = environment.folder / DENSE_LATENCY
    if not environment.config.resume or not file.is_file():
        return None
    try:
        kept = json.loads(file.read_bytes())
        return float(kept["seconds"]) if kept["conditions"] == dataclasses.asdict(conditions) else None
    except (ValueError, TypeError, KeyError):
        return None


def check_smallest(limit: float, seconds: float, interval: tuple[float, float] | None, where: str) -> None:
    """Compare a latency limit with the latency of the smallest network.

    Args:
        interval: of the measured latency; None for a brief timing on a machine that is too busy to measure. Such a
            timing only refuses a limit so far below it that other processes on the machine cannot be the reason.
        where: device and batch size in words.

    Raises:
        BudgetError: no network of the space can be expected to meet the limit.
    """
    if limit >= (seconds / BUSY if interval is None else seconds):
        return
    budget, milliseconds = Budget("latency", limit), f"{1e3 * seconds:.4g} ms"
    if interval is None:
        found = (
            f"budget {budget} is far under what the smallest network of this space takes on {where}, about "
            f"{milliseconds} (this machine is too busy to measure it)"
        )
    else:
        low, high = interval
        found = (
            f"budget {budget} is under what the smallest network of this space measures on {where}: "
            f"{milliseconds} ({1e3 * low:.4g} to {1e3 * high:.4g})"
        )
    raise BudgetError(f"{found}; raise the budget, or lower --floor or --divisor")
