"""Scores and BatchNorm statistics of a network that is lent: it stays where it is, and batches are made to fit.

No second device is at hand in these tests: the meta device, on which tensors have no values, stands for one.
"""

import pytest
import torch
from tiny_training import CPU, tiny_net, two_colours
from torch import nn

from runners.config import TrainConfig
from runners.data.splits import TensorSplit
from runners.evaluation.proxy import last_features, proxy_target
from runners.training.compute_format import ComputeFormat
from runners.training.scoring import accuracy, exact_score, reestimate_batchnorm, score

ELSEWHERE = torch.device("meta")


@pytest.mark.parametrize(
    "use",
    [
        lambda net: accuracy(net, two_colours(), device=ELSEWHERE),
        lambda net: reestimate_batchnorm(net, two_colours(), device=ELSEWHERE),
        lambda net: proxy_target(net, two_colours(), device=ELSEWHERE),
        lambda net: last_features(net, two_colours(), device=ELSEWHERE),
    ],
    ids=["accuracy", "reestimate_batchnorm", "proxy_target", "last_features"],
)
def test_a_lent_network_never_moves(use):
    net = tiny_net().train()
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        use(net)  # values of the meta device cannot be read
    assert {tensor.device for tensor in net.state_dict().values()} == {CPU}
    assert net.training


def test_a_score_is_read_in_the_precision_of_the_training_and_that_of_test_images_in_float32():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, images):
            outputs = self.linear(images.mean((2, 3)))
            seen.append(outputs.dtype)
            return outputs

    config = TrainConfig(device="cpu", precision="bfloat16")
    score(Spy(), two_colours(), config)
    score(Spy(), two_colours(), config, compute_format=ComputeFormat())
    exact_score(Spy(), two_colours(), config)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


def test_batchnorm_statistics_are_those_of_the_maps_in_the_precision_that_was_asked_for():
    """The expected mean is that of the maps of a layer, computed here, which bfloat16 rounds by up to 0.4%."""
    net = tiny_net()
    images = torch.cat([batch for batch, _ in two_colours().batches(48, device=CPU)])
    for compute_format in (ComputeFormat(), ComputeFormat(torch.bfloat16)):
        reestimate_batchnorm(net, two_colours(), device=CPU, compute_format=compute_format)
        with torch.no_grad(), compute_format.autocasting(CPU):
            expected = net[0](images).float().mean((0, 2, 3))
        torch.testing.assert_close(net[1].running_mean, expected, rtol=1e-5, atol=1e-6)
        assert net[1].running_mean.dtype == torch.float32


def test_images_that_do_not_fit_into_memory_at_once_are_read_in_smaller_batches():
    sizes = []

    class Greedy(nn.Module):
        def forward(self, images):
            sizes.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("2 images at most")
            return images.mean((2, 3))[:, :2]

    split = two_colours()
    small = accuracy(Greedy(), split, device=CPU, batch_size=2)
    sizes.clear()
    assert accuracy(Greedy(), split, device=CPU, batch_size=8) == small
    assert max(sizes) == min(8, len(split))
    assert sizes[-1] <= 2


def test_top5_counts_classes_among_the_five_likeliest_and_needs_more_than_five():
    class Table(nn.Module):
        """Gives logits that fall from class 0 to the last one, whatever the image."""

        def __init__(self, classes):
            super().__init__()
            self.falling = nn.Parameter(-torch.arange(float(classes)))

        def forward(self, images):
            return self.falling.expand(len(images), -1)

    def black(labels):
        return TensorSplit(torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), labels, (0.3,) * 3, (0.3,) * 3, (2, 2))

    split = black(torch.tensor([0, 0, 1, 4, 5, 6, 6, 3]))
    config = TrainConfig(device="cpu")
    read = exact_score(Table(7), split, config)
    assert (read.score, read.top5) == (2 / 8, 5 / 8)
    few = black(torch.arange(8) % 5)
    assert exact_score(Table(5), few, config).top5 is None
