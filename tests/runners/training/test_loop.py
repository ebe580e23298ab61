"""The training loop and what goes with it."""

import copy
import math

import pytest
import torch
from torch import nn

from runners.config import TrainConfig
from runners.data.splits import Augmentation, TensorSplit
from runners.training.compute_format import PLAIN, ComputeFormat, measure_compute_format
from runners.training.loop import (
    TrainingError,
    TrainingRun,
    accuracy,
    divergence,
    evaluating,
    fit,
    pick_device,
    reestimate_batchnorm,
)
from runners.training.schedule import integrated_learning_rate, plan_training, schedule_factor
from spaces.errors import ConfigError

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=8, precision="float32")


def tiny_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )


def two_colours(count: int = 48) -> TensorSplit:
    """Reddish images are class 0, greenish ones class 1."""
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), labels] += 150
    return TensorSplit(images.to(torch.uint8), labels, (0.3,) * 3, (0.3,) * 3, (6, 6), Augmentation(shift=1))


def train(net: nn.Module, *, config: TrainConfig = CONFIG, epochs: int = 1, rate: float = 0.1, **settings) -> nn.Module:
    settings = {"seed": 3, "device": CPU} | settings
    for _ in fit(net, two_colours(), config, TrainingRun(epochs, rate, **settings)):
        pass
    return net


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([each.flatten().double() for each in net.state_dict().values()])


def test_training_learns_and_counts_its_epochs():
    net = tiny_net()
    epochs = fit(net, two_colours(), CONFIG, TrainingRun(6, 0.2, seed=0, device=CPU))
    assert list(epochs) == [1, 2, 3, 4, 5, 6]
    assert accuracy(net, two_colours(), device=CPU) == 1.0


@pytest.mark.parametrize("compute_format", [PLAIN, ComputeFormat(torch.bfloat16, True)])
def test_the_same_seed_gives_bit_equal_weights(compute_format):
    first = weights(train(tiny_net(), epochs=2, compute_format=compute_format))
    torch.rand(7)  # what else draws from the global generator does not matter
    assert torch.equal(first, weights(train(tiny_net(), epochs=2, compute_format=compute_format)))
    assert not torch.equal(first, weights(train(tiny_net(), epochs=2, compute_format=compute_format, seed=4)))


def test_training_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    train(tiny_net())
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_are_in_ordinary_memory_format_whenever_an_epoch_is_yielded():
    net = tiny_net()
    for _ in fit(
        net,
        two_colours(),
        CONFIG,
        TrainingRun(2, 0.1, seed=0, device=CPU, compute_format=ComputeFormat(channels_last=True)),
    ):
        assert net[0].weight.is_contiguous()
        assert net.training


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
    train(moved, config=config, epochs=2, hook=hook)
    plan = plan_training(two_colours(), config, 2, 0.1)
    assert len(plan.rates) == 12
    assert rates[1:] == pytest.approx(plan.rates[:-1], rel=1e-4)
    assert (plan.momentum, plan.nesterov, plan.weight_decay) == (0.0, False, 0.1)


def test_training_goes_on_with_the_net_and_momentum_it_is_handed():
    """A copy that takes over in the middle ends where the first net would."""

    def hand_over(net: nn.Module, momentum):
        copies.append(copy.deepcopy(net))
        return copies[-1], {name: buffer.clone() for name, buffer in momentum.items()}

    copies: list[nn.Module] = []
    first = train(tiny_net(), epochs=3)
    left = train(tiny_net(), epochs=3, reshape=hand_over)
    assert torch.equal(weights(copies[1]), weights(first))
    assert not torch.equal(weights(left), weights(first))
    kept = train(tiny_net(), epochs=3, reshape=lambda net, momentum: None)
    assert torch.equal(weights(kept), weights(first))


def test_the_hook_sees_final_gradients_before_each_step():
    net, seen = tiny_net(), []

    def hook(trained: nn.Module, step: int) -> None:
        norm = torch.stack([each.grad.norm() for each in trained.parameters()]).norm()
        seen.append((step, math.isfinite(norm)))
        for parameter in trained.parameters():
            parameter.grad.zero_()

    before = [each.clone() for each in net.parameters()]
    train(net, config=TrainConfig(batch_size=8, precision="float32", weight_decay=0.0), epochs=2, hook=hook)
    assert seen == [(step, True) for step in range(12)]
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_an_incomplete_last_batch_is_left_out_and_a_small_set_is_one_batch():
    steps = []

    def hook(net: nn.Module, step: int) -> None:
        steps.append(step)

    train(tiny_net(), config=TrainConfig(batch_size=32, precision="float32"), hook=hook)
    train(tiny_net(), config=TrainConfig(batch_size=100, precision="float32"), hook=hook)
    assert steps == [0, 0]


def test_biases_and_batchnorm_are_not_decayed():
    net = tiny_net()

    def stop(trained: nn.Module, step: int) -> None:
        for parameter in trained.parameters():
            parameter.grad.zero_()

    before = copy.deepcopy(net)
    train(net, config=TrainConfig(batch_size=8, precision="float32", weight_decay=0.1), hook=stop)
    assert torch.equal(net[1].weight, before[1].weight)
    assert torch.equal(net[0].bias, before[0].bias)
    assert net[0].weight.norm() < before[0].weight.norm()


def test_biases_alone_learn_at_a_multiple_of_the_rate():
    """Every gradient is 1, without momentum and decay: a weight moves by the sum of its rates."""
    start, moved = tiny_net(), {}

    def ones(trained: nn.Module, step: int) -> None:
        for parameter in trained.parameters():
            parameter.grad = torch.ones_like(parameter)

    for factor in (1.0, 2.0):
        config = TrainConfig(batch_size=8, precision="float32", momentum=0.0, weight_decay=0.0, bias_lr_mult=factor)
        net = train(tiny_net(), config=config, hook=ones)
        assert plan_training(two_colours(), config, 1, 0.1).bias_lr_mult == factor
        pairs = zip(start.named_parameters(), net.parameters(), strict=True)
        moved[factor] = {name: float((before - after).detach().mean()) for (name, before), after in pairs}
    for name, once in moved[1.0].items():
        assert moved[2.0][name] == pytest.approx((2 if name.endswith("bias") else 1) * once, rel=1e-4)


def test_distillation_pulls_towards_the_teacher_and_leaves_it_untouched():
    teacher = train(tiny_net(1), epochs=3).eval()
    before = weights(teacher)
    config = TrainConfig(batch_size=8, precision="float32", distill_weight=1.0)
    images, _ = next(two_colours().batches(48, device=CPU))

    def distance(net: nn.Module) -> float:
        with torch.no_grad(), evaluating(net):
            return float(divergence(net(images), teacher(images), 2.0))

    net = tiny_net(2)
    start = distance(net)
    assert distance(train(net, config=config, epochs=4, teacher=teacher)) < start / 2
    assert torch.equal(before, weights(teacher))
    assert not teacher.training


def test_divergence_equals_the_closed_form_for_two_classes():
    logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(divergence(logits, target, 2.0)) == pytest.approx(expected, rel=1e-5)  # float32


def test_a_part_of_an_epoch_is_that_share_of_its_steps():
    def steps(epochs: float) -> list[int]:
        seen: list[int] = []
        training_run = TrainingRun(
            epochs, 0.1, seed=0, device=CPU, compute_format=PLAIN, hook=lambda net, step: seen.append(step)
        )
        yielded = list(fit(tiny_net(), two_colours(), CONFIG, training_run))
        return [len(yielded), len(seen)]

    per_epoch = steps(1)[1]
    assert steps(0.5) == [1, per_epoch // 2]
    assert steps(1.5) == [2, per_epoch + per_epoch // 2]
    assert steps(0.01) == [1, 1]
    assert steps(0) == [0, 0]


def test_two_parts_of_a_schedule_have_the_rates_of_the_whole():
    def moved(epochs: float, span: tuple[float, float]) -> float:
        return integrated_learning_rate(CONFIG, epochs=epochs, per_epoch=8, learning_rate=0.1, span=span)

    assert moved(1, (0.0, 0.25)) + moved(3, (0.25, 1.0)) == pytest.approx(moved(4, (0.0, 1.0)))
    plain = TrainConfig(lr_scheduler="cosine", momentum=0.5)
    assert integrated_learning_rate(plain, epochs=1, per_epoch=2, learning_rate=0.1) == pytest.approx(
        0.1 * (1 + 0.5) / 0.5
    )


def test_a_constant_pull_shrinks_a_weight_as_its_travel_says():
    net, config = nn.Linear(1, 2), TrainConfig(batch_size=1, weight_decay=0.0)
    start = net.weight.detach().clone()

    def pull(net: nn.Module, step: int) -> None:
        for parameter in net.parameters():
            parameter.grad = 0.002 * parameter.detach() if parameter is net.weight else torch.zeros_like(parameter)

    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), net)
    training_run = TrainingRun(4, 0.05, seed=0, device=CPU, compute_format=PLAIN, hook=lambda _, step: pull(net, step))
    list(fit(flat, two_colours(), config, training_run))
    expected = math.exp(-0.002 * integrated_learning_rate(config, epochs=4, per_epoch=48, learning_rate=0.05))
    torch.testing.assert_close(
        net.weight.detach() / start, torch.full((2, 1), expected), rtol=0.01, atol=0
    )  # momentum lags


def test_a_loss_that_is_not_finite_names_epoch_step_and_rate():
    net = tiny_net()

    def spoil(trained: nn.Module, step: int) -> None:
        if step == 7:
            trained[6].weight.grad.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"epoch 2, step 8 \(learning rate 0\.\d+\); lower the learning rate"):
        train(net, epochs=2, hook=spoil)


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

    train(net, config=config, epochs=2, hook=hook, span=(0.25, 0.75))
    moves = [before - after for before, after in zip(rates, rates[1:], strict=False)]
    assert moves == pytest.approx([0.1] * 6 + [0.01] * 5, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_scheduler": "multistep"}, "without --milestones"),
        ({"lr_scheduler": "multistep", "milestones": (4, 3)}, "rising order"),
        ({"lr_scheduler": "multistep", "milestones": (0,)}, "above 0"),
        ({"warmup_epochs": 2.0}, "'one_cycle' has a warm-up of its own"),
    ],
)
def test_what_a_schedule_does_not_have_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**settings)


def test_the_dense_net_has_a_schedule_of_its_own():
    config = TrainConfig(
        epochs=5, lr=0.01, lr_scheduler="cosine", warmup_epochs=1, dense_epochs=9, dense_lr=0.2,
        dense_lr_scheduler="multistep", dense_milestones=(3, 6), dense_warmup_epochs=2,
    )  # fmt: skip
    dense = config.for_dense()
    assert (dense.epochs, dense.lr, dense.lr_scheduler) == (9, 0.2, "multistep")
    assert (dense.milestones, dense.warmup_epochs) == ((3, 6), 2)
    assert TrainConfig(lr_scheduler="cosine", warmup_epochs=1).for_dense().lr_scheduler == "cosine"
    assert TrainConfig(lr_scheduler="cosine", warmup_epochs=1).for_dense().warmup_epochs == 0


@pytest.mark.parametrize(
    "changed", [{"nesterov": False}, {"mixup": 0.2}, {"clip_grad_norm": 0.0}, {"clip_grad_norm": 0.01}]
)
def test_options_of_the_step_change_the_weights_and_keep_them_reproducible(changed):
    config = TrainConfig(batch_size=8, precision="float32", **changed)
    first = weights(train(tiny_net(), config=config, epochs=3, rate=0.5))
    assert torch.equal(first, weights(train(tiny_net(), config=config, epochs=3, rate=0.5)))
    default = weights(train(tiny_net(), epochs=3, rate=0.5))
    clipped = not torch.equal(first, default)
    assert clipped or changed == {"clip_grad_norm": 0.0}  # gradients may never have come near the default limit


def test_without_a_limit_gradients_stay_as_they_are():
    norms: list[float] = []

    def hook(trained: nn.Module, step: int) -> None:
        norms.append(float(torch.stack([each.grad.norm() for each in trained.parameters()]).norm()))

    def blown_up() -> nn.Module:
        net = tiny_net()
        with torch.no_grad():
            net[6].weight.mul_(1000)
        return net

    for limit in (5.0, 0.0):
        config = TrainConfig(batch_size=8, precision="float32", clip_grad_norm=limit)
        train(blown_up(), config=config, rate=1e-9, hook=hook)
    assert max(norms[:6]) <= 5.001
    assert max(norms[6:]) > 5.001


def test_mixing_trains_on_pairs_and_on_both_their_classes():
    """A net that tells what it saw: means of the colours, mixed between an image and its partner."""
    seen: list[torch.Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach())
            return self.scale * images.mean((2, 3))[:, :2]

    config = TrainConfig(batch_size=48, precision="float32", mixup=0.2, label_smoothing=0.0)
    train(Watching(), config=config, rate=1e-9)
    train(Watching(), config=TrainConfig(batch_size=48, precision="float32"), rate=1e-9)
    mixed, plain = seen
    share = ((mixed - plain.flip(0)).flatten() @ (plain - plain.flip(0)).flatten()) / (
        (plain - plain.flip(0)).square().sum()
    )
    assert 0 <= float(share) <= 1
    torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"lr_scheduler": "step"},
        {"warmup_epochs": -1.0},
        {"lr_gamma": 0.0},
        {"mixup": -0.2},
        {"clip_grad_norm": math.inf},
        {"precision": "int8"},
        {"distill_weight": 1.5},
        {"label_smoothing": 1.0},
        {"momentum": 1.0},
        {"weight_decay": math.nan},
        {"bias_lr_mult": 0.0},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value!r} and must be "):
        TrainConfig(**wrong)


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(TrainingError, match="learning_rate is 0"):
        train(tiny_net(), rate=0)


def test_accuracy_counts_and_restores_every_modules_mode():
    net = tiny_net().train()
    net[1].eval()
    with torch.no_grad():
        net[6].weight.zero_()
        net[6].bias.copy_(torch.tensor([1.0, 0.0]))
    assert accuracy(net, two_colours(), device=CPU, batch_size=7) == 0.5
    assert accuracy(net, two_colours(), device=CPU, limit=3) == 2 / 3
    assert [module.training for module in net] == [True, False, True, True, True, True, True]


def test_reestimated_statistics_are_those_of_the_images_and_nothing_else_changes():
    net = tiny_net().eval()
    before = copy.deepcopy(net.state_dict())
    net[1].running_mean.fill_(100.0)
    reestimate_batchnorm(net, two_colours(), device=CPU)
    images, _ = next(two_colours().batches(48, device=CPU))
    with torch.no_grad():
        expected = net[0](images).mean((0, 2, 3))
    assert torch.allclose(net[1].running_mean, expected, atol=1e-5)  # one batch: its own mean, in float32
    assert net[1].momentum == 0.1
    assert not any(module.training for module in net.modules())
    untouched = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in untouched)


def test_reestimation_without_batchnorm_reads_no_image():
    reestimate_batchnorm(nn.Linear(2, 2), None, device=CPU)  # type: ignore[arg-type]


def test_devices_are_picked_by_name_and_unknown_ones_refused():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cuda:99", ""):
        with pytest.raises(TrainingError, match=f"device '{name}' is not available here"):
            pick_device(name)


def test_measuring_leaves_the_net_alone_and_answers_for_narrower_nets_from_memory(monkeypatch):
    net = tiny_net()
    before = weights(net)
    compute_format = measure_compute_format(net, (3, 6, 6), 8, CPU)
    assert compute_format.autocast in (None, torch.bfloat16)
    assert torch.equal(before, weights(net))
    assert net[0].weight.is_contiguous()
    monkeypatch.setattr("runners.training.compute_format._fastest", lambda *_: pytest.fail("measured again"))
    assert measure_compute_format(copy.deepcopy(net), (3, 6, 6), 8, CPU) is compute_format


def test_measuring_takes_the_fastest_and_the_earlier_of_two_that_are_close(monkeypatch):
    seconds = {
        PLAIN: 1.0,
        ComputeFormat(torch.bfloat16, True): 0.95,
        ComputeFormat(torch.bfloat16, False): 0.52,
        ComputeFormat(None, True): 0.5,
    }
    monkeypatch.setattr(
        "runners.training.compute_format.step_seconds", lambda net, images, compute_format: seconds[compute_format]
    )
    assert measure_compute_format(tiny_net(), (3, 7, 7), 8, CPU) == ComputeFormat(torch.bfloat16, False)
