"""The time to score all channels with DI, against plain forward passes over the same images in the same run."""

import time

import torch

from pruning.methods.di.method import DiscriminantInformation
from spaces.space import ModelSpec
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

IMAGES, BATCH, ROUNDS = 512, 128, 3
ALLOWED = 1.5


class _Calibration:
    """Random images: the cost does not depend on what they show."""

    seed, epochs, prepared, device, classifies = 0, 0, None, torch.device("cpu"), True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
        self._labels = torch.arange(IMAGES) % 10

    def calibration_batches(self, images: int):
        yield from zip(self._images[:images].split(BATCH), self._labels[:images].split(BATCH), strict=True)


def test_di_scores_all_groups_in_little_more_than_a_forward_pass(benchmark) -> None:
    net = build(ModelSpec("cifar_resnet18", 10, (3, 32, 32))).eval()
    space = trace(net, torch.zeros(1, 3, 32, 32))
    context, method, seconds = _Calibration(), DiscriminantInformation(images=IMAGES), []

    def forward() -> None:
        with torch.no_grad():
            for images, _ in context.calibration_batches(IMAGES):
                net(images)

    def once() -> None:
        start = time.perf_counter()
        forward()
        between = time.perf_counter()
        method.prepare(net, space, context)
        seconds.append((between - start, time.perf_counter() - between))

    forward()
    benchmark.pedantic(once, rounds=ROUNDS)
    plain, scoring = (min(series) for series in zip(*seconds, strict=True))  # the least disturbed reading
    ratio = scoring / plain
    benchmark.extra_info |= {"forward_seconds": plain, "scoring_seconds": scoring, "ratio": ratio}
    print(f"\nDI scoring of {IMAGES} images: {scoring:.2f} s, plain forward {plain:.2f} s, ratio {ratio:.2f}")
    assert ratio <= ALLOWED
