import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from configs.loading import (
    COMMON,
    PRESETS,
    RUN_FILE,
    SECTIONS,
    check_resumed,
    effective_yaml,
    load,
    parse_flags,
    read_config,
    setting_help,
)
from configs.schema import RunConfig
from pruning.base import METHODS
from runners.config import DataConfig, TrainConfig
from spaces.errors import BudgetError, ConfigError
from spaces.fields import setting_fields
from spaces.space import SpaceConfig

# Every setting, at a value that is not its default.
OTHER: dict[str, Any] = {
    "budget": ("30%", "1mparams"),
    "model": "resnet20",
    "widen": 1.5,
    "output": "logits",
    "weights": "a file.pt",
    "method": "di,l2",
    "set": ("di.ridge=0.1", "di.way=closed"),
    "search_settings": "di",
    "search_training": "lr,distill-weight=0:0.5",
    "targets": "8,20%",
    "objective": "accuracy,latency",
    "allocation": "method",
    "lowest_fraction": 0.5,
    "trials": 7,
    "rungs": "2,3",
    "screen": "5",
    "final_epochs": "4",
    "inherit": False,
    "final_distill_weight": "0.25",
    "train_budget": "90epochs",
    "time_limit": "1h30m",
    "confirm": 3,
    "sampler": "nsga2",
    "seed": 3,
    "out": "some where",
    "storage": "sqlite:///x.db",
    "tracking_uri": "http://host:5000",
    "export": "onnx",
    "quantize": "int8",
    "experiment": "widths",
    "run_name": "first",
    "log_models": "chosen",
    "register": "narrow",
    "quiet": True,
    "json": True,
    "divisor": 4,
    "floor": 0.25,
    "skip": ("layer4.*", "layer[1,2].*"),
    "only": ("features.*",),
    "bound": ("conv1=0.5:1",),
    "data": "imagefolder:/data: set",
    "data_dir": "/data",
    "image_size": 64,
    "val_share": 0.1,
    "padding_mode": "constant",
    "scale": "half",
    "min_crop_area": 0.08,
    "augment": "flip,crop",
    "data_workers": 2,
    "task": "package.tasks:make",
    "epochs": 3,
    "dense_epochs": 0,
    "batch_size": 48,
    "accumulate": 4,
    "optimizer": "adamw",
    "lr": 0.001,
    "dense_lr": 0.2,
    "lr_batch_size": 256,
    "momentum": 0.8,
    "nesterov": False,
    "weight_decay": 0.0,
    "bias_lr_mult": 2.0,
    "drop_path": 0.1,
    "label_smoothing": 0.05,
    "mixup": 0.2,
    "clip_grad_norm": 0.0,
    "model_ema_decay": 0.99,
    "lr_scheduler": "multistep",
    "milestones": (200, 400),
    "lr_gamma": 0.2,
    "warmup_epochs": 5.0,
    "dense_lr_scheduler": "cosine",
    "dense_milestones": (3,),
    "dense_warmup_epochs": 0.5,
    "distill_weight": 0.5,
    "distill_temperature": 4.0,
    "rescale_weights": "all",
    "precision": "float32",
    "device": "cpu",
    "runner": "local",
    "cpus_per_trial": 2,
    "gpus_per_trial": 0.5,
    "ray_address": "auto",
    "max_retries": 5,
    "trial_timeout": "30m",
    "latency_device": "cpu:1thread",
    "latency_batch": (1, 32),
    "latency_dtype": "bfloat16",
    "latency_channels_last": True,
    "latency_engine": "onnxruntime",
    "latency_format": "torchscript",
    "latency_shell": True,
    "latency_timeout": 5.0,
    "latency_token_file": "token",
}
APART = {"resume": "", "latency_command": ""}  # tested on their own: the others do not go with them


def flat(config: RunConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for section in SECTIONS:
        part = values.pop(section)
        values |= {field.key: getattr(part, field.name) for field in setting_fields(type(part)).values()}
    return values


def flags_of(values: dict[str, Any]) -> list[str]:
    argv = []
    for name, value in values.items():
        for part in value if isinstance(value, tuple) else (value,):
            argv += ["--" + name.replace("_", "-"), str(part)]
    return argv


def write(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return str(folder / "run.yaml")


def test_the_values_of_this_test_cover_every_setting_and_differ_from_the_defaults() -> None:
    defaults = flat(RunConfig())
    assert OTHER.keys() | APART.keys() == defaults.keys()
    assert not [name for name, value in OTHER.items() if value == defaults[name]]


def test_every_flag_reaches_the_config() -> None:
    assert flat(parse_flags(flags_of(OTHER))) == OTHER | APART


def test_a_latency_command_reaches_the_config_as_one_text(tmp_path: Path) -> None:
    command = "ssh board './bench --json' {model}"
    assert parse_flags(["--latency-command", command]).latency.command == command
    text = f"latency:\n  command: {json.dumps(command)}\n"
    assert parse_flags(["--config", write(tmp_path, text)]).latency.command == command


def test_several_agents_are_named_by_repeating_the_flag_or_by_a_list(tmp_path: Path) -> None:
    flags = ["--latency-device", "http://a:1", "--latency-device", "http://b:2"]
    assert parse_flags(flags).latency.agents == ("http://a:1", "http://b:2")
    text = "latency:\n  device: [http://a:1, http://b:2]\n"
    assert parse_flags(["--config", write(tmp_path, text)]).latency.agents == ("http://a:1", "http://b:2")


def test_no_flags_give_the_defaults() -> None:
    assert parse_flags([]) == RunConfig()


def test_flags_are_unique_over_all_sections() -> None:
    keys = [field.key for section in SECTIONS.values() for field in setting_fields(section).values()]
    keys += [name for name in setting_fields(RunConfig) if name not in SECTIONS]
    assert len(keys) == len(set(keys))


def test_printed_yaml_reads_back_to_the_same_config(tmp_path: Path) -> None:
    config = parse_flags(flags_of(OTHER))
    path = write(tmp_path, effective_yaml(config))
    assert load(path) == config
    assert parse_flags(["--config", path]) == config


@pytest.mark.parametrize("text", ["null", "1e-3", "0123", "yes", "", "[a]", "a: b", "#x", "ü"])
def test_texts_that_yaml_could_take_for_something_else_survive(tmp_path: Path, text: str) -> None:
    config = RunConfig(weights=text, space=SpaceConfig(skip=(text,) if text else ()))
    assert load(write(tmp_path, effective_yaml(config))) == config
    if text:
        assert parse_flags(["--weights", text, "--skip", text]) == config


def test_budgets_may_be_repeated_or_separated_by_commas() -> None:
    expected = ("0.5gflops", "1.2mparams", "8ms")
    argv = ["--budget", "0.5gflops, 1.2mparams", "--budget=8ms"]
    assert parse_flags(argv).budget == expected


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_flags_go_on_top_of_the_file_wherever_they_stand(tmp_path: Path, order: tuple[int, int]) -> None:
    path = write(tmp_path, "budget: 0.5gflops\ntrials: 5\ntrain: {epochs: 4, batch_size: 8}")
    parts = (["--config", path], ["--budget", "30%", "--epochs", "2"])
    config = parse_flags([*parts[order[0]], *parts[order[1]]])
    assert (config.budget, config.trials, config.train.epochs, config.train.batch_size) == (("30%",), 5, 2, 8)


def test_files_may_be_flat_sectioned_or_written_with_dashes(tmp_path: Path) -> None:
    text = "data: mnist\nbatch-size: 8\ntrain: {epochs: 2}\nruner: x".replace("runer: x", "runner: local")
    config = load(write(tmp_path, text))
    assert (config.data.name, config.train.batch_size, config.train.epochs) == ("mnist", 8, 2)
    assert config.runner.name == "local"


def test_an_empty_value_or_file_keeps_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "trials:\nweights:\n")) == RunConfig()
    assert load(write(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trails: 3", "unknown key 'trails'; did you mean 'trials'?"),
        ("train: {epoch: 3}", "unknown key 'epoch' under train:; did you mean 'epochs'?"),
        ("train: {trials: 3}", "unknown key 'trials' under train:; it belongs at the top level"),
        ("train: {skip: a}", "unknown key 'skip' under train:; it belongs under space:"),
        ("latency: {latency_device: cpu}", "unknown key 'latency_device' under latency:; there it is 'device'"),
        ("5: 3", "unknown key '5'; known: budget, targets"),
        ("train: 4", "has '4' under train: and must have `key: value` lines there"),
        ("trials: x", "trials is 'x' and must be a whole number"),
        ("trials: 1.5", "trials is '1.5' and must be a whole number"),
        ("trials: true", "trials is 'true' and must be a whole number"),
        ("model: [a]", "model is a list and must be a text"),
        ("epochs: 1:30", "epochs is '1:30' and must be a whole number"),
        ("trials: 1_0", "trials is '1_0' and must be a whole number"),
        ("clip_grad_norm: 1:2:3", "clip_grad_norm is '1:2:3' and must be a number"),
        ("lr: .inf", "lr is '.inf' and must be a number"),
        ("trials: 3\ntrials: 4", "'trials' stands there twice"),
        ("train: {epochs: [[1]]}", "epochs is a list and must be a whole number"),
        ("budget: [[1]]", "budget is a list and must be a text"),
        ("train: [1]", "has a list under train:"),
        ('model: "\\0"', "model is '\\x00' and must be a text without control characters"),
        ("[" * 5000, "is nested too deeply"),
        ("a: [", "is not YAML"),
        ("- 1", "holds list and must hold `key: value` lines"),
        ("batch_size: 5\ntrain: {batch_size: 4}", "gives 'batch_size' twice; keep one"),
        ("model: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"config {path!r}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--trials", "x"], "--trials is 'x' and must be a whole number"),
        (["--floor", "wide"], "--floor is 'wide' and must be a number"),
        (["--trial", "4"], "unknown argument '--trial'; did you mean --trials"),
        (["--bugdet=3"], "unknown argument '--bugdet=3'; did you mean --budget"),
        (["@@@@"], "unknown argument '@@@@'; see --help"),
        (["--trials"], "argument --trials: expected one argument"),
        (["--config", "quik"], "config 'quik' cannot be read (No such file or directory)"),
        (["--config", "."], "cannot be read (Is a directory)"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flags(argv)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_a_file_are_those_of_the_flags(tmp_path: Path) -> None:
    path = write(
        tmp_path, "trials: 010\nlr: 1e-3\nbudget: [50%, 010mparams]\nout: 2026-11-30\nseed: +4\nrungs: 1,2\nepochs: 4"
    )
    flags = "--trials 010 --lr 1e-3 --budget 50% --budget 010mparams --out 2026-11-30 --seed +4 --rungs 1,2 --epochs 4"
    assert load(path) == parse_flags(flags.split())
    assert (load(path).trials, load(path).train.lr, load(path).out) == (10, 0.001, "2026-11-30")


def test_references_that_would_fill_the_memory_are_not_written_out(tmp_path: Path) -> None:
    levels = ["&a0 [x, x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, f"model: [{', '.join(levels)}]"))
    assert "model is a list and must be a text" in str(caught.value)


def test_a_file_without_end_is_no_config() -> None:
    with pytest.raises(ConfigError, match="'/dev/zero' has over 1,000,000 characters"):
        read_config("/dev/zero")


def test_a_binary_file_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"\x80\x02\xff")
    with pytest.raises(ConfigError, match="not a text file"):
        read_config(str(tmp_path / "net.pt"))


def test_a_negative_value_is_a_value_and_not_a_flag() -> None:
    with pytest.raises(BudgetError, match="'-1gflops' must be a positive finite number"):
        parse_flags(["--budget", "-1gflops"])
    with pytest.raises(ConfigError, match="--seed is -3 and must be a whole number from 0"):
        parse_flags(["--seed", "-3"])


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid(path: Path) -> None:
    config = load(path.stem)
    if config.method not in METHODS:
        pytest.skip(f"method {config.method} is not here")
    assert config.budgets


def test_the_quick_preset_is_the_quick_start() -> None:
    assert load("quick") == RunConfig(budget=("0.5gflops",))


def test_a_file_of_that_name_comes_before_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick").write_text("trials: 99")
    assert load("quick").trials == 99


def test_help_lists_every_flag_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_flags(["--help-all"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in (*OTHER, "resume"):
        assert f"--{name.replace('_', '-')} " in text
    assert "One multiply-add is one FLOP." in " ".join(text.split())
    assert "(default: 12)" in text


def test_help_shows_few_flags_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_flags(["--help"])
    text = capsys.readouterr().out
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    assert len(shown) == len(set(shown)) <= 25
    assert {"--budget", "--model", "--data", "--help-all"} <= set(shown)
    assert max(map(len, text.splitlines())) <= 80
    assert 'e.g. "layer4.*"' in " ".join(text.split())  # a sentence does not end there


def test_the_common_settings_exist() -> None:
    assert {
        field.key for section in (RunConfig, *SECTIONS.values()) for field in setting_fields(section).values()
    } > COMMON


def test_every_setting_is_documented() -> None:
    for section in (RunConfig, *SECTIONS.values()):
        for field in setting_fields(section).values():
            assert field.name in SECTIONS or setting_help(section, field).strip()[:1] not in ("", "(")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "ray", "mlflow", "optuna", "matplotlib", "plotly", "fvcore", "sklearn")
    code = (
        "import sys\nfrom search.cli import main\nassert main(['--help']) == 0\n"
        f"sys.exit(','.join(name for name in {heavy} if name in sys.modules))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == ""
    assert time.monotonic() - began < 5  # 0.2 s alone; generous for a machine that is busy


# Resuming: what a search takes from its run folder, what flags may change, and what they may not.

STORED = RunConfig(
    budget=("50%",),
    model="resnet20",
    trials=12,
    seed=3,
    method="l2,di",
    space=SpaceConfig(floor=0.2),
    data=DataConfig(name="cluttered_digits"),
    train=TrainConfig(epochs=4),
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / RUN_FILE).write_text(effective_yaml(STORED))
    return str(tmp_path)


def test_without_other_flags_the_settings_are_those_of_the_folder(folder: str) -> None:
    config = parse_flags(["--resume", folder])
    assert config == dataclasses.replace(STORED, resume=folder)
    check_resumed(config)


def test_flags_on_top_change_what_makes_no_trial_another(folder: str) -> None:
    flags = "--budget 20% --trials 30 --sampler random --lowest-fraction 0.1 --runner local --device cpu --data-dir x"
    config = parse_flags(["--resume", folder, *flags.split(), "--tracking-uri", "http://server"])
    check_resumed(config)
    assert (config.budget, config.trials, config.sampler) == (("20%",), 30, "random")
    assert (config.seed, config.train.epochs) == (3, 4)


@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [
        ("--model", "resnet32", "resnet20"),
        ("--weights", "net.pt", ""),
        ("--data", "digits", "cluttered_digits"),
        ("--image-size", "16", 0),
        ("--floor", "0.5", 0.2),
        ("--skip", "layer1.*", ()),
        ("--seed", "4", 3),
        ("--objective", "accuracy,latency", "accuracy,flops"),
        ("--epochs", "5", 4),
        ("--precision", "float32", "auto"),
        ("--method", "csgd", "l2,di"),
        ("--rungs", "none", "auto"),
        ("--screen", "4", "auto"),
        ("--storage", "sqlite:///other.db", ""),
    ],
)
def test_another_model_data_space_or_training_is_refused_with_both_values(
    folder: str, flag: str, value: str, before: object
) -> None:
    with pytest.raises(ConfigError, match="cannot go on with other settings") as caught:
        check_resumed(parse_flags(["--resume", folder, flag, value]))
    assert f"{flag} is {before!r} there and " in str(caught.value)
    assert value in str(caught.value)


def test_every_setting_that_differs_is_named(folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_resumed(parse_flags(["--resume", folder, "--seed", "4", "--epochs", "5"]))
    assert "--seed is 3 there and 4 here, --epochs is 4 there and 5 here" in str(caught.value)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml; give the run folder"):
        parse_flags(["--resume", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        check_resumed(dataclasses.replace(STORED, resume=str(tmp_path / "gone")))


def test_another_folder_to_write_to_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="leave --out away"):
        parse_flags(["--resume", folder, "--out", "elsewhere"])


@pytest.mark.parametrize("setting", ["model: evil.nets:make", "data: {name: 'evil.images:load'}"])
def test_code_that_a_run_folder_names_is_run_only_when_trusted(tmp_path: Path, setting: str) -> None:
    (tmp_path / RUN_FILE).write_text(f"budget: 50%\n{setting}\n")
    flag, name = ("--model", "evil.nets:make") if "model" in setting else ("--data", "evil.images:load")
    with pytest.raises(ConfigError, match=f"names, {flag} {name}; add --trust-code"):
        parse_flags(["--resume", str(tmp_path)])
    for trusted in (["--trust-code"], [flag, name]):
        config = parse_flags(["--resume", str(tmp_path), *trusted])
        assert name in (config.model, config.data.name)


@pytest.mark.parametrize(
    "settings",
    [
        "method: 'di, own_method:Mine'",
        "method: own_method:Mine\nset: ['own_method:Mine.strength=2']",
        "method: l2\nset: ['l2.criterion=own_method:Mine']",
        "method: 'imagefolder:own_method:Mine'",
        "model: 'imagefolder:own_method:Mine'",
    ],
)
def test_a_method_that_a_run_folder_names_is_imported_only_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    (tmp_path / "own_method.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN_FILE).write_text(f"budget: 50%\n{settings}\n")
    with pytest.raises(ConfigError, match=r"would run what that folder names, .*own_method:Mine.*; add --trust-code"):
        parse_flags(["--resume", str(tmp_path)])
    assert not (tmp_path / "imported").exists()


def test_a_command_that_a_run_folder_names_is_run_only_when_trusted(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("budget: 50%\nlatency: {command: 'touch {model}'}\n")
    with pytest.raises(ConfigError, match="names, --latency-command 'touch {model}'; add --trust-code"):
        parse_flags(["--resume", str(tmp_path)])
    assert parse_flags(["--resume", str(tmp_path), "--trust-code"]).latency.command == "touch {model}"


def test_a_run_folder_without_code_needs_no_trust(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("budget: 50%\ndata: {name: 'imagefolder:photos'}\n")
    assert parse_flags(["--resume", str(tmp_path)]).data.name == "imagefolder:photos"
