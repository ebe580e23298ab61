"""Averaged weights: what the average is, who holds it when, and for whom it is off."""

import copy

import pytest
import torch
from tiny_training import CPU, tiny_net, train, two_colours, weights
from torch import nn

from pruning.base import Action
from runners.config import TrainConfig
from runners.training.averaging import WeightAverage
from runners.training.compute_format import PLAIN
from runners.training.loop import fit
from runners.training.run import TrainingRun

PLAIN_CONFIG = TrainConfig(batch_size=8, precision="float32")
AVERAGED = TrainConfig(batch_size=8, precision="float32", model_ema_decay=0.9)


def test_the_average_is_the_recursion_with_a_lower_decay_at_first() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = WeightAverage(net, decay=0.2)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(net.weight, value)
        average.update()
    average.exchange()
    second = 2 / 11 * 1.0 + 9 / 11 * 2.0  # the decay of step 1 is (1 + 1) / (10 + 1)
    assert net.weight.item() == pytest.approx(0.2 * second + 0.8 * 3.0)  # that of step 2 would be 3 / 12
    average.exchange()
    assert net.weight.item() == 3.0


def test_statistics_are_averaged_and_integers_are_those_of_the_network() -> None:
    net = nn.BatchNorm1d(1)
    net.register_buffer("indices", torch.tensor([7]))
    average = WeightAverage(net, decay=0.5)
    for step in range(20):
        net.running_mean.fill_(step % 2)
        average.update()
    average.exchange()
    assert 0.3 < net.running_mean.item() < 0.7
    assert int(net.indices) == 7


def test_epochs_end_with_averaged_weights_and_training_goes_on_from_the_others() -> None:
    """A hook sees the weights of a training without averaging, whose average the other training must end with."""
    net, expected = tiny_net(), tiny_net()
    average, seen = WeightAverage(expected, 0.9), []

    def take_in(trained: nn.Module, step: int) -> None:
        if step:
            average.update()  # the weights after the step before

    run = TrainingRun(3, 0.1, seed=3, device=CPU, compute_format=PLAIN)
    averaged = [copy.deepcopy(net.state_dict()) for _ in fit(net, two_colours(), AVERAGED, run)]
    hooked = TrainingRun(3, 0.1, seed=3, device=CPU, compute_format=PLAIN, action=Action(take_in))
    for epoch in fit(expected, two_colours(), PLAIN_CONFIG, hooked):
        seen.append(copy.deepcopy(expected.state_dict()))
        if epoch == 3:
            average.update()
    assert not torch.allclose(averaged[0]["6.weight"], seen[0]["6.weight"])
    average.exchange()
    for own, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_methods_that_act_on_the_weights_train_without_an_average() -> None:
    for action in (Action(lambda net, step: None), Action(reshape=lambda net, momentum: None)):
        plain = weights(train(tiny_net(), config=PLAIN_CONFIG, epochs=2, action=action))
        assert torch.equal(plain, weights(train(tiny_net(), config=AVERAGED, epochs=2, action=action)))
    assert not torch.equal(plain, weights(train(tiny_net(), config=AVERAGED, epochs=2)))


def test_the_dense_network_is_trained_without_an_average() -> None:
    assert AVERAGED.for_dense() == PLAIN_CONFIG.for_dense()
