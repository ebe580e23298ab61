"""The training loop, accuracy and BatchNorm re-estimation."""

import copy
import dataclasses
import math

import pytest
import torch
from tiny_training import CONFIG, CPU, tiny_net, train, two_colours, weights
from torch import nn

from pruning.base import Action
from runners.config import TrainConfig
from runners.data.augmentation import Augmentation
from runners.training.compute_format import PLAIN, ComputeFormat
from runners.training.devices import pick_device
from runners.training.loop import Training, divergence, fit
from runners.training.run import TrainingError, TrainingRun
from runners.training.schedule import plan_training
from runners.training.scoring import accuracy, evaluating, reestimate_batchnorm


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


def test_training_goes_on_with_the_net_and_momentum_it_is_handed():
    """A copy that takes over in the middle ends where the first net would."""

    def hand_over(net: nn.Module, momentum):
        copies.append(copy.deepcopy(net))
        return copies[-1], {name: buffer.clone() for name, buffer in momentum.items()}

    copies: list[nn.Module] = []
    first = train(tiny_net(), epochs=3)
    left = train(tiny_net(), epochs=3, action=Action(reshape=hand_over))
    assert torch.equal(weights(copies[1]), weights(first))
    assert not torch.equal(weights(left), weights(first))
    kept = train(tiny_net(), epochs=3, action=Action(reshape=lambda net, momentum: None))
    assert torch.equal(weights(kept), weights(first))


@pytest.mark.parametrize(
    "options", [{}, {"model_ema_decay": 0.9}, {"mixup": 0.2}, {"accumulate": 2, "optimizer": "adamw"}]
)
@pytest.mark.parametrize("compute_format", [PLAIN, ComputeFormat(torch.bfloat16, True)])
def test_a_training_goes_on_from_any_of_its_steps_with_bit_equal_weights(options, compute_format):
    config = dataclasses.replace(CONFIG, **options)
    split = two_colours().with_augmentation(Augmentation(flip=True, shift=1, mixing=("mixup", "cutmix"), classes=2))

    def training(net: nn.Module) -> Training:
        run = TrainingRun(2.5, 0.1, seed=0, device=CPU, compute_format=compute_format)
        return Training(net, split, config, run)

    whole, states = tiny_net(), []
    first = training(whole)
    list(first.run(lambda: states.append(first.state())))
    assert len(states) == 5 * (len(split) // config.batch_size) // 2
    for state in states:
        later = tiny_net()
        second = training(later)
        second.restore(state)
        list(second.run())
        assert torch.equal(weights(later), weights(whole))


def test_the_hook_sees_final_gradients_before_each_step():
    net, seen = tiny_net(), []

    def hook(trained: nn.Module, step: int) -> None:
        norm = torch.stack([parameter.grad.norm() for parameter in trained.parameters()]).norm()
        seen.append((step, math.isfinite(norm)))
        for parameter in trained.parameters():
            parameter.grad.zero_()

    before = [parameter.clone() for parameter in net.parameters()]
    train(net, config=TrainConfig(batch_size=8, precision="float32", weight_decay=0.0), epochs=2, action=Action(hook))
    assert seen == [(step, True) for step in range(12)]
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_an_incomplete_last_batch_is_left_out_and_a_small_set_is_one_batch():
    steps = []

    def hook(net: nn.Module, step: int) -> None:
        steps.append(step)

    train(tiny_net(), config=TrainConfig(batch_size=32, precision="float32"), action=Action(hook))
    train(tiny_net(), config=TrainConfig(batch_size=100, precision="float32"), action=Action(hook))
    assert steps == [0, 0]


def test_biases_and_batchnorm_are_not_decayed():
    net = tiny_net()

    def stop(trained: nn.Module, step: int) -> None:
        for parameter in trained.parameters():
            parameter.grad.zero_()

    before = copy.deepcopy(net)
    train(net, config=TrainConfig(batch_size=8, precision="float32", weight_decay=0.1), action=Action(stop))
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
        net = train(tiny_net(), config=config, action=Action(ones))
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
            epochs, 0.1, seed=0, device=CPU, compute_format=PLAIN, action=Action(lambda net, step: seen.append(step))
        )
        yielded = list(fit(tiny_net(), two_colours(), CONFIG, training_run))
        return [len(yielded), len(seen)]

    per_epoch = steps(1)[1]
    assert steps(0.5) == [1, per_epoch // 2]
    assert steps(1.5) == [2, per_epoch + per_epoch // 2]
    assert steps(0.01) == [1, 1]
    assert steps(0) == [0, 0]


def test_a_loss_that_is_not_finite_names_epoch_step_and_rate():
    net = tiny_net()

    def spoil(trained: nn.Module, step: int) -> None:
        if step == 7:
            trained[6].weight.grad.fill_(math.nan)

    with pytest.raises(TrainingError, match=r"epoch 2, step 8 \(learning rate 0\.\d+\); lower the learning rate"):
        train(net, epochs=2, action=Action(spoil))


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
        norms.append(float(torch.stack([parameter.grad.norm() for parameter in trained.parameters()]).norm()))

    def blown_up() -> nn.Module:
        net = tiny_net()
        with torch.no_grad():
            net[6].weight.mul_(1000)
        return net

    for limit in (5.0, 0.0):
        config = TrainConfig(batch_size=8, precision="float32", clip_grad_norm=limit)
        train(blown_up(), config=config, rate=1e-9, action=Action(hook))
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


def test_every_image_counts_alike_in_reestimated_statistics_whatever_the_batches():
    split = two_colours(131)  # batches of 128 and 3
    net = nn.Sequential(nn.BatchNorm2d(3)).eval()
    reestimate_batchnorm(net, split, device=CPU)
    images, _ = next(split.batches(131, device=CPU))
    assert torch.allclose(net[0].running_mean, images.mean((0, 2, 3)), atol=1e-5)


def test_a_batch_of_one_image_counts_too_also_where_a_map_is_one_position():
    split = two_colours(129)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    reestimate_batchnorm(net, split, device=CPU)
    images, _ = next(split.batches(129, device=CPU))
    assert torch.allclose(net[1].running_mean, images.mean((0, 2, 3)), atol=1e-5)
    reestimate_batchnorm(net, split, device=CPU, images=1)
    assert torch.allclose(net[1].running_mean, images[0].mean((1, 2)), atol=1e-5)


def test_momentum_is_restored_when_reestimation_fails():
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(4, 4, 1))
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(net, two_colours(), device=CPU)
    assert net[0].momentum == 0.3


def test_reestimation_without_batchnorm_reads_no_image():
    reestimate_batchnorm(nn.Linear(2, 2), None, device=CPU)  # type: ignore[arg-type]


def test_devices_are_picked_by_name_and_unknown_ones_refused():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cuda:99", ""):
        with pytest.raises(TrainingError, match=f"device '{name}' is not available here"):
            pick_device(name)
