import pytest

from configs.schema import ConfigError
from configs.screening import parse_screen, pool_size


@pytest.mark.parametrize(
    ("text", "epochs", "train", "val", "size"),
    [
        ("auto", 2, 4_000, 1_000, 3),  # 0.25 * 2 * 4000 / (1512 / 3) = 3.97
        ("auto", 1, 1_000, 488, 1),
        ("auto", 90, 50_000, 5_000, 8),
        ("auto", 0, 4_000, 1_000, 1),
        ("none", 2, 4_000, 1_000, 1),
        ("1", 2, 4_000, 1_000, 1),
        ("1", 0, 4_000, 1_000, 1),
        (" 12 ", 2, 10, 10, 12),
    ],
)
def test_automatic_pools_cost_at_most_a_quarter_of_the_training(
    text: str, epochs: int, train: int, val: int, size: int
) -> None:
    assert pool_size(text, epochs, train, val) == size


@pytest.mark.parametrize("text", ["0", "x", "-1", "1.5", ""])
def test_what_is_no_number_of_candidates_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 1, as in 4"):
        parse_screen(text, 2)


def test_there_is_nothing_to_choose_for_where_nothing_is_trained() -> None:
    with pytest.raises(ConfigError, match="--screen '4' chooses what is trained, and with --epochs 0 nothing is"):
        parse_screen("4", 0)
