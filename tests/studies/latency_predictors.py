"""Which predictor of latency is closest, and what does it cost? Prints the table of docs/measured.md.

    python tests/studies/latency_predictors.py [--devices cpu,onnxruntime,step4,step8,step32] [--models resnet20]

Every predictor is tried on 20 networks of random widths that none of them has seen, beside the dense network. The
widths are those that a search on the device may take:

- additive table: the sum of the times of the layers, as HALP and ProxylessNAS add them up, scaled to the dense network
- linear in FLOPs: a line through the readings that ours learns from
- ours: the table, or rates, with a correction and steps learned from whole networks
- a second reading: the networks measured again, for how far readings themselves are apart

`stepN` is tests/stepped_device.py, a made-up device with steps of N channels, asked by --latency-command. For it the
study also counts the widths of proposals, half-way between the smallest and the dense latency, that lie on the cheap
side of a step.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
UNSEEN = 20


def config_of(device):
    """Return the settings of the latency of a device of this study."""
    from runners.config import LatencyConfig

    if device.startswith("step"):
        command = f"{sys.executable} -S {ROOT / 'tests' / 'stepped_device.py'} {{model}} {device.removeprefix('step')}"
        return LatencyConfig("auto", (1,), command=command, format="safetensors")
    return LatencyConfig("cpu:1thread", (1,), engine="eager" if device == "cpu" else device)


def rows(name, device):
    """Yield a row per predictor on one network and device."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    from configs.schema import RunConfig
    from runners.latency.devices import make_meter
    from runners.latency.prediction.model_building import at_widths, build_model, random_widths
    from search.environment import alignment_of
    from spaces.space import ModelSpec
    from spaces.tracing.tracer import trace
    from spaces.zoo.models import build, default_input_shape

    model_name, _, side = name.partition(":")
    shape = (3, int(side), int(side)) if side else default_input_shape(model_name)
    spec = ModelSpec(model_name, 10, shape)
    net = build(spec).eval()
    searched = RunConfig(budget=("50%latency",), latency=config_of(device))
    space = trace(net, torch.zeros(1, *shape), spec=spec, alignment=alignment_of(searched))
    meter = make_meter(config_of(device), net, shape)
    dense = meter.read_at("dense", net, 1).seconds or meter.brief_seconds(net)
    model, building = build_model(meter, space, dense)
    generator = np.random.default_rng(1)
    unseen = [random_widths(space, generator) for _ in range(UNSEEN)]
    networks, read = [at_widths(net, space, widths) for widths in unseen], []
    for _ in range(2):
        with meter.ratios() as ratio_of:  # short readings, whose own noise counts as error
            read.append(np.array([dense * ratio_of(network) for network in networks]))
    measured, again = read
    timer, table = timed_table(meter, space, net, shape)
    unit = dense / table.predict(space.full)
    learned = [(space.cost(dict(zip(space.full, widths, strict=True))).flops, s) for widths, s in model.learned]
    # Weighted so that relative errors are least, as ours.
    flops, seconds = np.array(learned, dtype=np.float64).T
    line = np.polyfit(flops, seconds, 1, w=1 / seconds)
    predictions = {
        "additive table": [unit * table.predict(widths) for widths in unseen],
        "linear in FLOPs": [max(1e-9, float(np.polyval(line, space.cost(widths).flops))) for widths in unseen],
        "ours": [model.predict(widths) for widths in unseen],
        "a second reading": again,
    }
    timings = f" + {building.timings + building.reused} layers" if building.timings + building.reused else ""
    spent = {"additive table": f"1 + {timer.timings + timer.reused} layers", "linear in FLOPs": f"{len(learned)}"}
    spent |= {"ours": f"{len(learned)}{timings}", "a second reading": ""}
    for predictor, predicted in predictions.items():
        errors = np.abs(np.array(predicted) / measured - 1)
        rank = float(spearmanr(predicted, measured)[0])
        yield (
            name,
            device,
            predictor,
            f"{np.median(errors):.1%}",
            f"{np.quantile(errors, 0.9):.1%}",
            f"{rank:.3f}",
            spent[predictor],
        )
    if device.startswith("step"):
        step = int(device.removeprefix("step"))
        cheap, groups = proposals(space, model, dense, step)
        yield (
            name,
            device,
            f"step found: {model.layers.step}",
            f"{cheap} of {groups} widths at the end of a step of {step}",
            "",
            "",
            "",
        )


def timed_table(meter, space, net, shape):
    """Return the timer of layers, and a model that adds them up; for devices elsewhere they are timed here."""
    from runners.latency.devices import make_meter
    from runners.latency.prediction.kernels import list_operations
    from runners.latency.prediction.model import LatencyModel
    from runners.latency.prediction.model_building import time_layers, untimed_layers

    local = meter.for_layers() or make_meter(config_of("cpu"), net, shape)
    listed = list_operations(net, space, 1)
    timer, layers, _ = time_layers(local, space, untimed_layers(*listed, space), listed)
    timer.table.save()
    return timer, LatencyModel(layers, tuple(space.full.values()))


def proposals(space, model, dense, step):
    """Return how many widths of 10 proposals end a step of the device, and how many there are."""
    import numpy as np

    from configs.schema import RunConfig
    from search.latency.predictor import LatencyPredictor
    from search.problem import Problem
    from spaces.budget import Budget

    limit = (dense + model.predict(space.smallest)) / 2
    problem = Problem(RunConfig(budget=("1ms",)), space, (Budget("latency", limit),))
    predictor, generator = LatencyPredictor(model, problem), np.random.default_rng(2)
    cheap, groups = 0, 0
    for _ in range(10):
        widths = predictor.fit(generator.uniform(0.2, 1.0, len(space.variable)).tolist(), predictor.analytic)
        for group in space.variable:
            groups += 1
            cheap += widths[group.name] % step == 0 or widths[group.name] == group.ceiling
    return cheap, groups


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="cpu,onnxruntime,step4,step8,step32")
    parser.add_argument("--models", default="resnet20,mobilenet_v2:64")
    flags = parser.parse_args()
    print("| network | device | predictor | median error | 90% quantile | rank correlation | readings |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SLIMFRONT_CACHE"] = cache  # so that nothing of an earlier run is used
        for device in flags.devices.split(","):
            for name in flags.models.split(","):
                for row in rows(name, device):
                    print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
