"""Learning curves: when a longer training would have helped, and the file beside the cached weights."""

import pytest

from runners.learning_curve import LearningCurve, read_curve, write_curve

RISING = (0.30, 0.45, 0.55, 0.62)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (LearningCurve(RISING, train=0.7, val_images=400), True),
        (LearningCurve((0.94,), train=0.93, val_images=400), True),  # the first epoch always is a rise
        (LearningCurve(RISING, train=0.99, val_images=400), False),  # the training images are learned
        (
            LearningCurve((0.30, 0.45, 0.60, 0.62), train=0.7, val_images=400),
            False,
        ),  # 0.02: under two errors of 0.024
        (LearningCurve((0.30, 0.45, 0.60, 0.62), train=0.7, val_images=40_000), True),
        (LearningCurve((0.60, 0.62, 0.55, 0.61), train=0.7, val_images=40_000), False),
        (LearningCurve((0.8, 1.0), train=1.0, val_images=400), False),
        (LearningCurve((), train=0.1, val_images=400), False),
        (LearningCurve(RISING, train=0.7, val_images=0), False),
    ],
)
def test_a_curve_still_improves_if_it_rises_at_its_end_and_the_training_images_are_not_learned(
    curve: LearningCurve, expected: bool
) -> None:
    assert curve.still_improving is expected


def test_a_long_training_that_a_falling_rate_lifts_at_its_end_is_over() -> None:
    """The cycle of learning rates lifts the last epochs, but nearly all training images were right before."""
    val = (*[0.85] * 30, *[0.87, 0.88, 0.89, 0.90, 0.905] * 2)
    assert not LearningCurve(val, train=0.995, val_images=1200).still_improving
    assert LearningCurve(val, train=0.93, val_images=1200).still_improving


def test_a_curve_survives_its_file_and_a_damaged_file_is_no_curve(tmp_path, caplog) -> None:
    curve, file = LearningCurve(RISING, 0.7, 400), tmp_path / "dense" / "key.json"
    assert read_curve(file) is None
    write_curve(curve, file)
    assert read_curve(file) == curve
    assert curve.epochs == 4
    file.write_text('{"val": [0.1')
    assert read_curve(file) is None
    assert "key.json cannot be read" in caplog.text
