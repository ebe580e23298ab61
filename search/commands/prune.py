"""`python -m search prune`: one network cut once by one method, with the flags of a search."""

import contextlib
import json
import sys
from collections.abc import Sequence

from configs.loading import parse_flags
from pruning.steps import hearing_steps
from search.callbacks import SearchCallback
from search.library.prune_run import METRICS, prune_run
from search.library.pruned_page import pruned_page
from search.reporting.progress import ConsoleProgress
from search.reporting.wording import make_console, print_parts
from spaces.errors import ExitCode


def prune(arguments: Sequence[str]) -> int:
    """Cut the network of a config, train it for --epochs, and show what it costs and where it is."""
    config = parse_flags(arguments)
    _ = config.budgets  # raises without one, before anything is read
    with contextlib.ExitStack() as stack:
        if config.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        display = SearchCallback() if config.quiet else stack.enter_context(ConsoleProgress(sys.stdout))
        with hearing_steps(display.on_steps):
            run = prune_run(config, display.on_phase)
    if config.json:
        metrics = json.loads((run.folder / METRICS).read_text(encoding="utf-8"))
        sys.stdout.write(json.dumps({"folder": str(run.folder), **metrics}, indent=1) + "\n")
    else:
        print_parts(make_console(sys.stdout), pruned_page(run))
    return ExitCode.RESULT
