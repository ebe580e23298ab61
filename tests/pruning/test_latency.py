import time

import torch
from torch import Tensor, nn

from pruning.latency import latency_ratio


class Busy(nn.Module):
    """Works for some milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.seconds = milliseconds / 1000
        self.shapes: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        self.modes.append(self.training)
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return x


def test_the_ratio_is_of_single_images_in_evaluation_mode():
    narrow, dense = Busy(2).train(), Busy(8).eval()
    ratio = latency_ratio(narrow, dense, (3, 4, 4), torch.device("cpu"))
    assert 0.1 < ratio < 0.6
    assert set(narrow.shapes) == {(1, 3, 4, 4)}
    assert not any(narrow.modes)
    assert narrow.training
    assert not dense.training
