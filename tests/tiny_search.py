"""A search on a tiny network and real digits, of a few seconds."""

import dataclasses
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig


def tiny_config(out: Path, **changes: Any) -> RunConfig:
    """Return what to search: five trials in this process, into the folder, nothing timed, no models in MLflow."""
    config = RunConfig(
        budget=("50%",),
        model="tiny_nets:residual",
        data=DataConfig("digits", image_size=8),
        train=TrainConfig(batch_size=32, precision="float32", device="cpu"),
        runner=RunnerConfig(name="local"),
        latency=LatencyConfig("none"),
        method="l2,random",
        trials=5,
        final_epochs="none",
        out=str(out),
        log_models="none",
    )
    return dataclasses.replace(config, **changes)
