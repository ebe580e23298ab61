"""The golden runs: simulated searches, real ones, pages of the command line and inputs that it refuses."""

from collections.abc import Callable
from typing import Any

SAMPLERS = ("structured", "tpe", "nsga2", "gp", "random")
PASSING = "--method l2,di,aofp"
ALONE = "--budget 30% --method l2 --trials 18 --screen none --rungs none"
MIXED = "--budget 40% --trials 20 --screen none --rungs none"
LATENCY = {"groups": 3}  # what the made-up latency is made for


_Add = Callable[..., None]


def simulated() -> dict[str, dict[str, Any]]:
    """Return name -> flags of each part of the search (the second goes on with the first), and what is simulated."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, *flags: str, **sim: Any) -> None:
        found[name] = {"flags": flags, "sim": {"noise": 0.02, **sim}}

    for part in (_samplers, _screening, _latency, _methods, _ways_to_end, _resumed):
        part(add)
    return found


def _samplers(add: _Add) -> None:
    for sampler in SAMPLERS:
        trials = 10 if sampler == "gp" else 16
        for goal, asked in (("plain", "--budget 50%"), ("targets", "--targets 8,20,50%")):
            for how, rungs in (("whole", "--rungs none --epochs 2"), ("rungs", "--rungs 1,2,4 --epochs 4")):
                count = trials - 3 if sampler == "gp" and "targets" in goal else trials
                flags = f"{asked} {rungs} --sampler {sampler} --trials {count} --method l2 --screen none"
                add(f"{sampler} {goal} {how}", flags)
    for seed in (1, 7):
        add(f"seed {seed} structured", f"{ALONE} --seed {seed}", sensitivities=True)
        add(f"seed {seed} tpe", f"{ALONE} --seed {seed} --sampler tpe")


def _screening(add: _Add) -> None:
    for sampler in ("structured", "tpe"):
        flags = f"--budget 20% --method l2,l1 --trials 16 --sampler {sampler} --screen 3"
        add(f"screening {sampler} whole", f"{flags} --rungs none --epochs 2")
        add(f"screening {sampler} rungs", f"{flags} --rungs 1,2,4 --epochs 4")
        add(f"screening {sampler} targets rungs", f"{flags} --targets 5,20% --rungs 1,3 --epochs 3")
    misled = "--budget 20% --method l2 --screen 3 --rungs none --epochs 3 --trials 30"
    add("screening misled", misled, noise=5.0)
    add("screening mixed methods", "--budget 20% --method l1,csgd,scratch --trials 18 --screen 3 --epochs 2")
    add("screening auto", "--budget 20% --method l2 --trials 12 --screen auto --rungs auto --epochs 9")


def _latency(add: _Add) -> None:
    for sampler in ("structured", "random"):
        flags = f"--method l2 --sampler {sampler} --trials 14 --screen none"
        add(f"latency budget {sampler}", f"{flags} --budget 3ms --rungs none", **LATENCY)
        add(f"latency budget beside flops {sampler}", f"{flags} --budget 3ms --budget 60% --rungs none", **LATENCY)
        axis = f"{flags} --budget 60% --objective accuracy,latency"
        add(f"latency axis {sampler}", f"{axis} --rungs none", **LATENCY)
        add(f"latency axis rungs {sampler}", f"{axis} --rungs 1,2,4 --epochs 4", **LATENCY)
        add(f"latency targets {sampler}", f"{flags} --budget 4ms --targets 10,20,40% --rungs 1,2 --epochs 2", **LATENCY)
    screened = "--method l2 --trials 14 --screen 3 --budget 3ms --objective accuracy,latency --rungs 1,3 --epochs 3"
    add("latency screening", screened, **LATENCY)
    add("latency two workers", screened, workers=2, **LATENCY)
    finding = "--method aofp,kse,l2 --budget 3ms --trials 14 --rungs none --screen none"
    add("latency method finds widths", finding, passing=True, **LATENCY)


def _methods(add: _Add) -> None:
    add("methods quality", f"{MIXED} --method di,l2,csgd", quality={"di": 1.5, "csgd": 1.3}, slowness={"csgd": 4.0})
    for sampler in SAMPLERS:
        trials = 10 if sampler == "gp" else 18
        flags = f"{MIXED} --trials {trials} --sampler {sampler} --search-training lr,distill-weight,epochs=1:4"
        add(f"methods training {sampler}", f"{flags} --method aofp,l2 --epochs 2", quality={"aofp": 1.2}, passing=True)
    add("methods auto", f"{MIXED} --method auto --rungs auto --epochs 9 --screen auto")
    add("methods all", f"{MIXED} --method all --trials 24 --sampler random")
    add("methods kse", f"{MIXED} --method kse,scratch", slowness={"kse": 0.1})
    for allocation in ("search", "method", "any"):
        add(f"allocation {allocation}", f"{MIXED} --method aofp,taylor --allocation {allocation}", passing=True)
    add("allocation method nsga2", f"{MIXED} --method taylor --allocation method --sampler nsga2")
    fixed = "--set aofp.theta=0.2 --set aofp.scope=all --set di.ridge=0.1"
    add("settings searched", f"{MIXED} --method aofp,di --search-settings all", passing=True)
    add("settings of one method", f"{MIXED} --targets 8,40% --method di,csgd --search-settings csgd")
    add("settings fixed", f"{MIXED} --method aofp,di {fixed}", passing=True)
    add("training lr", f"{MIXED} --method l2 --search-training lr=0.002:0.05")
    add("training rungs", f"{MIXED} --method di --search-training lr,distill-weight --rungs 1,2,4 --epochs 4")
    add("lowest fraction", f"{MIXED} --method l2 --lowest-fraction 0.5")
    add("whole budget only", f"{MIXED} --method l2 --lowest-fraction 1 --sampler tpe")


def _ways_to_end(add: _Add) -> None:
    add("two budgets", f"--budget 40% --budget 9kparams {PASSING} --trials 16 --rungs none --screen none", passing=True)
    add("params", "--budget 12kparams --method l2 --trials 14 --screen none --rungs 1,2 --epochs 2")
    add("params targets", "--budget 60% --targets 4,8,12kparams --method l2 --trials 14 --screen none")
    add("targets passing", f"--targets 10,30,60% {PASSING} --trials 18 --screen none", passing=True)
    add("too few trials", "--targets 8,20,50% --trials 2 --method l2")
    add("space is used up", "--budget 80% --trials 14 --method l2 --allocation search", groups=1, width=8)
    add("failing", f"{MIXED} {PASSING} --rungs 1,2,4 --epochs 4", failing=(0, 4, 9, 10), passing=True)
    add("failing screening", "--budget 20% --method l2 --trials 16 --screen 3 --epochs 2", failing=(5, 9))
    add("stopped rungs", f"{MIXED} --method l2 --rungs 1,2,4 --epochs 4", stopped=(2, 7))
    for name, more in (("whole", "--rungs none"), ("rungs", "--rungs 1,2,4"), ("screening", "--rungs 1,4 --screen 3")):
        flags = f"--budget 30% --method l2,di --trials 16 --screen none --epochs 4 {more}"
        add(f"two workers {name}", flags, workers=2, passing=name == "whole")
        add(f"four workers {name}", f"{flags} --sampler tpe", workers=4)
        add(f"time limit {name}", f"{flags} --time-limit 45s")
        add(f"time limit two workers {name}", f"{flags} --time-limit 45s", workers=2)
    add("time limit long", f"{ALONE} --time-limit 1h30m")
    add("time limit short", f"{ALONE} --time-limit 1s --epochs 4")


def _resumed(add: _Add) -> None:
    for sampler in ("structured", "tpe"):
        first = f"--method l2,di --trials 10 --sampler {sampler} --screen none --rungs none"
        second = f"--method l2,di --trials 18 --sampler {sampler} --screen none --rungs none"
        add(f"resume lower {sampler}", f"{first} --budget 50%", f"{second} --budget 20%")
        add(f"resume higher {sampler}", f"{first} --budget 20%", f"{second} --budget 60% --budget 9kparams")
    for name, more in (("whole", "--rungs none"), ("rungs", "--rungs 1,2,4"), ("screening", "--rungs 1,4 --screen 3")):
        flags = f"--method l2 --trials 14 --screen none --epochs 4 {more}"
        add(f"resume same {name}", f"{flags} --budget 40%", f"{flags} --budget 40%", stop=9 if name == "whole" else 22)
        add(f"resume targets {name}", f"{flags} --budget 40%", f"{flags} --trials 20 --targets 10,40%")
        if name == "rungs":
            add(f"resume done {name}", f"{flags} --budget 40%", f"{flags} --budget 15%")
    late = "--method l2 --trials 12 --screen none --rungs 1,2 --epochs 2"
    add("resume latency", f"{late} --budget 4ms", f"{late} --trials 18 --budget 3ms", **LATENCY)
    axis = f"{late} --budget 60% --objective accuracy,latency"
    add("resume latency axis", axis, f"{axis} --trials 16", stop=10, **LATENCY)
    whole = "--method l2 --budget 30% --screen none --rungs none"
    add("resume time limit", f"{whole} --time-limit 25s", f"{whole} --time-limit 15s")


REAL: dict[str, dict[str, Any]] = {
    "real rungs screening confirm": {
        "flags": (("method", "l2"), ("rungs", "1,3"), ("screen", "3"), ("confirm", 2), ("trials", 10)),
        "epochs": 3,
    },
    "real targets methods": {
        "flags": (("method", "di,l2"), ("budget", ()), ("targets", "30,60,90%"), ("trials", 9)),
        "epochs": 1,
    },
}

TINY = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu"
TINY += " --runner local --latency-device none"
PAGES = (
    "--help",
    "methods",
    "methods di",
    "methods csgd aofp",
    "methods --json di",
    "methods --help",
    "presets",
    "presets quick",
    "presets --json quick",
    f"plan --budget 50% --trials 12 --out one/run {TINY}",
    f"plan --budget 50% --method l2,aofp --trials 12 --rungs 1,2 --epochs 4 --screen 4 --time-limit 30m --set "
    f"aofp.scope=all --out one/run {TINY}",
    f"plan --targets 30,60,90% --method all --search-training lr,epochs --epochs 3 --confirm 2 --out one/run {TINY}",
    f"plan --budget 60% --method aofp --screen 3 --sampler random --lowest-fraction 1 --out one/run {TINY}",
    f"plan --budget 60% --budget 300params --trials 3 --time-limit 1s --out one/run {TINY}",
    "--config quick --print-config",
    "--budget 50% --targets 8,20% --trials 7 --rungs 1,2 --epochs 2 --print-config",
)

B = "--budget 50%"
WRONG = (
    "",
    "--budgett 50%",
    "--budget",
    "--budget banana",
    "--budget -1gflops",
    "--budget 150%",
    "--budget 0ms",
    "--budget 8ms --budget 9ms",
    "--budget 50% --budget 40%",
    "--budget 5parsecs",
    "--targets 20,120%",
    "--targets 0.1,0.5",
    "--targets 0.1gflops,1mparams",
    "--targets 20,20%",
    "--targets 8ms",
    "--targets ,",
    f"plan --targets 20,60% {B} {TINY}",
    f"plan --targets 5gflops {TINY}",
    f"plan --targets 0.1,60% {TINY}",
    f"plan --budget 1flops {TINY}",
    f"plan --budget 5ms {TINY}",
    f"{B} --objective latency",
    f"{B} --trials 0",
    f"{B} --trials many",
    f"{B} --confirm 0",
    f"{B} --confirm 1.5",
    f"{B} --seed -1",
    f"{B} --lowest-fraction 0",
    f"{B} --lowest-fraction x",
    f"{B} --epochs 4 --rungs 1,8",
    f"{B} --epochs 4 --rungs 2,1",
    f"{B} --epochs 4 --rungs some",
    f"{B} --rungs 1,2 --epochs 2 --search-training epochs",
    f"{B} --screen 0",
    f"{B} --screen x",
    f"{B} --screen 4 --epochs 0",
    f"{B} --time-limit 0",
    f"{B} --time-limit never",
    f"{B} --sampler tp",
    f"{B} --sampler cmaes",
    f"{B} --allocation searches",
    f"plan {B} --allocation method --method csgd {TINY}",
    f"plan {B} --allocation search --method kse {TINY}",
    f"{B} --method dii",
    f"{B} --method ,",
    f"{B} --method l2,l2,nothing",
    f"{B} --set di.ridge",
    f"{B} --set aofp.scope=all --method l2",
    f"{B} --set nomethod.scope=all",
    f"plan {B} --method di --set di.rigde=1 {TINY}",
    f"plan {B} --method di --set di.ridge=wide {TINY}",
    f"plan {B} --method aofp --set aofp.scope=some {TINY}",
    f"{B} --search-settings l2",
    f"{B} --search-settings ,",
    f"plan {B} --method l2 --search-settings l2 {TINY}",
    f"{B} --search-training momentum",
    f"{B} --search-training lr,lr",
    f"{B} --search-training lr=3",
    f"{B} --search-training lr=0.5:0.1",
    f"{B} --search-training epochs --epochs 1",
    f"{B} --runner simulated",
    f"{B} --runner rai",
    f"{B} --cpus-per-trial 0",
    f"{B} --lr-scheduler multistep",
    f"{B} --lr-scheduler cosine --milestones 3,x",
    f"{B} --lr 0",
    f"{B} --val-share 1",
    f"{B} --floor 0",
    f"{B} --precision half",
    f"{B} --nesterov perhaps",
    f"{B} --latency-engine tvm",
    f"{B} --latency-batch 0",
    f"plan {B} --objective accuracy,latency {TINY}",
    f"{B} --config missing.yaml",
    "--config unknown_key.yaml",
    "--config wrong_section.yaml",
    "--config wrong_type.yaml",
    "--config twice.yaml",
    "--config no_mapping.yaml",
    "--config broken.yaml",
    f"{B} --resume nowhere",
    "--resume kept --out there",
    "--resume kept --seed 5 --method di --rungs 1,2 --epochs 2 --screen 3",
    "--resume kept --budget 300parsecs",
    f"plan {B} --model tiny_nets:nothing",
    f"plan {B} --model resnet21",
    f"plan {B} --data cifar10 --data-dir nowhere",
    f"plan {B} {TINY} --out full",
    f"plan {B} {TINY} --device tpu",
    f"plan {B} {TINY} --bound nothing=1:2",
    f"plan {B} {TINY} --bound nothing=0.5:1",
    "methods cgsd",
    "methods --yaml",
    "presets quik",
    "plan",
    "plan --triels 3",
    "stray",
)
FILES = {
    "unknown_key.yaml": "budget: 50%\ntrails: 3\n",
    "wrong_section.yaml": "budget: 50%\ntrain:\n  rungs: 1,2\n",
    "wrong_type.yaml": "budget: 50%\ntrials: many\n",
    "twice.yaml": "budget: 50%\nepochs: 2\ntrain:\n  epochs: 3\n",
    "no_mapping.yaml": "- 50%\n",
    "broken.yaml": "budget: [50%\n",
    "kept/config.yaml": "",  # filled by the golden run with what `--print-config` says
    "full/file.txt": "here",
}
