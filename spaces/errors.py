"""The errors that this project raises on purpose, under one base, and the exit codes of the command line.

The command line turns a `SlimfrontError` into one line on standard error and the exit code of its class, so its message
must name the value that was given, the rule it breaks and the way out. The packages above declare their own subclasses
beside the code that raises them.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """How the command line ends.

    Attributes:
        RESULT: a front, or what was asked for.
        DEFECT: an error in this project, which shows its traceback.
        USAGE: something that the user can put right: flags, files, images, network, space on a disk.
        NO_TRIAL: the search ended, and no trial gave a network inside the budgets.
        LOST: a cluster or a storage that had answered went away for good, or a disk became full.
        INTERRUPTED: stopped by Ctrl-C, with the front so far where there is one.
        OUTPUT_CLOSED: the program that read the output ended, as `head` does.
    """

    RESULT = 0
    DEFECT = 1
    USAGE = 2
    NO_TRIAL = 3
    LOST = 4
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


class SlimfrontError(Exception):
    """Base of all errors that this project raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class NoTrialError(SlimfrontError):
    """A search that ended before any trial gave a network."""

    exit_code = ExitCode.NO_TRIAL


class LostError(SlimfrontError):
    """A cluster or a storage that had answered and went away; the message gives the `--resume` command."""

    exit_code = ExitCode.LOST


class NoRoomError(LostError):
    """A disk that became full during a search; what was finished is kept."""


class ConfigError(SlimfrontError):
    """A setting that cannot be read, is not known, or is out of its range."""


class BudgetError(SlimfrontError):
    """A budget that cannot be read, or that no network of the space can meet."""


class SpaceError(SlimfrontError):
    """Widths or settings that are not legal in a search space."""


class TraceError(SlimfrontError):
    """A network whose channels cannot be traced; the message names the layer."""


class UnknownNameError(SlimfrontError):
    """A name that is in no registry; the message gives the nearest names."""


class WeightsError(SlimfrontError):
    """Weights that are missing, corrupt, of another format or of the wrong shapes; the message names the file."""


class ModelError(SlimfrontError):
    """A network that cannot be built as asked: arguments it does not take, or a factory that gives no network."""
