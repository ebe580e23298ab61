"""`--rungs`: the lengths of training after which trials pause and the better half goes on."""

from configs.schema import ConfigError, RunConfig
from configs.search_training import searches_epochs

AUTO, NONE = "auto", "none"
# Between automatic rungs. A leg starts its schedule again, which costs accuracy where it is short: ResNet-20 on
# cluttered_digits at 8% of its FLOPs has 87.7% after two epochs and 86.9% after two of one.
ETA = 3
LEAST_TRIALS = 8  # under which there is next to nobody to choose among


def rungs_of(config: RunConfig) -> tuple[int, ...]:
    """Return the epochs that a trial has had at each of its rungs, the last of which is the whole training.

    Where every trial has epochs of its own there are none.

    Raises:
        ConfigError: rungs that cannot be read or do not fit the training.
    """
    searched = searches_epochs(config.search_training)
    if searched and config.rungs not in (AUTO, NONE):
        raise ConfigError(
            f"--rungs {config.rungs!r} says how long trials train, and --search-training epochs lets the search choose "
            "it; keep one of the two"
        )
    return parse_rungs(NONE if searched else config.rungs, config.train.epochs, config.trials)


def parse_rungs(text: str, epochs: int, trials: int) -> tuple[int, ...]:
    """Return the epochs that a trial has had at each of its rungs, the last of which is the whole training.

    Args:
        text: "auto" (a third of the epochs, a ninth, ..., where that is an epoch; none under 8 trials), "none", or
            epochs in rising order.
        epochs: of the whole training.

    Returns:
        At least two numbers; none where trials are trained at once.

    Raises:
        ConfigError: another text, numbers that do not rise from 1, one beyond `epochs`.
    """
    if text == NONE:
        return ()
    if text == AUTO:
        if trials < LEAST_TRIALS:
            return ()
        powers = range(1, epochs.bit_length())
        rungs = sorted({epochs // ETA**power for power in powers} - {0})
    else:
        rungs = _numbers(text)
    if rungs and rungs[-1] > epochs:
        raise ConfigError(
            f"--rungs {text!r} has a rung after {rungs[-1]} epochs, longer than the training of --epochs {epochs}; "
            "lower that rung or raise --epochs"
        )
    before = [each for each in rungs if each < epochs]
    return (*before, epochs) if before else ()


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    rungs = [int(part) for part in parts if part.isdecimal()]
    if len(rungs) != len(parts) or rungs != sorted(set(rungs)) or rungs[0] < 1:
        raise ConfigError(
            f"--rungs is {text!r} and must be whole epochs from 1 in rising order, as in 1,2,4, or auto or none"
        )
    return rungs
