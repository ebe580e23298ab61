"""LearningCurve: the accuracy of a network while it was trained, and whether more epochs would have helped."""

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from runners.cache import is_cached, write_cached

# Measured on LeNet-5 with one_cycle: trainings of 2, 4 and 8 epochs on cluttered_digits and of 2 on digits are told to
# be still improving, and twice the epochs gave 3 to 16 points more on test; those of 16 epochs on cluttered_digits and
# of 4 and more on digits are not, and twice the epochs gave 1.6 points and at most 1.7.
UNDERFIT = 0.1  # error on training images, as a share of that on validation images, from which more training helps
LAST_SHARE = 0.25  # of the epochs, in which validation accuracy must still have risen
STANDARD_ERRORS = 1.5  # of the validation accuracy; between readings on the same images there is less noise than two

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningCurve:
    """The accuracy of a network while it was trained, in [0, 1].

    Attributes:
        val: on the validation images, after every epoch.
        train: on training images without augmentation, after the last epoch.
        val_images: number of validation images.
    """

    val: tuple[float, ...]
    train: float
    val_images: int

    @property
    def epochs(self) -> int:
        """Number of epochs of the training."""
        return len(self.val)

    @property
    def still_improving(self) -> bool:
        """Whether the accuracy still rose as the training ended, and a longer training can be expected to help.

        A schedule that lowers the learning rate lets the accuracy rise at the end of any training, so a rise says
        little alone: the network must also be short of fitting the training images.
        """
        if not self.val or not self.val_images:
            return False
        last = math.ceil(LAST_SHARE * self.epochs)
        reached, before = max(self.val[-last:]), max(self.val[:-last], default=0.0)
        noise = math.sqrt(reached * (1 - reached) / self.val_images)
        underfit = 1 - self.train > UNDERFIT * (1 - self.val[-1])
        return underfit and reached - before > STANDARD_ERRORS * noise


def write_curve(curve: LearningCurve, path: Path) -> None:
    """Write a learning curve to a file of the cache."""
    write_cached(path, json.dumps(asdict(curve)).encode())


def read_curve(path: Path) -> LearningCurve | None:
    """Return the learning curve in a file; None without a file that can be read."""
    if not is_cached(path):
        return None
    try:
        found = json.loads(path.read_text())
        return LearningCurve(tuple(map(float, found["val"])), float(found["train"]), int(found["val_images"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s); the learning curve is unknown", path, error)
        return None
