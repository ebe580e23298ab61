"""YAML and command-line flags to RunConfig, and back.

Flags are flat (`--batch-size`), files have sections (`train: {batch_size: 64}`) or are flat too, since field names are
unique over all sections. Precedence: defaults, then the file of --config, then flags. jsonargparse knows the types.
"""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from configs.arguments import one_line, parse_arguments
from configs.schema import RunConfig, setting_key
from runners.config import DataConfig, LatencyConfig, RunnerConfig, TrainConfig
from spaces.errors import ConfigError
from spaces.space import SpaceConfig

PRESETS = Path(__file__).parent / "presets"
RUN_FILE = "config.yaml"  # of a run folder
SECTIONS: dict[str, Any] = {
    "space": SpaceConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "runner": RunnerConfig,
    "latency": LatencyConfig,
}
_TITLES = {
    "": "search",
    "space": "widths",
    "data": "images",
    "train": "training",
    "runner": "where trials run",
    "latency": "measured latency",
}
_ALIASES = {"learning_rate": ("--lr",), "dense_learning_rate": ("--dense-lr",)}
_EXAMPLES = """examples:
  python -m search --budget 0.5gflops
  python -m search --budget 30% --model resnet20 --data cluttered_digits --trials 24
  python -m search --config quick --budget 1.2mparams --skip 'layer4.*'
  python -m search --config csgd-resnet56-cifar10 --data-dir ~/data
  python -m search --targets 8,20,50% --model resnet20 --data cluttered_digits --trials 36
  python -m search --resume runs/NAME --budget 20%

to see what a run would do, with everything that it would take, before it does:
  python -m search plan --budget 0.5gflops [options]

to look up:
  python -m search methods [NAME ...]    methods with their settings, defaults, needs and papers (--json)
  python -m search presets [NAME ...]    files for --config, most of them recipes of papers (--json)"""


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the command line asks for.

    Attributes:
        config: the effective configuration, not validated yet.
        print_config: print it instead of searching.
        debug: show tracebacks and the log.
    """

    config: RunConfig
    print_config: bool = False
    debug: bool = False


@dataclasses.dataclass(frozen=True)
class _Option:
    section: str
    name: str
    kind: Any
    default: Any
    help: str

    @property
    def key(self) -> str:
        """The name of the setting outside of its section."""
        return setting_key(self.section, self.name)

    @property
    def repeated(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    @property
    def item(self) -> Any:
        """The type of one value."""
        return typing.get_args(self.kind)[0] if self.repeated else self.kind


@cache
def _options() -> Mapping[str, _Option]:
    """Every setting of a run by its name, in the order of the help; the dataclasses are the one source."""
    return {option.key: option for section in _TITLES for option in _section_options(section)}


def _section_options(section: str) -> Iterator[_Option]:
    cls = SECTIONS[section] if section else RunConfig
    documented = {p.arg_name: p.description or "" for p in parse_docstring(cls.__doc__ or "").params}
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        if section or each.name not in SECTIONS:
            text = " ".join(documented.get(each.name, "").replace("`", "").split())
            yield _Option(section, each.name, hints[each.name], each.default, text)


def parse_flags(argv: Sequence[str]) -> Flags:
    """Read the command line; `--help` prints and raises SystemExit(0).

    Raises:
        ConfigError: an unknown flag or key, a value of the wrong type, a file that cannot be read.
    """
    given = vars(parse_arguments(_parser(files=False), argv, _known_flags()))
    path, printing, debug = (given.pop(name, None) for name in ("config", "print_config", "debug"))
    flags = {k: v for k, v in given.items() if v is not None}
    asked = (read_config(path) if path else {}) | flags
    stored = _of_run(flags["resume"], flags.get("out", "")) if flags.get("resume") else {}
    if "budget" in asked or "targets" in asked:  # replace together what was asked for then
        stored = {name: value for name, value in stored.items() if name not in ("budget", "targets")}
    values = stored | asked
    return Flags(_compose(values), bool(printing), bool(debug))


def read_config(path: str) -> dict[str, Any]:
    """Read the settings of a YAML file or preset as a flat mapping, types checked.

    Raises:
        ConfigError: no such file or preset, no YAML, an unknown key (the message names the nearest) or a wrong type.
    """
    text, where = _find(path)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {where} is not YAML: {' '.join(str(error).split())}; correct that line") from error
    if not isinstance(content, Mapping | None):
        raise ConfigError(f"config {where} holds {type(content).__name__} and must hold `key: value` lines")
    flat = _flatten(content or {}, where)
    try:
        values: dict[str, Any] = vars(_parser(files=True).parse_object(flat, defaults=False))
        return values
    except argparse.ArgumentError as error:
        raise ConfigError(f"config {where}: {one_line(error)}") from error


def run_config_file(folder: str) -> str:
    """Return where a run folder keeps its settings.

    Raises:
        ConfigError: it keeps none.
    """
    file = Path(folder) / RUN_FILE
    if not file.is_file():
        raise ConfigError(f"--resume {folder!r} has no {RUN_FILE}; give the run folder of a search, or leave it out")
    return str(file)


def _of_run(folder: str, out: str) -> dict[str, Any]:
    if out:
        raise ConfigError(f"--out is {out!r} and --resume {folder!r}, which writes to that folder; leave --out away")
    return read_config(run_config_file(folder))


def load(path: str) -> RunConfig:
    """Read a YAML file or preset into a RunConfig; raises as `read_config` does."""
    return _compose(read_config(path))


def effective_yaml(config: RunConfig) -> str:
    """Write the whole configuration as YAML that `load` reads back to an equal RunConfig."""
    plain = {name: _plain(value) for name, value in dataclasses.asdict(config).items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _find(path: str) -> tuple[str, str]:
    preset = PRESETS / f"{path}.yaml"
    is_preset = Path(path).name == path and not Path(path).is_file() and preset.is_file()
    try:
        return (preset if is_preset else Path(path)).read_text(encoding="utf-8"), repr(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        known = f"give a YAML file or a preset: {_presets()}"
        raise ConfigError(f"config {path!r} cannot be read ({reason}); {known}") from error


def _presets() -> str:
    return ", ".join(sorted(each.stem for each in PRESETS.glob("*.yaml")))


def _flatten(content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        section = key if key in SECTIONS and isinstance(value, Mapping) else ""
        for name, inner in value.items() if section else ((key, value),):
            name = str(name).replace("-", "_")
            option = _options().get(setting_key(section, name) if section else name)
            if option is None and name in SECTIONS:
                raise ConfigError(f"config {where} has {inner!r} under {name}: and must have `key: value` lines there")
            if option is None or (section and option.section != section):
                raise _unknown_key(name, section, where)
            if option.key in flat:
                raise ConfigError(f"config {where} gives {option.name!r} twice; keep one")
            if inner is not None:  # an empty value keeps the default
                flat[option.key] = _several(option, inner) if option.repeated else inner
    return flat


def _several(option: _Option, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [str(each) for each in values] if option.item is str else values


def _unknown_key(name: str, section: str, where: str) -> ConfigError:
    known = [each.name if section else each.key for each in _options().values() if section in ("", each.section)]
    near = difflib.get_close_matches(name, known + ([] if section else list(SECTIONS)), n=1, cutoff=0.4)
    elsewhere = _options().get(name)
    if elsewhere is not None:
        hint = f"it belongs under {elsewhere.section}:" if elsewhere.section else "it belongs at the top level"
    else:
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ConfigError(f"config {where} has an unknown key {name!r}{f' under {section}:' if section else ''}; {hint}")


def _compose(values: Mapping[str, Any]) -> RunConfig:
    parts: dict[str, dict[str, Any]] = {section: {} for section in _TITLES}
    for name, value in values.items():
        option = _options()[name]
        parts[option.section][option.name] = _items(option, value) if option.repeated else value
    if "budget" in parts[""]:
        split = (text.strip() for joined in parts[""]["budget"] for text in joined.split(","))
        parts[""]["budget"] = tuple(text for text in split if text)
    return RunConfig(**parts[""], **{section: cls(**parts[section]) for section, cls in SECTIONS.items()})


def _items(option: _Option, values: Sequence[Any]) -> tuple[Any, ...]:
    if option.item is str:
        return tuple(values)
    texts = [text.strip() for value in values for text in str(value).split(",")]
    try:
        return tuple(option.item(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{option.name} is {', '.join(texts)} and must be whole numbers, as in 100,200") from error


def _parser(files: bool) -> ArgumentParser:
    """Build the parser of flags, or of the flat content of a file: there repeated settings are one list."""
    parser = ArgumentParser(
        prog="python -m search",
        usage="%(prog)s --budget LIMIT [options]",
        description="Search narrower versions of a CNN that meet hard budgets; report their Pareto front.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for section, title in _TITLES.items():
        group = parser.add_argument_group(title)
        for option in (each for each in _options().values() if each.section == section):
            _add(group, option, files)
    if not files:
        group = parser.add_argument_group("configuration")
        group.add_argument("--config", metavar="FILE", help=f"YAML file or preset ({_presets()}); flags go on top")
        group.add_argument("--print-config", action="store_true", help="print the effective YAML and exit")
        group.add_argument("--debug", action="store_true", help="show tracebacks and the log")
    return parser


def _add(group: Any, option: _Option, files: bool) -> None:
    flag = "--" + option.key.replace("_", "-")
    shown = "" if option.default in ("", ()) else f" (default: {option.default})"
    metavar = {int: "N", float: "X"}.get(option.item, option.key.rpartition("_")[2].upper())
    kind: Any = (list[option.item] if files else str) if option.repeated else option.kind  # type: ignore[name-defined]
    help_text = option.help + (" (repeatable)" if option.repeated else "") + shown
    extra = {"action": "append"} if option.repeated and not files else {}
    group.add_argument(
        flag, *_ALIASES.get(option.name, ()), type=kind, metavar=metavar, help=help_text.replace("%", "%%"), **extra
    )


def _known_flags() -> list[str]:
    return ["--" + name.replace("_", "-") for name in [*_options(), "config", "print-config", "debug", "help"]]
