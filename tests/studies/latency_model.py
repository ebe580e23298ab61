"""How large is the error of the latency model on nets of random widths that it has not learned from?

    python tests/studies/latency_model.py [--models resnet20,mobilenet_v2:64] [--latency-device cpu:1thread]

Builds the model of each net anew and then measures 20 more nets of random widths as a search would, with repetitions
and refusals. It prints the median and the 90% quantile of the relative error, the seconds of building and of a
prediction, and the error of a prediction in proportion to the FLOPs. It ends with 1 when a median error is 10% or more,
or when the machine is too busy to judge.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
MAX_MEDIAN = 0.10
HELD_OUT, MIN_ACCEPTED = 20, 15  # nets, and how many of them must not be refused


def check(name: str, device: str) -> bool:
    """Build the model of one net and print its errors; return whether their median is small enough."""
    import numpy as np
    import torch

    from runners.config import LatencyConfig
    from runners.latency.meter import LatencyMeter
    from runners.latency.prediction.model_building import at_widths, build_model, random_widths
    from spaces.space import ModelSpec
    from spaces.tracing.tracer import trace
    from spaces.zoo.models import build, default_input_shape

    model_name, _, side = name.partition(":")
    shape = (3, int(side), int(side)) if side else default_input_shape(model_name)
    spec = ModelSpec(model_name, 10, shape)
    net = build(spec).eval()
    space = trace(net, torch.zeros(1, *shape), spec=spec)
    meter = LatencyMeter(LatencyConfig(device, (1,)), net, shape)
    (dense,) = meter.read("dense", net)
    if dense.seconds is None:
        print(f"{name}: the dense net is refused: {dense.refused}")
        return False
    model, building = build_model(meter, space, dense.seconds)
    generator = np.random.default_rng(1)
    errors, by_flops, refused = [], [], list[str]()
    for number in range(HELD_OUT):
        widths = random_widths(space, generator)
        (reading,) = meter.read(str(number), at_widths(net, space, widths))
        if reading.seconds is None:
            refused.append(reading.refused)
            continue
        share = space.cost(widths).flops / space.dense_cost.flops
        errors.append(abs(model.predict(widths) / reading.seconds - 1))
        by_flops.append(abs(share * dense.seconds / reading.seconds - 1))
    start = time.perf_counter()
    for _ in range(200):
        model.predict(space.smallest)
    prediction = (time.perf_counter() - start) / 200
    print(
        f"{name}: dense {1e3 * dense.seconds:.3g} ms; model built in {building.seconds:.0f} s from {building.timings} "
        f"timings ({building.repeated} repeated, drift {building.drift:.1%}); "
        f"a prediction takes {1e6 * prediction:.0f} us"
    )
    if errors:
        median, upper = statistics.median(errors), float(np.quantile(errors, 0.9))
        print(
            f"{name}: error on {len(errors)} unseen nets: median {median:.1%}, 90% quantile {upper:.1%}, "
            f"largest {max(errors):.1%}; by FLOPs alone: median {statistics.median(by_flops):.1%}"
        )
    if len(errors) < MIN_ACCEPTED:
        reasons = "\n  ".join(sorted(refused))
        print(f"{name}: {len(refused)} of {HELD_OUT} nets were refused; run it again on an idle machine:\n  {reasons}")
        return False
    return median < MAX_MEDIAN


def main() -> int:
    """Return 0 when the median error of every model is small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,mobilenet_v2:64")
    parser.add_argument("--latency-device", default="cpu:1thread")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SLIMFRONT_CACHE"] = cache  # so that no model of an earlier run is used
        return 0 if all([check(name, flags.latency_device) for name in flags.models.split(",")]) else 1


if __name__ == "__main__":
    sys.exit(main())
