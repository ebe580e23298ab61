"""Ray Tune's settings, which are environment variables and log levels: set during a search, restored after it."""

import contextlib
import logging
import os
from collections.abc import Iterator

# Tune and its workers read these when they start; they are set only while a search runs.
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's handler waits for running steps; Ctrl-C must not
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # never: the AskTell keeps the record, not Tune's experiment state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of data and weights stay valid
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def quiet_tune() -> Iterator[None]:
    """Keep Tune from writing logs, handling Ctrl-C and changing the working folder inside the block."""
    loggers = {name: logging.getLogger(name).level for name in ("ray.tune", "ray.air", "ray.train")}
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT)
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the AskTell reports a failed trial, once
    try:
        yield
    finally:
        for name in _ENVIRONMENT:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in _ENVIRONMENT if name in before})
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
