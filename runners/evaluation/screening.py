"""What it costs to screen candidates, to compare them before any training, and how many that allows."""

from runners.evaluation.proxy import PROXY_IMAGES

SCREENED_BATCHNORM_IMAGES = 128  # on which the BatchNorm statistics of a screened candidate are estimated
MAX_AUTO_POOL = 64
SCREENING_SHARE = 0.1  # the most that automatic screening costs, as a share of the training
FORWARD_SHARE = 1 / 3  # time of a forward pass as a share of the time of a training step
# Images whose forward pass takes as long as the cut does, with its refit and the copy of the weights: 0.06 s of di on a
# ResNet-20 at 8% of its FLOPs, one core, where an image takes 0.36 ms.
CUT_IMAGES = 160


def screen_images(calibration_images: int) -> float:
    """Return how many training images take as long to train on as one candidate takes to screen."""
    return FORWARD_SHARE * (CUT_IMAGES + SCREENED_BATCHNORM_IMAGES + min(PROXY_IMAGES, calibration_images))


def automatic_pool_size(trained_images: float, pools: float, calibration_images: int) -> int:
    """Return the largest size of screening pools that together cost a tenth of the training at most, from 1 to 64.

    Args:
        trained_images: images of all trainings of the search together, every epoch of every trial counted.
        pools: number of pools, about.
    """
    affordable = SCREENING_SHARE * trained_images / screen_images(calibration_images)
    return int(max(1, min(MAX_AUTO_POOL, affordable / max(1.0, pools))))
