"""Learning-rate schedules, and the plan of a training."""

import math

import pytest
import torch
from tiny_training import CONFIG, CPU, tiny_net, train, two_colours
from torch import nn

from pruning.base import Action
from runners.config import TrainConfig
from runners.training.compute_format import PLAIN
from runners.training.loop import fit
from runners.training.run import TrainingRun
from runners.training.schedule import integrated_learning_rate, plan_training, schedule_factor, segment_config


def test_the_plan_of_a_training_is_what_the_optimiser_does():
    moved, rates = tiny_net(), []
    bias = moved[6].bias
    before = bias.detach().clone()

    def hook(net: nn.Module, step: int) -> None:
        if rates:  # what the last step did to a bias whose gradient was 1
            rates.append(float((before - bias.detach()).mean()))
            before.copy_(bias.detach())
        else:
            rates.append(0.0)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)

    config = TrainConfig(batch_size=8, precision="float32", momentum=0.0, weight_decay=0.1)
    train(moved, config=config, epochs=2, action=Action(hook))
    plan = plan_training(two_colours(), config, 2, 0.1)
    assert len(plan.rates) == 12
    assert rates[1:] == pytest.approx(plan.rates[:-1], rel=1e-4)
    assert (plan.momentum, plan.nesterov, plan.weight_decay) == (0.0, False, 0.1)


def test_two_parts_of_a_schedule_have_the_rates_of_the_whole():
    def moved(epochs: float, span: tuple[float, float]) -> float:
        return integrated_learning_rate(CONFIG, epochs=epochs, per_epoch=8, learning_rate=0.1, span=span)

    assert moved(1, (0.0, 0.25)) + moved(3, (0.25, 1.0)) == pytest.approx(moved(4, (0.0, 1.0)))
    plain = TrainConfig(lr_scheduler="cosine", momentum=0.5)
    assert integrated_learning_rate(plain, epochs=1, per_epoch=2, learning_rate=0.1) == pytest.approx(
        0.1 * (1 + 0.5) / 0.5
    )


def test_a_constant_pull_shrinks_a_weight_as_the_integrated_learning_rate_says():
    net, config = nn.Linear(1, 2), TrainConfig(batch_size=1, weight_decay=0.0)
    start = net.weight.detach().clone()

    def pull(net: nn.Module, step: int) -> None:
        for parameter in net.parameters():
            parameter.grad = 0.002 * parameter.detach() if parameter is net.weight else torch.zeros_like(parameter)

    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), net)
    training_run = TrainingRun(
        4, 0.05, seed=0, device=CPU, compute_format=PLAIN, action=Action(lambda _, step: pull(net, step))
    )
    list(fit(flat, two_colours(), config, training_run))
    expected = math.exp(-0.002 * integrated_learning_rate(config, epochs=4, per_epoch=48, learning_rate=0.05))
    torch.testing.assert_close(
        net.weight.detach() / start, torch.full((2, 1), expected), rtol=0.01, atol=0
    )  # momentum lags


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0.0: 1.0, 0.9: 1.0}),
        ("cosine", {0.0: 1.0, 0.5: 0.5}),
        ("one_cycle", {0.0: 0.02, 0.25: 1.0, 0.625: 0.51}),
        ("multistep", {0.0: 1.0, 0.333: 1.0, 0.334: 0.1, 0.666: 0.1, 0.667: 0.01, 0.999: 0.01}),
    ],
)
def test_schedules_pass_their_known_points(schedule, expected):
    config = TrainConfig(lr_scheduler=schedule, milestones=(200, 400) if schedule == "multistep" else ())
    for progress, factor in expected.items():
        assert schedule_factor(config, progress, 600) == pytest.approx(factor, abs=1e-12)  # rounding of cos


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.0, 2: 0.4, 4.5: 0.9, 5: 1.0, 80: 1.0}),
        ("multistep", {0: 0.0, 2: 0.4, 5: 1.0, 49: 1.0, 50: 0.1}),
        ("cosine", {0: 0.0, 2: 0.4, 5: 1.0, 52.5: 0.5}),
    ],
)
def test_a_warm_up_climbs_from_zero_and_milestones_count_from_the_first_epoch(schedule, expected):
    config = TrainConfig(lr_scheduler=schedule, warmup_epochs=5, milestones=(50,) if schedule == "multistep" else ())
    for epoch, factor in expected.items():
        assert schedule_factor(config, epoch / 100, 100) == pytest.approx(factor, abs=1e-12)


def test_a_milestone_is_met_at_its_first_step_whatever_the_rounding():
    config = TrainConfig(batch_size=3, lr_scheduler="multistep", milestones=(7, 49))
    plan = plan_training(two_colours(), config, 70, 1.0)  # 16 steps an epoch
    assert [step for step in range(1, 1120) if plan.rates[step] < plan.rates[step - 1]] == [7 * 16, 49 * 16]


def test_the_optimiser_follows_milestones_within_a_part_of_the_schedule():
    """Epochs 1 to 3 of 4, the rate falling after the second: one epoch at the peak, one at a tenth."""
    rates: list[float] = []
    config = TrainConfig(
        batch_size=8, precision="float32", momentum=0.0, weight_decay=0.0, lr_scheduler="multistep", milestones=(2,)
    )
    net = tiny_net()

    def hook(trained: nn.Module, step: int) -> None:
        rates.append(float(trained[6].bias[0].detach()))
        for parameter in trained.parameters():
            parameter.grad = torch.ones_like(parameter)

    train(net, config=config, epochs=2, action=Action(hook), span=(0.25, 0.75))
    moves = [before - after for before, after in zip(rates, rates[1:], strict=False)]
    assert moves == pytest.approx([0.1] * 6 + [0.01] * 5, rel=1e-3)


def test_a_segment_without_training_keeps_its_milestones():
    config = TrainConfig(epochs=4, lr_scheduler="multistep", milestones=(2, 3))
    assert segment_config(config, 0).milestones == (2, 3)
    assert segment_config(config, 2).milestones == (1, 1.5)
