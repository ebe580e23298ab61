"""What it costs to screen candidates, to compare them before any training, and how many that allows."""

from runners.training.loop import BATCHNORM_IMAGES

MAX_AUTO_POOL = 8  # a larger screening pool hardly has a better winner, and uses up the proposals
SCREENING_SHARE = 0.25  # the most that automatic screening costs, as a share of the training
FORWARD_SHARE = 1 / 3  # time of a forward pass as a share of the time of a training step


def screen_images(val_images: int) -> float:
    """Return how many training images take as long to train on as one candidate takes to screen."""
    return FORWARD_SHARE * (BATCHNORM_IMAGES + val_images)


def automatic_pool_size(epochs: int, train_images: int, val_images: int) -> int:
    """Return the largest screening pool that costs at most a quarter of a trial's training, from 1 to 8."""
    return int(max(1, min(MAX_AUTO_POOL, SCREENING_SHARE * epochs * train_images / screen_images(val_images))))
