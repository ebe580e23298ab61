"""`--screen`: how many candidates are compared before any training for each one that is trained."""

from configs.schema import ConfigError

AUTO, NONE = "auto", "none"
MOST = 8  # of automatic pools: the best of more is hardly better, and the proposals are used up
SHARE = 0.25  # of the training, that automatic screening costs at most
FORWARD = 1 / 3  # of the time of a training step, that an image takes without training
STATISTICS_IMAGES = 512  # that BatchNorm is re-estimated on


def parse_screen(text: str, epochs: int) -> int | None:
    """Return how many candidates are compared for each one that is trained, 1 for none; None leaves it to the images.

    Args:
        text: "auto", "none" or a whole number from 1.
        epochs: of a trial's training.

    Raises:
        ConfigError: another text, or more than one candidate where none is trained.
    """
    number = text.strip()
    if number in (AUTO, NONE):
        return None if number == AUTO and epochs else 1
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            f"--screen is {text!r} and must be a whole number from 1, as in 4 (1 trains every candidate), or auto or "
            "none"
        )
    if int(number) > 1 and not epochs:
        raise ConfigError(
            f"--screen {text!r} chooses what is trained, and with --epochs 0 nothing is; raise --epochs or leave "
            "--screen out"
        )
    return int(number)


def screen_images(val_images: int) -> float:
    """Return how many images of training take as long as a candidate without training."""
    return FORWARD * (STATISTICS_IMAGES + val_images)


def pool_size(text: str, epochs: int, train_images: int, val_images: int) -> int:
    """Return how many candidates are compared for each one that is trained; 1 for none.

    Raises:
        ConfigError: a text that says no such number.
    """
    given = parse_screen(text, epochs)
    if given is not None:
        return given
    return int(max(1, min(MOST, SHARE * epochs * train_images / screen_images(val_images))))
