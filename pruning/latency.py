"""How long a narrow net takes for one image beside the dense one, measured where it will run."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

REPETITIONS = 7  # of each net; the median of few is steady enough to tell faster from slower
WARM_UPS = 2


def latency_ratio(narrow: nn.Module, dense: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """Return how many times as long as `dense` a net takes for one image, in evaluation mode: a ratio of medians.

    The two take turns, so that what else the machine does meets both. The modes of all modules are restored.

    Args:
        input_shape: channels, height and width of the image.
        device: where both nets are.
    """
    nets = (narrow, dense)
    modes = [(module, module.training) for net in nets for module in net.modules()]
    image = torch.zeros(1, *input_shape, device=device)
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        with torch.no_grad():
            for turn in range(WARM_UPS + REPETITIONS):
                for net, taken in zip(nets, seconds, strict=True):
                    net.eval()
                    spent = _timed(net, image)
                    if turn >= WARM_UPS:
                        taken.append(spent)
    finally:
        for module, training in modes:
            module.training = training
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def _timed(net: nn.Module, image: torch.Tensor) -> float:
    # With one thread the thread's own time is what counts: it leaves out what other processes take meanwhile.
    alone = image.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    _wait(image.device)
    begin = clock()
    net(image)
    _wait(image.device)
    return clock() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
