"""The command line: flags and YAML to a RunConfig, a run, and an exit code.

`spaces.errors.ExitCode` lists the exit codes. An error raised on purpose is one line on standard error; any other
exception is a defect of this project and shows its traceback.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from typing_extensions import override

from configs.loading import DISPLAY, check_resumed, effective_yaml, parse_flags
from configs.passwords import masked
from configs.schema import RunConfig
from spaces.errors import ConfigError, ExitCode, SlimfrontError
from spaces.registry import Registry

OURS = ("search", "configs", "runners", "pruning", "spaces")
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = Registry(
    "command",
    {
        "methods": "search.commands.catalogue:methods",
        "presets": "search.commands.catalogue:presets",
        "show": "search.commands.old_runs:show",
        "compare": "search.commands.old_runs:compare",
        "prune": "search.commands.prune:prune",
        "export": "search.commands.export:export",
        "latency": "search.commands.latency:latency",
        "sync": "search.commands.sync:sync",
    },
)
PLAN = "plan"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("SLIMFRONT_DEBUG", "") not in ("", "0")
    try:
        return _run(arguments, debug)
    except SystemExit as exit_:  # --help
        return int(exit_.code or 0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The process that read our output has ended; without this, Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OUTPUT_CLOSED
    except (SlimfrontError, OSError) as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, SlimfrontError) else ExitCode.USAGE


def exit_quickly(code: int) -> NoReturn:
    """End the process; after Ctrl-C at once, without the seconds that libraries take to clean up."""
    if code == ExitCode.INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: Sequence[str], debug: bool) -> int:
    _configure_logging(debug)  # before libraries are loaded, which warn of one another
    planning = bool(arguments) and arguments[0] == PLAN
    if arguments and not planning and not arguments[0].startswith("-"):
        return COMMANDS[arguments[0]](arguments[1:])
    config = parse_flags(arguments[1:] if planning else arguments)
    if "--print-config" in arguments:
        print(effective_yaml(config), end="")
        return ExitCode.RESULT
    if planning and (given := [f"--{name}" for name in DISPLAY if f"--{name}" in arguments]):
        raise ConfigError(f"plan takes no {given[-1]}: it prints one page for a person; leave it out")
    # `prepare` raises these errors too, but only after the seconds that the libraries take to load.
    _ = config.budgets, config.storage_address, config.tracking_address
    check_resumed(config)
    return _plan(config) if planning else _search(config)


def _search(config: RunConfig) -> int:
    """Run a search with its live display, its final lines or its JSON; return the exit code."""
    from search.reporting.progress import ConsoleProgress, JsonResult, QuietProgress

    output = [JsonResult(sys.stdout)] if config.json else [QuietProgress(sys.stdout)] if config.quiet else []
    with contextlib.ExitStack() as stack:
        if config.json:  # what libraries and the user's factories print would spoil it
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        display = [] if config.quiet else [stack.enter_context(ConsoleProgress(sys.stdout))]
        for shown in display:
            shown.on_phase("loading")  # while the libraries load, which takes seconds
        from search.orchestrator import run
        from search.reporting.statements import commonest_failure

        result = run(config, [*display, *output])
    if result.interrupted:
        return ExitCode.INTERRUPTED
    if len(result.front):
        return ExitCode.RESULT
    reason = commonest_failure(result.results)
    told = (
        f"no trial finished; {reason}" if reason else "no network of a trial meets every budget; raise one, or --trials"
    )
    print(f"error: {told}", file=sys.stderr)
    return ExitCode.NO_TRIAL


def _plan(config: RunConfig) -> int:
    """Print what a search would do; download, train and write nothing."""
    from search.environment import prepare
    from search.reporting.plan import plan_page
    from search.reporting.wording import make_console
    from search.searchers.candidate_space import CandidateSpace
    from search.servers import check_servers

    check_servers(config)
    environment = prepare(config, fetch=False)
    make_console(sys.stdout).print(plan_page(environment, CandidateSpace(environment.problem)))
    return ExitCode.RESULT


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = repr(error.filename) if error.filename else "the disk"
        way_out = "make room there, or choose another place"
        if isinstance(error, PermissionError):
            way_out = "give this user the right to it, or name another place"
        text = f"cannot use {place}: {error.strerror}; {way_out}"
    else:
        text = str(error)
    return masked(" ".join(text.split())) or type(error).__name__


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`, which the live display replaces to keep log lines apart from its own."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _WithoutPasswords(logging.Formatter):
    """Masks the passwords of addresses, which libraries may log."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def _print_traceback(*error: Any) -> None:
    """Print a traceback without the passwords of addresses; an `excepthook`."""
    sys.stderr.write(masked("".join(traceback.format_exception(*error))))


def _configure_logging(debug: bool) -> None:
    """Show the warnings of this project only; with --debug the log of every library."""
    sys.excepthook = _print_traceback
    handler = _StandardError()
    handler.setFormatter(_WithoutPasswords("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.WARNING)
    if not debug and not sys.warnoptions:
        # Deprecations inside libraries concern their authors, not the user of a search.
        warnings.simplefilter("ignore")
