"""The scale on which models of a search see accuracies."""

import math


def level(accuracy: float) -> float:
    """Return an accuracy on the scale on which a count of correct images scatters everywhere alike."""
    return math.asin(math.sqrt(min(1.0, max(0.0, accuracy))))
