"""Inputs that nobody can use, made at random: flags, YAML files, folders of images, networks, run folders.

A strategy draws an `Input`: how files are made in a folder, and the command line that reads them there.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy, composite

from configs.loading import SECTIONS
from configs.schema import RunConfig
from spaces.fields import SettingField, setting_fields

SEARCH = (
    "--budget 50% --model tiny_nets:residual --data digits --image-size 8 --runner local --precision float32 "
    "--device cpu --latency-device none --out out"
).split()
FIELDS: Mapping[str, SettingField] = {
    field.key: field
    for section in (RunConfig, *SECTIONS.values())
    for field in setting_fields(section).values()
    if field.name not in SECTIONS and field.key not in ("resume", "out", "quiet", "json")
}
NUMBERS = "nan -nan inf -inf 1e999 -1 -1e-3 1e25 1e-320 1_0 1:30 0x10 ٣ １２ 1,5 ½ --1 1e . 1.5.2 + 1e+ NaN%".split()
NUMBERS += ["1 0", "1" + "0" * 30, "5" * 5000, "1e400gflops"]
TEXTS = "{} [] null ~ $(touch_left) `id` a:b:c : :// - = 🦊 %s%n os:system builtins:exec nowhere.at.all:make".split()
TEXTS += "tiny_nets: :residual tiny_nets:lost imagefolder: /dev/zero \u202egnp.exe \ud800".split()
TEXTS += ["", " ", "\x00", "a\nb", "\x1b[31mred", "é" * 300, "x" * 100_000, "../" * 50]


@dataclass(frozen=True)
class Input:
    """A command line, and how the files that it reads are made in the current folder.

    Attributes:
        made: what was drawn, for a reader.
    """

    arguments: tuple[str, ...]
    make: Callable[[Path], None]
    made: str = ""

    def __repr__(self) -> str:
        return f"{self.made} {' '.join(self.arguments)!r}"[:300]


def nothing(folder: Path) -> None:
    """Make no file."""


texts = st.one_of(st.sampled_from(NUMBERS + TEXTS), st.text(max_size=20), st.floats().map(repr), st.integers().map(str))


def flags() -> SearchStrategy[Input]:
    """A search with one or two flags of odd values, or with arguments that are no flags."""
    odd = st.tuples(st.sampled_from(list(FIELDS.values())), texts).map(lambda pair: f"{pair[0].flag}={pair[1]}")
    unknown = st.one_of(texts.map(lambda text: f"--{text}"), texts.filter(lambda text: text not in ("", "plan")))
    given = st.lists(st.one_of(odd, odd, odd, unknown), min_size=1, max_size=2)
    command = st.sampled_from([(), (), ("plan",)])
    return st.builds(lambda first, last: Input((*first, *SEARCH, *last), nothing, "flags"), command, given)


@composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return content that was cut short, has flipped bits, or is something else altogether."""
    kind = draw(st.sampled_from(["cut", "flipped", "garbage", "empty", "zeros", "longer"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if kind == "flipped":
        flipped = bytearray(content or b"\0")
        for place in draw(st.lists(st.integers(0, 8 * len(flipped) - 1), min_size=1, max_size=8)):
            flipped[place // 8] ^= 1 << place % 8
        return bytes(flipped)
    other = {"garbage": draw(st.binary(max_size=200)), "empty": b"", "zeros": bytes(1000)}
    return other.get(kind, content + draw(st.binary(min_size=1, max_size=50)))


NODES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(NUMBERS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = [BOMB, "[" * 5000, "{" * 5000, "a: " * 3000, "&a [*a]", "<<: *none", "budget: *x", "? [a, b]\n: c", "\t- x"]
YAMLS += ["%YAML 9.9\n---\n", "---\n---\n", "budget: 50%\nbudget: 20%", "train: &t\n  <<: *t", "!!binary aGFsbG8="]
YAMLS += ["!!python/name:os.system", "budget: !!float nan"]


def _yaml(data: Any) -> bytes:
    return yaml.safe_dump(data).encode("utf-8", "replace")


@composite
def yaml_files(draw: st.DrawFn) -> Input:
    """A search with a --config that holds odd values under known or unknown keys, is no YAML, or is no file."""
    valid = "budget: 50%\ntrials: 3\ntrain:\n  epochs: 2\n  lr: 0.01\nspace:\n  skip: [fc]\n"
    keys = st.one_of(st.sampled_from(list(FIELDS)), st.sampled_from(list(SECTIONS)), st.text(max_size=10))
    content = draw(
        st.one_of(
            st.dictionaries(keys, NODES, min_size=1, max_size=3).map(_yaml),
            NODES.map(lambda node: json.dumps(node).encode()),
            st.sampled_from(YAMLS).map(str.encode),
            damaged(valid.encode()),
        )
    )
    kind = draw(st.sampled_from(["file", "file", "file", "file", "folder", "loop", "none"]))
    return Input(
        ("--config", "odd.yaml", *SEARCH), lambda folder: _place(folder / "odd.yaml", kind, content), f"yaml {kind}"
    )


def _place(path: Path, kind: str, content: bytes) -> None:
    """Put a file there, or what nobody expects in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "closed":
        path.write_bytes(content)
        path.chmod(0)
    elif kind == "file":
        path.write_bytes(content)


def png(width: int, height: int, pixels: bytes | None = None) -> bytes:
    """Return a grey PNG; without pixels of the right number it is a bomb or damaged."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(height)) if pixels is None else pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@composite
def image_folders(draw: st.DrawFn) -> Input:
    """A search on a folder of images some of which are damaged, missing, too large or no files."""
    bad = draw(
        st.one_of(
            damaged(png(8, 8)),
            st.sampled_from(
                [png(65_000, 65_000, b""), png(0, 8, b""), b"GIF89a", b"\xff\xd8\xff\xe0", b"<svg/>", png(1, 1)]
            ),
        )
    )
    kind = draw(st.sampled_from(["file", "file", "file", "folder", "loop", "device"]))
    layout = draw(
        st.sampled_from(["classes", "classes", "classes", "one class", "empty", "no folder", "flat", "split"])
    )
    name = draw(st.sampled_from(["bad.png", "bad.jpg", "b\nad.png", ".png", "ä.PNG"]))

    def make(folder: Path) -> None:
        root = folder / "photos"
        if layout == "no folder":
            return
        root.mkdir()
        places = {"classes": ["a", "b"], "one class": ["a"], "flat": [""], "split": ["train/a", "train/b", "val/a"]}
        for place in places.get(layout, []):
            (root / place).mkdir(parents=True, exist_ok=True)
            for number in range(6):
                (root / place / f"{number}.png").write_bytes(png(8, 8))
        if layout in places:
            _place(root / places[layout][-1] / name, kind, bad)

    return Input((*SEARCH, "--data", "imagefolder:photos"), make, f"images {layout} {kind} {bad[:20]!r}")


HEAD = "import torch\nfrom torch import nn\n"
MAKE = "def make(num_classes):\n    "
NET = HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        {}\n" + MAKE + "return Net()"
FACTORIES = {
    "raises": MAKE + "raise ValueError('no\\nway')",
    "exits": MAKE + "raise SystemExit(0)",
    "exits when imported": "raise SystemExit(3)",
    "no syntax": "def make(:\n",
    "null byte": "x = '\0'",
    "lacks a module": "import lost_and_not_found",
    "text": MAKE + "return 'net'",
    "none": MAKE + "pass",
    "class": HEAD + MAKE + "return nn.Conv2d",
    "arguments": "def make(a, b, c, num_classes):\n    pass",
    "no factory": "make = 3",
    "recursion": MAKE + "return make(num_classes)",
    "empty": HEAD + MAKE + "return nn.Sequential()",
    "nothing varies": HEAD + MAKE + "return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))",
    "wrong shape": HEAD + MAKE + "return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(3, 5))",
    "forward raises": NET.format("raise KeyError('x\\ny')"),
    "forward gives text": NET.format("return 'x'"),
    "not finite": NET.format("return x.mean((2, 3)) * float('nan')"),
}


@composite
def networks(draw: st.DrawFn, weights: bytes) -> Input:
    """A search with a factory that gives no network, or with a file of weights that is none."""
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(FACTORIES)))
        flag = draw(st.sampled_from(["--model", "--model", "--data", "--task"]))
        module = f"odd_{name.replace(' ', '_')}"
        source = FACTORIES[name]
        return Input(
            (*SEARCH, flag, f"{module}:make"), lambda folder: _write(folder / f"{module}.py", source), f"factory {name}"
        )
    content = draw(damaged(weights))
    suffix = draw(st.sampled_from(["safetensors", "pt", "pth", "bin", ""]))
    kind = draw(st.sampled_from(["file", "file", "file", "folder", "loop", "none", "device"]))
    file = f"weights.{suffix}".rstrip(".")
    return Input(
        (*SEARCH, "--weights", file),
        lambda folder: _place(folder / file, kind, content),
        f"weights {kind} {content[:20]!r}",
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@composite
def run_folders(draw: st.DrawFn, run: Path) -> Input:
    """A command on a finished run in which one file is damaged, changed or gone."""
    files = sorted(
        file.relative_to(run)
        for file in run.rglob("*")
        if file.is_file() and file.suffix not in (".html", ".png", ".csv", ".md")
    )
    name = draw(st.sampled_from([*files, *[Path("result.json")] * 4, *[Path("config.yaml")] * 4, Path("study.db")]))
    content = (run / name).read_bytes()
    kind = draw(st.sampled_from(["file", "file", "file", "file", "folder", "loop", "none"]))
    if name.suffix == ".json" and draw(st.booleans()):
        content = json.dumps(draw(changed(json.loads(content)))).encode()
    elif name.name == "config.yaml" and draw(st.booleans()):
        content = _yaml(draw(changed(yaml.safe_load(content))))
    else:
        content = draw(damaged(content))
    command = draw(st.sampled_from(COMMANDS))

    def make(folder: Path) -> None:
        shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("*.html", "*.pt2", "mlartifacts"))
        _place(folder / "run" / name, kind, content)

    return Input(command, make, f"{name} {kind} {content[:30]!r}")


COMMANDS = [
    ("show", "run"),
    ("show", "run", "--json"),
    ("export", "run", "--format", "state_dict", "--trust-code", "--out", "exported"),
    ("export", "run", "--trial", "1", "--format", "safetensors", "--trust-code", "--out", "exported"),
    ("compare", "run", "run"),
    ("--resume", "run", "--trust-code", "--trials", "4"),
    ("--resume", "run", "--trust-code", "--budget", "30%"),
    ("load", "run"),
]


@composite
def changed(draw: st.DrawFn, data: Any) -> Any:
    """Return plain data in which one value is another, or gone."""
    data = json.loads(json.dumps(data))
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            place = inner
            continue
        if draw(st.integers(0, 3)) == 0:
            del place[key]
        else:
            place[key] = draw(
                st.one_of(NODES, st.sampled_from([10**30, -1, 1e308, "../../x", "/dev/zero", "os:system"]))
            )
        return data
