"""What a search that limits or compares latency does before any training: measure dense and smallest, build the model.

Time depends on widths and not on weights, so the untrained net serves. A budget that the smallest network misses ends
the search here, before it has cost anything.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning import checkpoint
from runners.latency.meter import REFERENCE, Conditions, LatencyMeter, Reading, to_plain
from runners.latency.model import ModelError
from runners.latency.model_building import Building, at_widths, build_model, call_of
from runners.latency.timing import brief_seconds
from runners.training.compute_format import using_threads
from runners.trial import TrialResult
from search.latency.predictor import Guide, check_smallest, check_smallest_briefly, latency_counts, latency_limit
from search.latency.queue import Read
from search.problem import Setup
from search.reporting.live import Display

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatencyTools:
    """What the rest of the search needs.

    Attributes:
        dense: its reading at the first batch size, which may be refused.
        dense_seconds: at the first batch size; a brief timing where the reading was refused.
        held_out: how many errors of the model are of networks that the search has not measured.
    """

    meter: LatencyMeter
    guide: Guide
    building: Building
    dense: Reading
    dense_seconds: float
    held_out: int

    @property
    def conditions(self) -> Conditions:
        """Of the readings that budgets and the axis go by."""
        return self.dense.conditions

    def reader(self, setup: Setup) -> Read:
        """Return what measures a network whose weights are in the run folder, at the first batch size."""

        def read(network: TrialResult) -> tuple[Reading, ...]:
            net = checkpoint.load(setup.folder / network.path)
            return (self.meter.read_at(network.label, net, self.meter.first_batch),)

        return read

    def other_batches(self, network: str, net: nn.Module) -> list[dict[str, Any]]:
        """Measure a net at the batch sizes that only the report shows; return the readings as plain data."""
        others = self.meter.config.batch[1:]
        return to_plain([self.meter.read_at(network, net, batch) for batch in others])

    def described(self) -> dict[str, Any]:
        """Return how the model was built and how far it was off, as plain data."""
        during = self.guide.model.errors[self.held_out :]
        return {
            **dataclasses.asdict(self.building),
            "during": dataclasses.asdict(ModelError.of(during)) if during else None,
        }


def start_latency(setup: Setup, display: Display) -> LatencyTools | None:
    """Measure the dense net and the smallest and build the model; None for a search that needs no latency.

    Raises:
        BudgetError: a latency budget under what the smallest network measures.
    """
    config = setup.config.latency
    if not latency_counts(setup.config, setup.budgets):
        return None
    meter = LatencyMeter(config, setup.net, setup.data.input_shape)
    where = f"{config.device} at batch {config.batch[0]}"
    display.phase(f"timing the dense net and the smallest on {config.device}")
    dense = meter.read_at(REFERENCE, setup.net, meter.first_batch)
    limit = latency_limit(setup.budgets)
    narrow = at_widths(setup.net, setup.space, setup.space.smallest)
    smallest = meter.read_at("smallest", narrow, meter.first_batch)
    if smallest.seconds is None or smallest.low is None or smallest.high is None:
        check_smallest_briefly(limit, _brief(meter, narrow), where)
        _log.warning("whether the smallest network meets the latency budget is not known: %s", smallest.refused)
    else:
        check_smallest(limit, smallest.seconds, (smallest.low, smallest.high), where)
    dense_seconds = dense.seconds or _brief(meter, meter.dense)
    display.phase(f"building the latency model of {where}, unless it is cached")
    model, building = build_model(meter, setup.space, dense_seconds)
    if building.cached and dense.seconds is not None:  # the machine may be faster or slower than then
        model.observe(setup.space.full, dense.seconds)
    error = building.error
    display.phase(f"the latency model is off by {error.median:.1%} at the median over {error.nets} random networks")
    guide = Guide(model, setup.space, setup.budgets, limit)
    return LatencyTools(meter, guide, building, dense, dense_seconds, len(model.errors))


def _brief(meter: LatencyMeter, net: nn.Module) -> float:
    with using_threads(meter.device.threads), torch.no_grad():
        return brief_seconds(call_of(meter, net), meter.watch)
