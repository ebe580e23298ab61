"""YAML and command-line flags to RunConfig, and back.

Flags are flat (`--batch-size`), files have sections (`train: {batch_size: 64}`) or are flat too, since a setting's flag
is unique over all sections. Precedence: defaults, then the file of --config, then flags.
"""

import argparse
import dataclasses
import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docstring_parser import parse as parse_docstring
from typing_extensions import override

from configs.passwords import VARIABLES, masked, masked_settings
from configs.schema import RunConfig
from runners.config import is_code
from spaces.errors import ConfigError
from spaces.fields import SettingField, setting_fields, shown

PRESETS = Path(__file__).parent / "presets"
RUN_FILE = "config.yaml"  # of a run folder
HELP_ALL = "--help-all"
DISPLAY = ("quiet", "json")  # how the command line shows a run: a resumed one does not take them from its folder
LARGEST_FILE = 1_000_000  # characters; a device such as /dev/zero has no end
SECTIONS: Mapping[str, Any] = {
    name: field.type for name, field in setting_fields(RunConfig).items() if dataclasses.is_dataclass(field.type)
}
# A resumed search may change these: no result of a trial depends on them. `data_dir`, `data_workers` and `device` say
# where images lie, how they are read and where networks are trained, not what they are.
CHANGEABLE = frozenset(
    "budget targets lowest_fraction trials final_epochs inherit final_distill_weight train_budget time_limit confirm "
    "sampler out resume tracking_uri log_models register export quantize quiet json data_dir data_workers "
    "device".split()
)
CHANGEABLE_SECTIONS = ("runner", "latency")
_NO_SETTINGS = ("--config", "--trust-code", "--print-config", "--debug", "--help", HELP_ALL)
_TITLES = {
    "": "search",
    "space": "widths",
    "data": "images",
    "train": "training",
    "runner": "where trials run",
    "latency": "measured latency",
}
# The settings that `--help` shows, by key; `--help-all` shows all of them, with their whole texts.
COMMON = frozenset(
    "budget targets objective model output weights method trials train_budget time_limit confirm seed out resume skip "
    "data data_dir augment epochs dense_epochs device latency_device".split()
)
_EXAMPLES = """examples:
  python -m search --budget 0.5gflops
  python -m search --budget 30% --model resnet20 --data cluttered_digits
  python -m search --config quick --budget 1.2mparams --skip 'layer4.*'
  python -m search --config csgd-resnet56-cifar10 --data-dir ~/data
  python -m search --targets 8,20,50% --model resnet20 --trials 36
  python -m search --resume runs/NAME --budget 20%

other commands (each with --help):
  python -m search plan --budget 30%    what a search would do, take and write
  python -m search prune --budget 30%   one cut by one method, without a search
  python -m search show RUN             the tables of a finished search again
  python -m search compare RUN RUN ...  fronts on one table and picture
  python -m search export RUN           a network for another runtime
  python -m search sync RUN             what MLflow lacks of a search
  python -m search methods [NAME ...]   methods: settings, needs, papers
  python -m search presets [NAME ...]   files for --config, e.g. of papers"""


@cache
def _settings() -> Mapping[str, tuple[str, SettingField]]:
    """Return section and field of every setting of a run by its key, in the order of the help."""
    sections: dict[str, Any] = {"": RunConfig, **SECTIONS}
    return {
        field.key: (section, field)
        for section in _TITLES
        for field in setting_fields(sections[section]).values()
        if section or field.name not in SECTIONS
    }


def parse_flags(argv: Sequence[str]) -> RunConfig:
    """Read the command line; `--help` and `--help-all` print and raise SystemExit(0).

    Raises:
        SlimfrontError: an unknown flag or key, a value of the wrong type, a file that cannot be read, or a setting
            that breaks its rule.
    """
    texts = _flag_texts(argv)
    path, trusted = texts.pop("config", ""), texts.pop("trust_code", False)
    fields = {key: _settings()[key][1] for key in texts}
    flags = {key: fields[key].read(text, fields[key].flag) for key, text in texts.items()}
    given = (read_config(path) if path else {}) | flags
    folder, out = flags.get("resume"), flags.get("out")
    if folder and out:
        raise ConfigError(f"--out is {out!r} and --resume {folder!r}, which writes to that folder; leave --out away")
    stored = read_config(_run_file(folder)) if folder else {}
    stored = {key: value for key, value in stored.items() if key not in DISPLAY}
    if "budget" in given or "targets" in given:  # either replaces both of the run folder
        stored = {key: value for key, value in stored.items() if key not in ("budget", "targets")}
    if not trusted:
        _check_code(str(folder), {key: value for key, value in stored.items() if key not in given})
    return _compose(stored | given)


def _check_code(folder: str, stored: Mapping[str, Any]) -> None:
    """Raise ConfigError if a run folder names code that the user has not named; the folder may be someone else's."""
    if named := code_named(stored):
        raise ConfigError(
            f"--resume {folder!r} would run what that folder names, {' and '.join(named)}; "
            "add --trust-code if you trust it, or give these flags yourself"
        )


def code_named(stored: Mapping[str, Any]) -> list[str]:
    """Return the flags of stored settings that import a module of the user's, or run a command.

    Args:
        stored: as `read_config` returns it.
    """
    # Only the name of a dataset may have a colon and be no code, as "imagefolder:photos".
    named = [f"--{key} {stored[key]}" for key in ("model", "task", "method") if ":" in stored.get(key, "")]
    if is_code(stored.get("data", "")):
        named.append(f"--data {stored['data']}")
    named += [f"--set {text}" for text in stored.get("set", ()) if ":" in text]
    if command := stored.get("latency_command"):
        named.append(f"--latency-command {command!r}")
    return named


def _flag_texts(argv: Sequence[str]) -> dict[str, Any]:
    """Return the key of every flag in `argv` with its text, or with its list of texts if it may be repeated."""
    arguments: list[str] = []
    for argument in argv:
        # argparse takes "-1gflops" for a flag; the user deserves the error about a negative value instead.
        if arguments and re.match(r"--[^=]+$", arguments[-1]) and re.match(r"-\.?\d", argument):
            arguments[-1] += f"={argument}"
        else:
            arguments.append(argument)
    try:
        known, unknown = _parser(everything=HELP_ALL in arguments).parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if unknown:
        flags = [field.flag for _, field in _settings().values()] + [*_NO_SETTINGS]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
        raise ConfigError(f"unknown argument {unknown[0]!r}; {hint}")
    return {key: value for key, value in vars(known).items() if key in _settings() or key in ("config", "trust_code")}


def _parser(everything: bool) -> argparse.ArgumentParser:
    """Return the parser of all flags; its help shows all of them, or the common ones in short."""
    parser = argparse.ArgumentParser(
        prog="python -m search",
        usage="%(prog)s --budget LIMIT [options]",
        description="Search narrower versions of a CNN within hard budgets; report the Pareto front.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {section: parser.add_argument_group(title) for section, title in _TITLES.items()}
    for key, (section, field) in _settings().items():
        text = setting_help(SECTIONS.get(section, RunConfig), field, short=not everything).replace("%", "%%")
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if field.item is bool else {}
        groups[section].add_argument(
            field.flag,
            action="append" if field.repeated or field.joined else "store",
            metavar={int: "N", float: "X", bool: "false"}.get(field.item, key.rpartition("_")[2].upper()),
            help=text if everything or key in COMMON else argparse.SUPPRESS,
            **alone,
        )
    group, hidden = parser.add_argument_group("configuration"), None if everything else argparse.SUPPRESS
    presets = f"YAML file or preset ({_preset_names()})" if everything else "YAML file, or preset by its name"
    group.add_argument("--config", metavar="FILE", help=f"{presets}; flags go on top")
    trust = "let --resume run the package.module:factory or command that only the run folder names"
    group.add_argument("--trust-code", action="store_true", help=hidden or trust)
    group.add_argument("--print-config", action="store_true", help=hidden or "print the effective YAML and exit")
    group.add_argument("--debug", action="store_true", help=hidden or "show tracebacks and the log")
    group.add_argument("-h", "--help", action="help", help="show the common flags and exit")
    group.add_argument(HELP_ALL, action="help", help="show every flag with its whole text and exit")
    return parser


def setting_help(section: type, field: SettingField, *, short: bool = False) -> str:
    """Return the text of a setting in `--help-all`: its description in the class's docstring, and its default.

    Args:
        short: whether the first sentence is enough, as in `--help`.
    """
    described = {param.arg_name: param.description or "" for param in parse_docstring(section.__doc__ or "").params}
    text = " ".join(described.get(field.name, "").replace("`", "").split())
    if short:
        text = re.split(r"\. (?=[A-Z])", text)[0].rstrip(".")
    default = "" if field.default in ("", ()) else f" (default: {field.default})"
    return text + (" (repeatable)" if field.repeated or field.joined else "") + default


def read_config(path: str) -> dict[str, Any]:
    """Read the settings of a YAML file or preset as a flat mapping from keys to values of the right types.

    Raises:
        ConfigError: no such file or preset, no YAML, an unknown key (the message names the nearest) or a wrong type.
    """
    try:
        content = yaml.load(_read_text(path), Loader=_TextLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path!r} is not YAML: {' '.join(str(error).split())}; correct that line") from error
    except RecursionError as error:
        raise ConfigError(f"config {path!r} is nested too deeply; it must hold `key: value` lines") from error
    if not isinstance(content, Mapping | None):
        raise ConfigError(f"config {path!r} holds {type(content).__name__} and must hold `key: value` lines")
    return _flattened(content or {}, f"config {path!r}")


def _read_text(path: str) -> str:
    """Return the text of a YAML file, or of a preset where there is no such file; raises ConfigError."""
    try:
        preset = PRESETS / f"{path}.yaml"
        is_preset = Path(path).name == path and not Path(path).is_file() and preset.is_file()
        with (preset if is_preset else Path(path)).open(encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # the second: no UTF-8, or no path
        reason = (error.strerror if isinstance(error, OSError) else "") or "not a text file"
        known = f"give a YAML file or a preset: {_preset_names()}"
        raise ConfigError(f"config {path!r} cannot be read ({reason}); {known}") from error
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"config {path!r} has over {LARGEST_FILE:,} characters; give a YAML file of settings")
    return text


_STILL_RESOLVED = frozenset(("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"))


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as the texts that they are, so that files and flags have one parser, and refuses a repeated key.

    YAML 1.1 would take 1:30 for ninety, 1_0 for ten and 010 for eight.
    """

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, form) for tag, form in resolvers if tag in _STILL_RESOLVED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name in names if names.count(name) > 1 and name != "<<"]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _preset_names() -> str:
    return ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))


def _flattened(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items():
        section = key if key in SECTIONS and isinstance(value, Mapping) else ""
        for name, inner in value.items() if section else ((key, value),):
            field = _find_field(str(name).replace("-", "_"), section, inner, where)
            if field.key in values:
                raise ConfigError(f"{where} gives {field.name!r} twice; keep one")
            if inner is not None:  # an empty value keeps the default
                values[field.key] = field.read(inner, f"{where}: {field.key}")
    return values


def _find_field(name: str, section: str, value: Any, where: str) -> SettingField:
    """Return the setting that a file names: in a section by its field, at the top level by its key."""
    fields = setting_fields(SECTIONS[section]) if section else {key: field for key, (_, field) in _settings().items()}
    if name in fields:
        return fields[name]
    if not section and name in SECTIONS:
        raise ConfigError(f"{where} has {shown(value)} under {name}: and must have `key: value` lines there")
    known = [*fields, *(() if section else SECTIONS)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    if name in _settings():
        home = _settings()[name][0]
        if home == section:  # the key is that of the flag and of the top level
            hint = f"there it is {_settings()[name][1].name!r}"
        else:
            hint = f"it belongs under {home}:" if home else "it belongs at the top level"
    raise ConfigError(f"{where} has an unknown key {name!r}{f' under {section}:' if section else ''}; {hint}")


def _compose(values: Mapping[str, Any]) -> RunConfig:
    parts: dict[str, dict[str, Any]] = {section: {} for section in _TITLES}
    for key, value in values.items():
        section, field = _settings()[key]
        parts[section][field.name] = value
    budgets = [text.strip() for joined in parts[""].get("budget", ()) for text in joined.split(",")]
    parts[""]["budget"] = tuple(text for text in budgets if text)
    return RunConfig(**parts[""], **{section: cls(**parts[section]) for section, cls in SECTIONS.items()})


def load(path: str) -> RunConfig:
    """Read a YAML file or preset into a RunConfig; raises as `read_config` does, or where a rule is broken."""
    return _compose(read_config(path))


def effective_yaml(config: RunConfig) -> str:
    """Write the whole configuration as YAML that `load` reads back to an equal RunConfig, but for masked passwords."""
    plain = json.loads(json.dumps(masked_settings(dataclasses.asdict(config))))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def command_line(config: Mapping[str, Any]) -> str:
    """Write the command that repeats a search, from its settings as plain data: every flag that is not at its default.

    The run folder is left out, since a search writes to a fresh one, and so is how the search was shown.
    """
    parts = ["python -m search"]
    for key, (section, field) in _settings().items():
        value = (config.get(section, {}) if section else config).get(field.name, field.default)
        values = value if isinstance(value, list | tuple) else [value]
        if key in ("out", "resume", *DISPLAY) or tuple(values) == (
            field.default if field.repeated else (field.default,)
        ):
            continue
        texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
        texts = texts if field.item is str or not field.repeated else [",".join(texts)]
        parts += [f"{field.flag} {shlex.quote(text)}" for text in texts]
    return " ".join(parts)


def check_resumed(config: RunConfig) -> None:
    """Check that a config which resumes a run folder has that folder's settings, except for those in CHANGEABLE.

    Trials can be compared only when they come from one network, one dataset and one way of training.

    Raises:
        ConfigError: there is no run folder, or settings differ; the message names each with both values.
    """
    if not config.resume:
        return
    stored = load(_run_file(config.resume))
    differing = []
    for key, (section, field) in _settings().items():
        before, now = (getattr(getattr(run, section) if section else run, field.name) for run in (stored, config))
        if key in VARIABLES:  # a password is not stored
            before, now = masked(before), masked(now)
        if before != now and key not in CHANGEABLE and section not in CHANGEABLE_SECTIONS:
            differing.append(f"{field.flag} is {before!r} there and {now!r} here")
    if differing:
        raise ConfigError(
            f"--resume {config.resume!r} cannot go on with other settings: {', '.join(differing)}; "
            "leave them as they are there, or start a new search without --resume"
        )


def _run_file(folder: str) -> str:
    file = Path(folder) / RUN_FILE
    if not file.is_file():
        raise ConfigError(f"--resume {folder!r} has no {RUN_FILE}; give the run folder of a search, or leave it out")
    return str(file)
