"""`python -m search prune`: one network cut once by one method, with the flags of a search."""

import sys
from collections.abc import Sequence

from configs.loading import parse_flags
from search.library.prune_run import prune_run
from search.library.pruned_page import pruned_page
from search.reporting.progress import ConsoleProgress
from search.reporting.wording import make_console, print_parts
from spaces.errors import ExitCode


def prune(arguments: Sequence[str]) -> int:
    """Cut the network of a config, train it for --epochs, and show what it costs and where it is."""
    config = parse_flags(arguments)
    _ = config.budgets  # raises without one, before anything is read
    with ConsoleProgress(sys.stdout) as display:
        run = prune_run(config, display.on_phase)
    print_parts(make_console(sys.stdout), pruned_page(run))
    return ExitCode.RESULT
