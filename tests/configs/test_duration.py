import pytest

from configs.duration import parse_duration
from configs.schema import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h 2m 3s", 3723), ("1.5H", 5400), ("0h0.5s", 0.5)],
)
def test_hours_minutes_and_seconds_are_read(text: str, seconds: float) -> None:
    assert parse_duration("--time-limit", text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "-5m", "30", "30m1h", "5m5m", "1d", "nan", "inf", "٣m", "9" * 400 + "h"]
)
def test_anything_else_is_refused_with_the_flag_and_examples(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_duration("--time-limit", text)
    assert str(error.value).startswith(f"--time-limit is {text!r} and must be a time above 0")
    assert str(error.value).endswith("such as 90s, 30m, 1h30m or 2h")
