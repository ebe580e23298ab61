"""Do widths matter on cluttered_digits? `pytest -m slow -s tests/benchmarks/test_cluttered_digits.py`"""

import statistics

import pytest
import torch

from pruning.rewriting.surgery import slice_channels
from pruning.selection import select_channels
from runners.config import DataConfig, TrainConfig
from runners.data.loading import load_data
from runners.training.compute_format import measure_compute_format
from runners.training.loop import fit
from runners.training.run import TrainingRun
from runners.training.scoring import accuracy
from spaces.space import ModelSpec, SpaceConfig
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

SHAPE = (3, 32, 32)
CPU = torch.device("cpu")
EPOCHS = 8


@pytest.mark.slow
def test_a_quarter_of_the_width_costs_resnet20_four_points() -> None:
    """Both widths are trained from scratch for equal epochs; the mean gap over three seeds counts."""
    data = load_data(DataConfig(name="cluttered_digits"), 0, SHAPE)
    config = TrainConfig(batch_size=64)
    gaps = []
    for seed in range(3):
        torch.manual_seed(seed)
        full = build(ModelSpec("resnet20", data.num_classes, SHAPE))
        space = trace(full, torch.empty(1, *SHAPE), SpaceConfig(divisor=1))
        widths = {group.name: group.width // 4 for group in space.variable}
        scores = {group.name: torch.rand(group.width) for group in space.variable}
        quarter = slice_channels(full, space, select_channels(space, scores, widths))
        reached = []
        for net in (full, quarter):
            compute_format = measure_compute_format(full, SHAPE, config.batch_size, CPU)
            for _ in fit(
                net, data.train, config, TrainingRun(EPOCHS, 0.1, seed=seed, device=CPU, compute_format=compute_format)
            ):
                pass
            reached.append(100 * accuracy(net, data.test, device=CPU))
        gaps.append(reached[0] - reached[1])
        print(f"\nseed {seed}: full width {reached[0]:.1f}%, quarter {reached[1]:.1f}%")
    assert statistics.mean(gaps) >= 4
