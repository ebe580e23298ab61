"""The meter of the configured device: this machine, a command of the user's, or agents on boards."""

from collections.abc import Sequence

from torch import nn

from runners.config import LatencyConfig
from runners.latency.agent_bench import AgentsBench
from runners.latency.command import CommandBench
from runners.latency.engines import check_latency
from runners.latency.external import Bench, ExternalMeter, check_bench
from runners.latency.meter import LatencyMeter, Meter


def make_meter(config: LatencyConfig, dense: nn.Module, input_shape: Sequence[int]) -> Meter:
    """Return the meter of the configured device.

    Args:
        dense: the network that others are measured beside; it is not changed.
        input_shape: (C, H, W).

    Raises:
        LatencyError: this machine has no such device, or the token of the agents cannot be read.
    """
    if config.external:
        return ExternalMeter(config, dense, input_shape, make_bench(config, input_shape))
    return LatencyMeter(config, dense, input_shape)


def make_bench(config: LatencyConfig, input_shape: Sequence[int]) -> Bench:
    """Return the bench of a command or of agents.

    Raises:
        LatencyError: the token of the agents cannot be read.
    """
    return CommandBench(config, tuple(input_shape)) if config.command else AgentsBench(config)


def check_device(config: LatencyConfig) -> None:
    """Measure a small network, so that a long search does not fail at its first measurement.

    Raises:
        LatencyError: the device, its engine or its command does not work.
    """
    if config.command:
        check_bench(config, CommandBench(config, (3, 8, 8)))
    elif config.agents:
        bench = AgentsBench(config)
        bench.check()
        check_bench(config, bench)
    else:
        check_latency(config)
