"""The optimizers, and batches that pass through a network in parts."""

import dataclasses

import pytest
import torch
from tiny_training import CONFIG, CPU, train, two_colours, weights
from torch import nn

from runners.config import TrainConfig
from runners.evaluation.context import TrialContext
from runners.training.loop import fit
from runners.training.run import TrainingRun
from spaces.errors import ConfigError


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def test_a_batch_in_parts_gives_the_gradients_of_the_whole():
    whole, parts = (
        weights(train(plain_net(), config=dataclasses.replace(CONFIG, accumulate=count), epochs=1)) for count in (1, 4)
    )
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole, weights(plain_net()), atol=1e-2)


def test_adamw_decays_the_weights_of_layers_alone():
    """With a loss that does not depend on the network, a step multiplies matrices by 1 - rate * decay."""

    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 2), nn.LayerNorm(3)

        def forward(self, images):
            return 0.0 * self.linear(self.norm(images.mean((2, 3))))

    net, rate, decay = Deaf(), 0.01, 0.5
    before = {name: tensor.clone() for name, tensor in net.named_parameters()}
    config = TrainConfig(batch_size=48, optimizer="adamw", weight_decay=decay, lr_scheduler="constant", device="cpu")
    list(fit(net, two_colours(), config, TrainingRun(1, rate, seed=0, device=CPU)))
    for name, tensor in net.named_parameters():
        factor = 1 - rate * decay if name == "linear.weight" else 1.0
        assert torch.allclose(tensor, factor * before[name], rtol=1e-6), name


@pytest.mark.parametrize(("batch_size", "accumulate"), [(32, 3), (4, 4)])
def test_a_batch_is_split_into_equal_parts_of_at_least_two_images(batch_size, accumulate):
    with pytest.raises(ConfigError, match=f"--accumulate is {accumulate} and --batch-size {batch_size}"):
        TrainConfig(batch_size=batch_size, accumulate=accumulate)


def test_learning_rates_that_are_meant_for_another_batch_are_scaled_once(tiny_search_context):
    config = TrainConfig(batch_size=64, lr=0.1, dense_lr=0.4, lr_batch_size=256, device="cpu", precision="float32")
    context = TrialContext(tiny_search_context.data, config, seed=0)
    assert (context.learning_rate, context.dense_learning_rate) == (0.025, 0.1)
    assert (
        context.plan(2).rates
        == TrialContext(tiny_search_context.data, dataclasses.replace(config, lr=0.025, lr_batch_size=0), seed=0)
        .plan(2)
        .rates
    )
    assert config.for_dense().lr == config.for_dense().scaled_to_batch().lr == 0.1
