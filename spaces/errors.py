"""The errors that a user can cause, under one base.

The command line turns a `SlimfrontError` into one line on standard error and exit code 2, so its message must
name the value that was given, the rule it breaks and the way out. The packages above declare their own subclasses
beside the code that raises them.
"""


class SlimfrontError(Exception):
    """Base of all errors that this project raises on purpose."""


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
