"""How far is the latency model off, on nets of random widths that it has not seen?

    python tests/studies/latency_model.py [--models resnet20,mobilenet_v2:64] [--latency-device cpu:1thread]

Builds the model of each net anew, and then measures 20 more random width vectors as a search would (each reading
repeated or refused like any other). It prints the median and the 90% quantile of the relative error, the time that
building took and that of a prediction, and what uniform scaling of the FLOPs would have predicted. It ends with 1 when
a median error is 10% or more, or the machine is too busy to judge by.
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
AIM = 0.10
HELD_OUT, FEWEST = 20, 15  # nets, and how many of them must be measured well


def judged(name: str, device: str) -> bool:
    """Build and judge the model of one net; print what comes out."""
    import numpy as np
    import torch

    from runners.config import LatencyConfig
    from runners.latency.meter import LatencyMeter
    from runners.latency.model_building import at_widths, build_model, random_widths
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
    began = time.perf_counter()
    for _ in range(200):
        model.predict(space.smallest)
    each = (time.perf_counter() - began) / 200
    print(
        f"{name}: dense {1e3 * dense.seconds:.3g} ms; model built in {building.seconds:.0f} s from {building.timings} "
        f"timings ({building.repeated} repeated, drift {building.drift:.1%}); a prediction takes {1e6 * each:.0f} us"
    )
    if errors:
        median, upper = statistics.median(errors), float(np.quantile(errors, 0.9))
        print(
            f"{name}: error on {len(errors)} unseen nets: median {median:.1%}, 90% quantile {upper:.1%}, "
            f"largest {max(errors):.1%}; by FLOPs alone: median {statistics.median(by_flops):.1%}"
        )
    if len(errors) < FEWEST:
        reasons = "\n  ".join(sorted(refused))
        print(f"{name}: {len(refused)} of {HELD_OUT} nets were refused; run it again on a quiet machine:\n  {reasons}")
        return False
    return median < AIM


def main() -> int:
    """Return 0 when every model meets the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,mobilenet_v2:64")
    parser.add_argument("--latency-device", default="cpu:1thread")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SLIMFRONT_CACHE"] = cache  # no model of an earlier run
        return 0 if all([judged(name, flags.device) for name in flags.models.split(",")]) else 1


if __name__ == "__main__":
    sys.exit(main())
