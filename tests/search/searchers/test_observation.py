"""The scale on which accuracies are modelled."""

import math

import pytest

from search.searchers.observation import arcsine_sqrt


def test_the_arcsine_of_the_root_grows_with_accuracy_and_takes_the_ends() -> None:
    assert arcsine_sqrt(0.0) == 0.0
    assert arcsine_sqrt(1.0) == pytest.approx(math.pi / 2)
    assert arcsine_sqrt(0.4) < arcsine_sqrt(0.5)
