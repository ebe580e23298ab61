import pytest
import torch
from torch import nn

from spaces.tracing.labels import ChannelLabels
from spaces.tracing.operations import CountedActivation, CountedWeight
from spaces.tracing.recording import Recorder, record_forward


def recorded(net: nn.Module) -> Recorder:
    net = net.to("meta").eval()
    return record_forward(Recorder(net, ChannelLabels()), net, torch.empty(1, 3, 8, 8, device="meta"))


def test_weights_are_listed_in_the_order_of_execution_with_their_positions():
    recorder = recorded(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    )
    assert recorder.producers == ["0.weight", "3.weight"]
    weights = [operation for operation in recorder.counted if isinstance(operation, CountedWeight)]
    assert [(operation.weight, operation.times) for operation in weights] == [("0.weight", 16), ("3.weight", 1)]
    (norm,) = [operation for operation in recorder.counted if isinstance(operation, CountedActivation)]
    assert norm.times == 2 * 16


def test_channels_that_are_added_are_the_same():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.left(x) + self.right(x)

    recorder = recorded(Sum())
    channels = recorder.labels.components()
    left, right = (channels[recorder.axes[f"{name}.weight"][0]].tolist() for name in ("left", "right"))
    assert left == right


def test_an_operation_that_cannot_be_followed_names_its_layer():
    class Square(nn.Module):
        def forward(self, x):
            return x @ x

    recorder = recorded(nn.Sequential(nn.Conv2d(3, 4, 1), Square()))
    assert set(recorder.lost) == {"matmul in 1 cannot be followed"}


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays_behind(fails):
    net = nn.Sequential(nn.Conv2d(5 if fails else 3, 4, 1))
    if fails:
        with pytest.raises(RuntimeError):
            recorded(net)
    else:
        recorded(net)
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks
