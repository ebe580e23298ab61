"""How many CNNs of timm can be narrowed, and how much of each: python tests/studies/timm_models.py.

Every network is traced in a process of its own, on one thread, within `--cpu-seconds`. What the trace claims is then
held against a random narrow network: fvcore's count, the outputs of the dense network with the removed channels at zero
(where a layer normalises over channels: those of the network whose channels are equal in pairs, one of each pair left),
and a reload from the checkpoint. An outcome is one of

- all: every group may vary (but the outputs, and groups of one channel),
- most, some: more than half of the groups, or fewer,
- refused: by a message that names why,
- hang: the time was up,
- wrong: a claim does not hold, or an error that is none of ours.

torch-pruning stands beside: whether it halves the channels of every layer but the last one, by its own graph and within
the same time, and the network then runs, trains and gives as many classes.

The same command continues a study that was stopped; `--minutes` ends it after a time. It needs `slimfront[timm]`.
"""

import copy
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import Rows, print_table, rows_of, study_parser
from masked_nets import masked, normalises_over_channels, pairs, random_selection, with_equal_pairs

from pruning import checkpoint
from pruning.rewriting.surgery import merge_channels, slice_channels
from spaces.counting import count_cost
from spaces.errors import SlimfrontError
from spaces.space import ModelSpec, SearchSpace
from spaces.tracing.tracer import trace
from spaces.zoo.models import build

CLASSES, TOLERANCE = 10, 1e-2
OUTCOMES = ("all", "most", "some", "refused", "hang", "wrong")
WITHOUT_CHOICE = ("network output", "a single channel")  # reasons of groups that no network could vary
SIDES = {  # networks that need larger images than 64x64
    **{"inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96, "nasnetalarge": 96, "pnasnet5large": 96},
    **{"levit_128s": 224, "visformer_tiny": 224, "botnet26t_256": 256, "halonet26t": 256, "lambda_resnet26t": 128},
}
NAMES = """
    resnet18 vgg11_bn mnasnet_100 mobilenetv2_100 mobilenetv3_small_100 lcnet_050 tinynet_e ghostnet_100 repvgg_a0
    resnetv2_50 regnetx_002 regnety_002 efficientnet_b0 efficientnet_es selecsls42b hardcorenas_a fbnetc_100
    mixnet_s rexnet_100 densenet121 dla34 hrnet_w18_small res2net50_14w_8s resnest14d skresnet18 convnext_atto
    poolformer_s12 edgenext_xx_small cspresnet50 cspdarknet53 cs3darknet_s dpn48b inception_v3 xception41 nfnet_l0
    nf_resnet50 levit_128s resnet10t resnet26d resnet50 resnetaa50 resnetblur50 seresnet50 ecaresnet26t
    resnext50_32x4d legacy_seresnet18 gcresnet33ts regnetz_b16 regnetv_040 tf_efficientnet_lite0 efficientnetv2_rw_t
    mobilenetv4_conv_small mobileone_s0 vgg11 dla46x_c res2next50 resnest26d ghostnetv2_100 repghostnet_050
    convnextv2_atto inception_next_atto darknet53 cspresnext50 dpn68 inception_v4 inception_resnet_v2
    legacy_xception semnasnet_075 spnasnet_100 fbnetv3_b nf_regnet_b0 dm_nfnet_f0 hgnetv2_b0 vovnet39a gernet_s
    fastvit_t8 repvit_m0_9 starnet_s1 lambda_resnet26t nasnetalarge pnasnet5large
""".split()


@dataclass(frozen=True)
class Network:
    name: str
    library: str = "slimfront"


def flaw_of(net: torch.nn.Module, space: SearchSpace, spec: ModelSpec) -> str:
    """Return the first claim that does not hold for a random narrow network; empty where all do."""
    selection = random_selection(space, random.Random(0))
    widths = {name: len(kept) for name, kept in selection.items()}
    narrow = slice_channels(net, space, selection).eval()
    image = torch.randn(1, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    if count_cost(narrow, spec.input_shape) != space.cost(widths):
        return "its cost is not that of the model"
    with torch.no_grad():
        out = narrow(image)
        back = checkpoint.from_bytes(checkpoint.to_bytes(narrow, spec, widths)).eval()
        if not torch.equal(back(image), out):
            return "it is another after a reload"
    if not normalises_over_channels(net):
        return "" if _near(out, masked(net, space, selection, image)) else "its outputs are not the masked ones"
    clusters = pairs(net, space)
    equal = with_equal_pairs(copy.deepcopy(net), space, clusters)
    with torch.no_grad():
        merged, whole = merge_channels(equal, space, clusters)(image), equal(image)
    return "" if _near(merged, whole) else "merging channels that are equal in pairs changes the outputs"


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())


def outcome_of(name: str, cpu_seconds: int) -> dict[str, Any]:
    """Trace a network and check the trace; the time limit of the process begins once the network is built."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    spec = ModelSpec(f"timm/{name}", CLASSES, (3, side, side))
    net = build(spec).eval()
    used = int(time.process_time())
    _limit(used + cpu_seconds)
    try:
        space = trace(net, torch.empty(1, *spec.input_shape), spec=spec)
    except SlimfrontError as error:
        return {"outcome": "refused", "seconds": time.process_time() - used, "why": str(error)}
    seconds = time.process_time() - used
    _limit(used + 5 * cpu_seconds)
    groups = [group for group in space.groups if group.fixed not in WITHOUT_CHOICE]
    fixed = [group for group in groups if group.fixed]
    free = len(space.variable)
    outcome = "all" if not fixed else "most" if 2 * free > len(groups) else "some"
    flaw = flaw_of(net, space, spec)
    reasons = Counter(group.fixed for group in fixed)
    return {
        "outcome": "wrong" if flaw else outcome,
        "free": free,
        "groups": len(groups),
        "seconds": seconds,
        "why": flaw or "; ".join(reason for reason, _ in reasons.most_common(1)),
    }


def torch_pruning_outcome(name: str, cpu_seconds: int) -> dict[str, Any]:
    """Halve a network with torch-pruning; the outcome is "ok", or "failed" and why."""
    import torch_pruning

    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    net = build(ModelSpec(f"timm/{name}", CLASSES, (3, side, side))).eval()
    image = torch.randn(2, 3, side, side)
    params = sum(parameter.numel() for parameter in net.parameters())
    _limit(int(time.process_time()) + cpu_seconds)
    last = [module for module in net.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][-1]
    try:
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(net, image, importance, pruning_ratio=0.5, ignored_layers=[last]).step()
        out = net(image)
        net.train()(image).sum().backward()
    except Exception as error:  # whatever the library or the network raises is its outcome
        return {"outcome": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}
    left = sum(parameter.numel() for parameter in net.parameters()) / params
    ok = out.shape == (2, CLASSES) and left < 1
    return {"outcome": "ok" if ok else "failed", "why": f"{left:.0%} of the parameters are left"}


def _limit(cpu_seconds: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, most))


def measured(network: Network, cpu_seconds: int) -> Mapping[str, Any]:
    """Run `outcome_of` in a process of its own."""
    command = [sys.executable, __file__, "--only", network.name, "--cpu-seconds", str(cpu_seconds)]
    command += ["--library", network.library]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode < 0:
        return {"outcome": "hang", "seconds": cpu_seconds, "why": f"killed by signal {-ran.returncode}"}
    if ran.returncode:
        return {"outcome": "wrong", "why": (ran.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    values: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return values


def print_report(rows: Rows) -> None:
    found = {name: rows.of(Network(name)) for name in NAMES}
    done = {name: values for name, values in found.items() if values is not None}
    counts = Counter(values["outcome"] for values in done.values())
    lines: list[Sequence[str]] = [
        [outcome, str(counts[outcome]), ", ".join(name for name in done if done[name]["outcome"] == outcome)]
        for outcome in OUTCOMES
    ]
    lines.append(["not run", str(len(NAMES) - len(done)), ", ".join(name for name in NAMES if name not in done)])
    print_table(f"{len(NAMES)} networks of timm", ["outcome", "networks", "names"], lines)
    less = [
        [
            name,
            values["outcome"],
            f"{values.get('free', 0)} of {values.get('groups', '?')}",
            values["why"].replace("|", "/"),
        ]
        for name, values in done.items()
        if values["outcome"] != "all"
    ]
    print_table("Not all free", ["network", "outcome", "groups free", "commonest reason"], less)
    print_peer(rows, done)
    slowest = sorted(done, key=lambda name: -done[name].get("seconds", 0.0))[:3]
    print("\nslowest: " + ", ".join(f"{name} {done[name].get('seconds', 0.0):.0f} s of CPU" for name in slowest))


def print_peer(rows: Rows, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what torch-pruning did to the same networks."""
    peer = {name: values for name in done if (values := rows.of(Network(name, "torch-pruning"))) is not None}
    failed = [name for name, values in peer.items() if values["outcome"] != "ok"]
    ours = sum(done[name]["outcome"] in ("all", "most") for name in peer)
    lines = [["slimfront, more than half of the groups free", f"{ours} of {len(peer)}", ""]]
    lines += [["torch-pruning, half width", f"{len(peer) - len(failed)} of {len(peer)}", ", ".join(failed)]]
    print_table("torch-pruning beside it", ["library", "networks", "failed"], lines)
    for name in failed:
        print(f"torch-pruning, {name}: {peer[name]['why']}")


def main() -> None:
    parser = study_parser("timm_models", __doc__, seeds=1)
    parser.add_argument("--only", metavar="NAME", help="print the outcome of one network as JSON")
    parser.add_argument("--library", choices=("slimfront", "torch-pruning"), default="slimfront", help="for --only")
    parser.add_argument("--cpu-seconds", type=int, default=60, help="of a trace")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after this time")
    flags = parser.parse_args()
    if flags.only:
        outcome = torch_pruning_outcome if flags.library == "torch-pruning" else outcome_of
        print(json.dumps(outcome(flags.only, flags.cpu_seconds)))
        return
    rows = rows_of(flags, cpu_seconds=flags.cpu_seconds, classes=CLASSES)
    began = time.monotonic()
    for network in [Network(name, library) for library in ("slimfront", "torch-pruning") for name in NAMES]:
        if rows.of(network) is None and time.monotonic() - began < 60 * flags.minutes:
            values = rows.measured(network, lambda network=network: measured(network, flags.cpu_seconds))
            print(f"{network.library}, {network.name}: {values['outcome']} {values['why'][:150]}", flush=True)
    print_report(rows)


if __name__ == "__main__":
    main()
